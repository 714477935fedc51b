"""A run of several processes on this machine: the same numbers, one set of files, no hang."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxclf.checkpoint.model_dir import resolve
from tests.forks import Process

HEARTBEAT = 10
STEPS = 10


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


Start = Callable[..., list[Process]]


@pytest.fixture(scope="module")
def start(forks) -> Start:
    def start(workdir: Path, count: int, devices: int, *fields: str) -> list[Process]:
        """The processes of one run, each with its share of `devices`."""
        words = ["--config", "configs/quickstart.py:smoke", "--workdir", str(workdir)]
        words += ["--config.train.batch_size=4", f"--config.train.steps={STEPS}"]
        words += ["--config.train.save_steps=4", "--config.data.limit=8"]
        words += ["--config.train.schedule=constant", *fields]  # so that a run may go on for longer
        if count > 1:
            words += ["--distributed", f"--heartbeat={HEARTBEAT}"]
        own = f"--xla_force_host_platform_device_count={devices // count}"
        address = f"localhost:{port()}"
        return [
            forks.start(
                f"from jaxclf import train; train.main({words!r})",
                workdir.parent / f"{workdir.name}-{index}.log",
                XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {own}",
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(index),
            )
            for index in range(count)
        ]

    return start


def finish(processes: list[Process], seconds: float = 240) -> list[int]:
    """Their exit codes; what still runs after so long is killed."""
    end = time.monotonic() + seconds
    return [each.wait(end - time.monotonic()) for each in processes]


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "metrics.jsonl").read_text().split("\n")
    rows = map(json.loads, lines[:-1])  # the last may be half of one
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def said(workdir: Path) -> str:
    return "\n".join(path.read_text() for path in workdir.parent.glob(f"{workdir.name}-*.log"))


def agree(workdir: Path, other: Path) -> None:
    """The same losses, and the same scores of the same answers."""
    assert losses(workdir) == pytest.approx(losses(other), rel=1e-5)
    reports = [json.loads((each / "report.json").read_text())["eval"] for each in (workdir, other)]
    assert reports[0] == reports[1]


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    """The run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert finish(start(workdir, 1, 4)) == [0], said(workdir)
    return workdir


@pytest.mark.slow
def test_four_processes_compute_what_one_does(start, alone, tmp_path):
    workdir = tmp_path / "run"
    assert finish(start(workdir, 4, 4)) == [0] * 4, said(workdir)
    agree(workdir, alone)


@pytest.mark.slow
def test_two_processes_are_killed_then_stopped_and_go_on_as_one_does(start, alone, tmp_path):
    workdir = tmp_path / "run"
    endless = "--config.train.steps=10000"
    first, second = start(workdir, 2, 4, endless)
    wait_until((workdir / "checkpoints/4").is_dir)
    os.kill(second.pid, signal.SIGKILL)
    killed = time.monotonic()
    codes = finish([first, second], HEARTBEAT + 10)
    assert time.monotonic() - killed < HEARTBEAT + 10
    assert codes[0] != 0
    last = max(losses(workdir))

    first, second = start(workdir, 2, 4, endless, "--config.train.save_steps=10000")
    wait_until(lambda: max(losses(workdir)) > last + 1)
    os.kill(second.pid, signal.SIGTERM)
    assert finish([first, second]) == [75, 75], said(workdir)
    assert "resumed at step" in said(workdir)
    saved = resolve(workdir, "last").step
    assert f"stopped by SIGTERM; saved step {saved} of" in said(workdir)

    assert finish(start(workdir, 2, 4, f"--config.train.steps={saved + 2}")) == [0, 0]
    found = losses(workdir)
    assert sorted(found) == list(range(1, saved + 3))
    expected = losses(alone)
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-5)
