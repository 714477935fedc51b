"""Which mesh is the fastest of those that fit, by arithmetic."""

import dataclasses
from collections.abc import Iterator

from jaxclf.core.errors import InputError
from jaxclf.distributed import sharding
from jaxclf.planning.estimate import Need, PlannedRun, Sizes
from jaxclf.planning.step_time import step_seconds


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mesh and micro-batches with what a step needs by arithmetic, and its estimated seconds."""

    sizes: Sizes
    accumulate: int
    need: Need
    seconds: float


def choices(job: PlannedRun) -> list[Choice]:
    """All meshes and micro-batches of the slice that divide rows and leaves, the fastest first.

    Tokens are cut (`sequence`) only where a row has 4,096 or more.
    """
    found = []
    for sizes in _meshes(job):
        for accumulate in _divisors(job.config.train.batch_size // _row_parts(sizes)):
            try:
                need = job.need(sizes, accumulate)
            except InputError:
                break
            found.append(Choice(sizes, accumulate, need, step_seconds(job, sizes, accumulate)))
            if need.total < job.topology.chip.usable / 2:
                break  # smaller micro-batches would only be slower
    return sorted(found, key=lambda choice: choice.seconds)


def leanest(job: PlannedRun) -> Choice | None:
    """The choice that needs least by arithmetic, with the most micro-batches; None if none divides.

    Not among meshes that would keep copies of key heads.
    """
    found = []
    heads = getattr(job.model.config, "num_kv_heads", job.model.config.num_heads)
    for sizes in _meshes(job):
        if heads % sizes["tensor"]:
            continue
        accumulate = job.config.train.batch_size // _row_parts(sizes)
        try:
            need = job.need(sizes, accumulate)
        except InputError:
            continue
        found.append(Choice(sizes, accumulate, need, step_seconds(job, sizes, accumulate)))
    return min(found, key=lambda choice: (choice.need.total, choice.seconds), default=None)


def fitting(job: PlannedRun, share: float = 0.9) -> list[Choice]:
    """The choices whose estimate leaves room in the chip's memory."""
    limit = job.topology.chip.usable * share
    return [choice for choice in choices(job) if choice.need.total <= limit]


def _meshes(job: PlannedRun) -> Iterator[Sizes]:
    """All meshes of the slice that divide the rows of a step, and tokens only of long rows."""
    for factors in _factors(job.topology.count, len(sharding.AXES)):
        sizes: Sizes = dict(zip(sharding.AXES, factors, strict=True))
        if sizes["sequence"] > 1 and job.length < 4096:
            continue
        if sizes["data"] % job.topology.slices:
            continue
        if job.config.train.batch_size % _row_parts(sizes) == 0:
            yield sizes


def _row_parts(sizes: Sizes) -> int:
    return sizes["data"] * sizes["fsdp"]


def _factors(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (count,)
        return
    for first in _divisors(count):
        for rest in _factors(count // first, parts - 1):
            yield (first, *rest)


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]
