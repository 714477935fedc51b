"""Kills and requests to stop, on real processes: nothing is lost and nothing changes."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxclf.checkpoint.model_dir import resolve
from jaxclf.checkpoint.tree_store import manifest_to_json
from jaxclf.core.errors import Preempted
from tests.forks import Process

STEPS = 60
KILLS = 20

WORDS = ["--config", "configs/quickstart.py:smoke", f"--config.train.steps={STEPS}"]
WORDS += ["--config.train.save_steps=3", "--config.train.logging_steps=1"]
WORDS += ["--config.train.eval_steps=0", "--config.data.limit=24", "--config.train.keep=2"]
WORDS += ["--config.eval.max_new_tokens=8"]


Start = Callable[[Path], Process]


@pytest.fixture(scope="module")
def start(forks) -> Start:
    """Begins or resumes the training of a folder in a process of its own."""

    def start(workdir: Path) -> Process:
        # Started again so often, it compiles nothing twice.
        program = (
            "import jax; from jaxclf import train;"
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0);"
            f"train.main({[*WORDS, '--workdir', str(workdir)]!r})"
        )
        return forks.start(program, workdir.with_suffix(".log"))

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run = start(workdir)
    assert run.wait() == 0, run.log.read_text()
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


def wait_for_step(workdir: Path, step: int, run: Process) -> None:
    """Return when the run has logged `step`, or has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and last_logged(workdir) < step and run.poll() is None:
        time.sleep(0.01)


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
def test_sigkill_at_twenty_random_points_changes_nothing(start, whole, tmp_path):
    rng = random.Random(0)
    workdir = tmp_path / "killed"
    for _ in range(KILLS):
        reached = last_logged(workdir)
        run = start(workdir)
        # Checkpoints come every three steps; a run resumes below what it had logged.
        wait_for_step(workdir, min(reached + rng.randint(1, 5), STEPS - 1), run)
        time.sleep(rng.random() * 0.05)  # into the middle of a step or a checkpoint
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    run = start(workdir)
    assert run.wait() == 0, run.log.read_text()
    same_end(workdir, whole)


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(start, whole, tmp_path):
    workdir = tmp_path / "stopped"
    run = start(workdir)
    wait_for_step(workdir, 7, run)
    os.kill(run.pid, signal.SIGTERM)
    asked = time.monotonic()
    assert run.wait() == Preempted.exit_code
    assert time.monotonic() - asked < 10
    saved = resolve(workdir, "last").step
    assert saved is not None
    assert saved >= 7
    assert start(workdir).wait() == 0
    same_end(workdir, whole)
