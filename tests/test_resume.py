"""Kills and requests to stop, on real processes: nothing is lost and nothing changes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxclf.checkpoints import resolve
from jaxclf.errors import Preempted
from jaxclf.storage import manifest_to_json

ROOT = Path(__file__).parent.parent
STEPS = 60
KILLS = 20

# Imports once what takes seconds, then forks a process per run: JAX starts its threads only in
# the children.
SERVER = """
import os, sys
from pathlib import Path
import rich.progress, tensorboardX
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from jaxclf import config, errors
from jaxclf.training import train

for line in sys.stdin:
    workdir, *overrides = line.split()
    child = os.fork()
    if not child:
        sys.argv[1:] = []
        sys.stdout = sys.stderr = open(workdir + ".log", "a")
        settings = config.load(CONFIG, overrides)
        errors.run(lambda _: train(settings, Path(workdir)) and None)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Server:
    """Runs trainings one after the other in processes of their own."""

    def __init__(self, cache: Path):
        config = str(ROOT / "configs/quickstart.py:smoke")
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"CONFIG = {config!r}\n{SERVER}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, workdir: Path) -> int:
        """Begin or resume the run; returns its process id."""
        assert self.process.stdin
        assert self.process.stdout
        overrides = (
            f"train.steps={STEPS} train.checkpoint_every=3 train.log_every=1 data.limit=24 "
            "train.eval_every=0 eval.max_new_tokens=8 train.keep=2"
        )
        self.process.stdin.write(f"{workdir} {overrides}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the run; negative: the signal that ended it."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("compiled"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    server.start(workdir)
    assert server.wait() == 0, workdir.with_suffix(".log").read_text()
    return workdir


def logged(workdir: Path) -> list[tuple[int, float]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # half a line at the end of a killed run
            continue
        if "train/loss" in row:
            rows.append((row["step"], row["train/loss"]))
    return rows


def last_logged(workdir: Path) -> int:
    return max((step for step, _ in logged(workdir)), default=0)


def wait_for_step(workdir: Path, step: int, pid: int) -> None:
    """Return when the run has logged `step`, or has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and last_logged(workdir) < step:
        if Path(f"/proc/{pid}/stat").exists():
            time.sleep(0.002)
        else:
            return


def same_end(workdir: Path, whole: Path) -> None:
    assert manifest_to_json(resolve(workdir, "last").manifest) == manifest_to_json(
        resolve(whole, "last").manifest
    )
    assert logged(workdir) == logged(whole)
    assert (
        json.loads((workdir / "report.json").read_text())["eval"]
        == (json.loads((whole / "report.json").read_text())["eval"])
    )


@pytest.mark.slow
def test_sigkill_at_twenty_random_points_changes_nothing(server, whole, tmp_path):
    rng = random.Random(0)
    workdir = tmp_path / "killed"
    for _ in range(KILLS):
        reached = last_logged(workdir)
        pid = server.start(workdir)
        # Checkpoints come every three steps; a run resumes below what it had logged.
        wait_for_step(workdir, min(reached + rng.randint(1, 5), STEPS - 1), pid)
        time.sleep(rng.random() * 0.05)  # into the middle of a step or a checkpoint
        os.kill(pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
    server.start(workdir)
    assert server.wait() == 0, workdir.with_suffix(".log").read_text()
    same_end(workdir, whole)


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(server, whole, tmp_path):
    workdir = tmp_path / "stopped"
    pid = server.start(workdir)
    wait_for_step(workdir, 7, pid)
    os.kill(pid, signal.SIGTERM)
    asked = time.monotonic()
    assert server.wait() == Preempted.exit_code
    assert time.monotonic() - asked < 10
    saved = resolve(workdir, "last").step
    assert saved is not None
    assert saved >= 7
    server.start(workdir)
    assert server.wait() == 0
    same_end(workdir, whole)
