"""A run of several processes: joining them, who writes, and what all agree on.

Every process runs the same program on the same data; arrays of a mesh are cut over the devices of
all. Only the first writes what people read. With one process all of this does nothing.
"""

import atexit
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxclf.core import locks
from jaxclf.core.errors import InputError, exit_at_once

HEARTBEAT_SECONDS = 60
LONGEST_START = 300  # seconds from the first process to the last
_DAY = 86_400  # seconds


def join(heartbeat: int = HEARTBEAT_SECONDS) -> None:
    """Join the other processes of this run; must come before any other use of JAX.

    Cloud TPU slices, GKE's JobSets, Slurm and Open MPI tell by themselves who they are. Elsewhere
    the environment does: JAX_COORDINATOR_ADDRESS (HOST:PORT of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process that has not been heard of for `heartbeat`
    seconds ends all others. Raises InputError where nothing tells, or some do not come.
    """
    check_heartbeat(heartbeat)
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if wrong := [name for name, value in given.items() if not value.isdecimal()]:
        raise InputError(f"{wrong[0]}={given[wrong[0]]}: expected a whole number")
    count, index = (int(given[name]) if name in given else None for name in names)
    try:
        with _limited():
            jax.distributed.initialize(
                num_processes=count,
                process_id=index,
                # Given by hand there is nothing to detect, and all local devices are its own.
                cluster_detection_method="deactivate" if len(given) == 2 else None,
                initialization_timeout=LONGEST_START + 60,
                heartbeat_timeout_seconds=heartbeat,
            )
    except (RuntimeError, ValueError) as error:
        leave_at_exit(InputError.exit_code)
        raise InputError(
            f"--distributed: {error}. Outside Cloud TPU, GKE, Slurm and Open MPI, set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """End the process where the others do not come; JAX itself would abort, without a word."""

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            print(
                f"error: --distributed: not all processes of this run came within {LONGEST_START:,}"
                " s. Start as many as JAX_NUM_PROCESSES, or the cluster, says, all with the same "
                "JAX_COORDINATOR_ADDRESS",
                file=sys.__stderr__,
                flush=True,
            )
        os._exit(InputError.exit_code)

    timer = threading.Timer(LONGEST_START, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_heartbeat(seconds: int) -> None:
    """Raise InputError where a process cannot be found dead after so many seconds."""
    if not 1 <= seconds <= _DAY:
        raise InputError(
            f"--heartbeat {seconds}: expected a whole number of seconds from 1 to {_DAY:,}"
        )


def leave_at_exit(code: int) -> None:
    """Let the process exit with this code, without JAX's farewell: it would wait for the others."""
    atexit.register(exit_at_once, code)


def is_first() -> bool:
    """Whether this process writes the files that people read."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_then_others(name: str) -> Iterator[None]:
    """The first process runs the block alone, then the others do, and find what it wrote."""
    if jax.process_count() == 1:
        yield
        return
    if not is_first():
        multihost_utils.sync_global_devices(f"{name}: first")
    yield
    if is_first():
        multihost_utils.sync_global_devices(f"{name}: first")
    wait(name)


def owned(folder: Path) -> AbstractContextManager[None]:
    """Within the block no other run writes into this folder: the first process holds it for all."""
    return locks.folder(folder) if is_first() else contextlib.nullcontext()


@contextlib.contextmanager
def own_folder(shared: Path) -> Iterator[Path]:
    """Where this process logs: the run's folder, or one that is thrown away, without a word."""
    if is_first():
        yield shared
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield Path(folder)


def wait(name: str) -> None:
    """Return when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def together(values: np.ndarray) -> np.ndarray:
    """The element-wise maximum over all processes of arrays of one shape."""
    if jax.process_count() == 1:
        return values
    return np.max(multihost_utils.process_allgather(values), axis=0)


def should_stop(step: int, requested: bool) -> bool:
    """Whether to save and stop after this step: the same answer in all processes.

    `requested`: whether this process was told to, where it is alone. To be asked at every step.
    """
    if jax.process_count() == 1:
        return requested
    return multihost_utils.reached_preemption_sync_point(step)
