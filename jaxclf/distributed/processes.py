"""A run of several processes: joining them, who writes, and what all agree on.

Every process runs the same program on the same data; arrays of a mesh are cut over the devices of
all. Only the first writes what people read. With one process all of this does nothing.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxclf.core.errors import InputError

HEARTBEAT_SECONDS = 60


def join(heartbeat: int = HEARTBEAT_SECONDS) -> None:
    """Join the other processes of this run; must come before any other use of JAX.

    Cloud TPU slices, GKE's JobSets, Slurm and Open MPI tell by themselves who they are. Elsewhere
    the environment does: JAX_COORDINATOR_ADDRESS (HOST:PORT of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process that has not been heard of for `heartbeat`
    seconds ends all others. Raises InputError where nothing tells, or some do not come.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if wrong := [name for name, value in given.items() if not value.isdecimal()]:
        raise InputError(f"{wrong[0]}={given[wrong[0]]}: expected a whole number")
    count, index = (int(given[name]) if name in given else None for name in names)
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            # Given by hand there is nothing to detect, and all local devices are this process's.
            cluster_detection_method="deactivate" if len(given) == 2 else None,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--distributed: {error}. Outside Cloud TPU, GKE, Slurm and Open MPI, set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


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


@contextlib.contextmanager
def own_folder(shared: Path) -> Iterator[Path]:
    """Where this process logs: the run's folder, or one that is thrown away, without a word."""
    if is_first():
        yield shared
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
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
