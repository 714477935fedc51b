"""No worker outlives its parent, not even one that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxclf.core import locks, workers

PARENT = """
import multiprocessing, sys
from tests.core.test_workers import work
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=tuple(sys.argv[1:]))
    process.start()
    process.join()
"""


def work(folder: str, platform: str) -> None:
    """A worker's life: it holds the folder and would go on for ever."""
    sys.platform = platform
    workers.end_with_parent()
    with locks.folder(folder):
        (Path(folder) / "pid.partial").write_text(str(os.getpid()))
        (Path(folder) / "pid.partial").rename(Path(folder) / "pid")
        time.sleep(600)


@pytest.mark.parametrize("platform", ["linux", "another"])
def test_a_worker_ends_when_its_parent_is_killed(tmp_path, platform):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    folder, root = tmp_path / "run", Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, str(script), str(folder), platform]
    with subprocess.Popen(command, env=environment) as parent:
        while not (folder / "pid").exists():
            assert parent.poll() is None
            time.sleep(0.01)
        worker = int((folder / "pid").read_text())
        os.kill(worker, 0)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while _runs(worker):
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.01)
    with locks.folder(folder):
        pass


def _runs(pid: int) -> bool:
    """Whether a thread of it is left: files are closed, and locks let go, with the last one."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # one ended meanwhile
        return True
    return any(stat.rpartition(")")[2].split()[0] not in "ZX" for stat in stats)
