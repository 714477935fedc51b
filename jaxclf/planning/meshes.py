"""Which mesh is the fastest of those that fit, by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator

import jax

from jaxclf.core.errors import InputError
from jaxclf.distributed import sharding
from jaxclf.planning import collectives
from jaxclf.planning.collectives import Collective, Crossing
from jaxclf.planning.estimate import Need, PlannedRun, Sizes


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
        if job.config.train.batch_size % _row_parts(sizes) == 0:
            yield sizes


def _row_parts(sizes: Sizes) -> int:
    return sizes["data"] * sizes["fsdp"]


def step_seconds(job: PlannedRun, sizes: Sizes, accumulate: int) -> float:
    """Seconds of a step: matmuls at half the peak, and what crosses the links and the network."""
    chip, count = job.topology.chip, job.topology.count
    dims, train = job.model.config, job.config.train
    state, _ = job.state
    width = job.width
    tokens = train.batch_size * job.length + accumulate * job.rows(accumulate).prefix
    passes = 4 if job.config.model.gradient_checkpointing else 3
    if job.config.tune != "full":
        passes -= 1
    attention = 2 * job.length * dims.hidden_size * job.depth
    compute = 2 * passes * tokens * (job.body + attention) / count / chip.flops / 0.5
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.trained))
    cut, tensor = sizes["fsdp"] * sizes["sequence"], sizes["tensor"]
    between = tokens / (sizes["data"] * cut) * dims.hidden_size * width
    layers = passes * job.depth

    def moved(kind: str, size: float, times: float, *axes: str) -> Crossing:
        """Of a collective over these axes that puts out `size` bytes."""
        groups = collectives.over(axes, sizes)
        found = Collective(kind, size, times if len(groups[0]) > 1 else 0, True, groups)
        return collectives.crossing(found, job.topology.per_node)

    # Kernels are gathered in each pass, their gradients summed once; tokens are gathered before
    # attention and feed-forward and summed after them; keys and values go to the row's other parts.
    parts = (
        moved("all-gather", job.body * width / tensor, 3 * accumulate, "fsdp", "sequence"),
        moved("reduce-scatter", trained * width / tensor / cut, accumulate, "fsdp", "sequence"),
        moved("all-reduce", trained * width / tensor / cut, accumulate, "data"),
        moved("all-gather", between, 2 * layers, "tensor"),
        moved("reduce-scatter", between / tensor, 2 * layers, "tensor"),
        moved("all-gather", between, 2 * layers, "sequence"),
    )
    inside, network = (sum(column) for column in zip(*parts, strict=True))
    return compute + inside / chip.links + (network / chip.network if network else 0.0)


def _factors(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (count,)
        return
    for first in _divisors(count):
        for rest in _factors(count // first, parts - 1):
            yield (first, *rest)


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]
