"""Commands as processes that start at once: what takes seconds is imported once, then forked.

A command may be ended at its n-th write below a folder, which Python's audit events tell, so that
every moment of what it leaves on disk can be met.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds after which a command counts as hung

# JAX starts its threads only in the children, so that forking is safe.
_SERVER = r"""
import importlib, json, os, signal, sys
import openai, pyarrow.parquet, rich.progress, sklearn.metrics
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from jaxclf.core import errors
for name in ("train", "evaluate", "predict", "prompt", "compare", "curve", "reproduce",
             "convert.from_hf", "convert.to_hf", "convert.from_peft", "convert.to_peft",
             "runs.training", "runs.labelling", "runs.comparison", "ensemble.run", "report.page"):
    importlib.import_module("jaxclf." + name)

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
count = 0

def watch(folder, last, noted):
    def written(event, arguments):
        global count
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, bytes)) or not flags & WRITES:
                return
        elif event in CHANGES:
            path = arguments[0]
            if isinstance(path, int):
                return
        else:
            return
        if os.fsdecode(path).startswith(folder):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(written)
    if noted:
        import atexit
        atexit.register(lambda: open(noted, "w").write(str(count)))

def run(asked):
    os.environ.update(asked["environment"])
    for name in asked["unset"]:
        os.environ.pop(name, None)
    os.setpgid(0, 0)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [asked["module"], *asked["arguments"]]
    if asked["folder"]:
        watch(asked["folder"], asked["last"], asked["noted"])
    exec(asked["before"], {})
    errors.run(importlib.import_module(asked["module"]).main)

print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "module" in asked:
        answer = os.fork()
        if not answer:
            sys.stdin.close()
            run(asked)
    else:
        child, status = os.waitpid(asked["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if child else None
    print(json.dumps(answer), flush=True)
"""


@dataclasses.dataclass
class Command:
    """A started command: its process, and what it printed in `log`."""

    server: "Commands"
    pid: int
    log: Path
    code: int | None = None
    hung: bool = False

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        if self.code is None:
            self.code = self.server.ask(pid=self.pid)
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = LIMIT) -> int:
        """Its exit code; one that still runs after so long is `hung`, and killed."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.hung = True
                os.killpg(self.pid, signal.SIGKILL)
                end = float("inf")
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text

    def last_words(self, length: int = 300) -> str:
        """The error that it ended with, else the end of what it printed, in one line."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        errors = [place for place, line in enumerate(lines) if line.startswith("error")]
        return " / ".join(lines[errors[-1] :] if errors else lines[-2:])[:length]


class Commands:
    """The process that imports and forks, for commands that compute on one CPU device."""

    def __init__(self, scratch: Path, **environment: str):
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "HF_HUB_OFFLINE": "1",
            "JAXCLF_CACHE": str(scratch / "cache"),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
            or str(scratch / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(REPOSITORY),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.process.stdout.readline()

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **asked) -> int | None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        module: str,
        arguments: Sequence[object],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        unset: Sequence[str] = (),
        before: str = "",
        folder: Path | None = None,
        last: int = 0,
        noted: Path | None = None,
    ) -> Command:
        """Run the `main` of a module. `before`: Python to run first.

        `folder`: whose writes are counted, to be killed at the one of number `last`; their number
        is written to `noted`.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        pid = self.ask(
            module=module,
            arguments=[str(each) for each in arguments],
            log=str(log),
            environment=dict(environment or {}),
            unset=list(unset),
            before=before,
            folder=str(folder or ""),
            last=last,
            noted=str(noted or ""),
        )
        assert pid is not None
        return Command(self, pid, log)

    def run(self, module: str, arguments: Sequence[object], log: Path, **options) -> Command:
        """As `start`, to its end."""
        seconds = options.pop("seconds", LIMIT)
        command = self.start(module, arguments, log, **options)
        command.wait(seconds)
        return command
