"""Processes of their own that start at once: what takes seconds is imported once, then forked.

forks.start("from jaxclf import train; train.main([…])", log, XLA_FLAGS="…") → Process
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# JAX starts its threads only in the children, so that forking is safe.
_SERVER = """
import json, os, sys
import rich.progress, sklearn.metrics, tensorboard.summary.writer.record_writer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from jaxclf.core import errors
import jaxclf.convert.hf_import, jaxclf.runs.training, tests.mesh_checks

def run(asked):
    os.environ.update(asked["environment"])
    sys.argv[1:] = []
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    errors.run(lambda _: exec(asked["program"], {}))

for line in sys.stdin:
    asked = json.loads(line)
    if "program" in asked:
        os.environ["PYTEST_CURRENT_TEST"] = asked["test"]  # of which what is forked is a part
        answer = os.fork()
        if not answer:
            sys.stdin.close()
            run(asked)
    else:
        child, status = os.waitpid(asked["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if child else None
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Process:
    """A child of the server, by its `pid`; what it printed is in `log`."""

    server: "Forks"
    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        if self.code is None:
            self.code = self.server.ask(pid=self.pid)
        return self.code

    def wait(self, seconds: float = 240) -> int:
        """Its exit code; what still runs after so long is killed."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                os.kill(self.pid, 9)
                end = float("inf")
            time.sleep(0.005)
        assert self.code is not None
        return self.code


class Forks:
    """The process that imports and forks."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def start(self, program: str, log: Path, **environment: str) -> Process:
        """Run Python in a process of its own, with more variables in its environment."""
        test = os.environ["PYTEST_CURRENT_TEST"]
        pid = self.ask(program=program, log=str(log), environment=environment, test=test)
        return Process(self, pid, log)

    def ask(self, **asked) -> int | None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def serving() -> Iterator[Forks]:
    """The server, for as long as the block runs."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Forks(process)
        assert process.stdin
        process.stdin.close()
