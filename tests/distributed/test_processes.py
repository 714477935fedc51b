"""A run of several processes on this machine: the same numbers, one set of files, no hang."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jaxclf import train
from jaxclf.checkpoint.model_dir import resolve
from jaxclf.core.errors import InputError
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
    def start(
        workdir: Path,
        count: int,
        devices: int,
        *fields: str,
        before: Sequence[str] = ("",) * 4,
        own: Sequence[Sequence[str]] = ((),) * 4,
    ) -> list[Process]:
        """The processes of one run, each with its share of `devices` and a program before it."""
        words = ["--config", "configs/quickstart.py:smoke", "--workdir", str(workdir)]
        words += ["--config.train.batch_size=4", f"--config.train.steps={STEPS}"]
        words += ["--config.train.save_steps=4", "--config.data.limit=8"]
        words += ["--config.train.schedule=constant", *fields]  # so that a run may go on for longer
        if count > 1:
            words += ["--distributed", f"--heartbeat={HEARTBEAT}"]
        share = f"--xla_force_host_platform_device_count={devices // count}"
        address = f"localhost:{port()}"
        return [
            forks.start(
                f"{before[index]}\nfrom jaxclf import train; train.main({[*words, *own[index]]!r})",
                workdir.parent / f"{workdir.name}-{index}.log",
                XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {share}",
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


def said_by(workdir: Path) -> str:
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
    assert finish(start(workdir, 1, 4)) == [0], said_by(workdir)
    return workdir


@pytest.mark.slow
def test_four_processes_compute_what_one_does(start, alone, tmp_path):
    workdir = tmp_path / "run"
    assert finish(start(workdir, 4, 4)) == [0] * 4, said_by(workdir)
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
    assert finish([first, second]) == [75, 75], said_by(workdir)
    assert "resumed at step" in said_by(workdir)
    saved = resolve(workdir, "last").step
    assert f"stopped by SIGTERM; saved step {saved} of" in said_by(workdir)

    assert finish(start(workdir, 2, 4, f"--config.train.steps={saved + 2}")) == [0, 0]
    found = losses(workdir)
    assert sorted(found) == list(range(1, saved + 3))
    expected = losses(alone)
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-5)


FAILS = """
from jaxclf.runs import training
count = training._Run.count
def fails(self, *arguments):
    count(self, *arguments)
    if self.step == 6:
        raise {error}
training._Run.count = fails
"""


@pytest.mark.parametrize(
    ("who", "error", "code", "said"),
    [
        (0, "OSError(28, 'No space left on device')", 4, "No space left on device"),
        (1, "training.NonFiniteError('loss nan')", 5, "loss nan"),
        pytest.param(1, "KeyboardInterrupt", 130, "KeyboardInterrupt", marks=pytest.mark.slow),
        pytest.param(0, "ZeroDivisionError('ours')", 1, "ours", marks=pytest.mark.slow),
    ],
)
def test_what_ends_one_process_ends_all_with_its_code(start, tmp_path, who, error, code, said):
    workdir = tmp_path / "run"
    before = ["", ""]
    before[who] = FAILS.format(error=error)
    both = start(workdir, 2, 2, "--config.train.steps=10000", before=before)
    codes = {}
    wait_until(lambda: any(each.poll() is not None for each in both), 240)
    first = time.monotonic()
    codes = finish(both)
    assert time.monotonic() - first < HEARTBEAT
    assert codes == [code, code], said_by(workdir)
    other = (tmp_path / f"run-{1 - who}.log").read_text()
    assert f"error: process {who} of this run ended: " in other
    assert said in other
    assert "Traceback" not in other
    assert not (workdir / ".lock").exists() or who == 1


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["--config.train.save_steps=5"], "their config: process 0 and process 1 have"),
        pytest.param(
            ["DATA"], "their data: process 0 and process 1 have data", marks=pytest.mark.slow
        ),
    ],
)
def test_processes_that_are_not_of_one_run_end_at_once(start, tmp_path, own, said):
    workdir = tmp_path / "run"
    before = ["", ""]
    if own == ["DATA"]:
        own, before[1] = [], OTHER_DATA
    codes = finish(start(workdir, 2, 2, own=[[], own], before=before))
    assert codes == [2, 2], said_by(workdir)
    assert said_by(workdir).count(said) >= 2
    assert not (workdir / "checkpoints").exists()


OTHER_DATA = """
from jaxclf.runs import setup
load = setup.datasets.load
def other(*arguments):
    import dataclasses
    return dataclasses.replace(load(*arguments), fingerprint="other")
setup.datasets.load = other
"""


def test_a_process_that_waits_for_another_in_vain_ends(forks, tmp_path):
    program = "from jaxclf.distributed import processes\nprocesses.LONGEST_START = 1\n"
    alone = forks.start(
        f"{program}processes.join(10)",
        tmp_path / "log",
        JAX_COORDINATOR_ADDRESS=f"localhost:{port()}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID="0",
    )
    assert alone.wait(120) == 2
    assert "not all processes of this run came within 1 s" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("seconds", ["0", "-5", "1000000000000"])
def test_a_heartbeat_is_a_number_of_seconds(tmp_path, seconds):
    words = ["--config", "configs/quickstart.py:smoke", "--workdir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=f"--heartbeat {seconds}: expected a whole number"):
        train.main([*words, "--distributed", f"--heartbeat={seconds}"])
    assert not list(tmp_path.iterdir())
