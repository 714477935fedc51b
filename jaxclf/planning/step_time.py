"""How long a step takes, predicted from its work and from published steps of the same chips.

    seconds = products / (peak · share) + attention / (peak · share) + memory / bandwidth + waited

Shares of the peaks, and how much of what crosses the links is waited for, are fitted to steps that
others published: `python benchmarks/step_times.py`, which also says how far off it is. What is not
modelled: input that comes late, stragglers, a network that others use.
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from jaxclf.models import scan
from jaxclf.models.encoder import EncoderConfig
from jaxclf.planning import collectives
from jaxclf.planning.collectives import Collective, Crossing
from jaxclf.planning.estimate import PlannedRun, Sizes
from jaxclf.planning.hardware import CHIPS, Chip, Topology

# Element-wise operations of a layer read and write so many times its hidden state and the inner
# state of its feed-forward, forward: norms, residuals, rotary angles; the gate. Backward it is
# about twice that.
_HIDDEN, _INNER = 10, 3
_BACKWARD = 2.5  # of attention's kernel, which makes 5 products in place of 2


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step: FLOP, and bytes.

    products: matrix products, with what is computed again. attention: its kernel, of the scores
    that a mask leaves. memory: element-wise, and of the optimizer. beside: kernels and gradients on
    their way while something else is computed. between: tokens, which what follows waits for.
    again: what of products and attention was computed before. model: FLOP of the model alone on all
    chips, which nothing computes twice. tokens: of all rows, padding counted.
    """

    products: float
    attention: float
    again: float
    memory: float
    beside: Crossing
    between: Crossing
    model: float
    tokens: float


class Shares(NamedTuple):
    """What of the published peaks a step reaches.

    `waited`: seconds for each that the links would take at their peak for what could cross beside
    the computation; more than 1 where they reach less than their peak and nothing hides it.
    """

    products: float
    attention: float
    memory: float
    waited: float


# Fitted by benchmarks/step_times.py; two steps of v5 are known, which tell what is waited for.
_V6E = Shares(products=0.834, attention=0.231, memory=1.0, waited=1.51)
_V5 = _V6E._replace(waited=0.186)
_GPU = Shares(products=0.483, attention=0.4, memory=1.0, waited=0.289)


def work(job: PlannedRun, sizes: Sizes, accumulate: int, again: float | None = None) -> Work:
    """Of one chip of the mesh; `again`: the share of a layer's products that is computed twice."""
    dims, train, config = job.model.config, job.config.train, job.config.model
    held = job.rows(accumulate)
    tokens = train.batch_size * job.length + accumulate * held.prefix
    if again is None:
        again = float(config.gradient_checkpointing)
        if again and scan.group_size(job.depth, config.checkpoint_layers) > 1:
            again = 2.0
    backward = 2 if job.config.tune == "full" else 1
    count = job.topology.count
    forward = 2.0 * tokens * job.computed
    read = 0.0  # by the vocabulary's matrix product
    if not job.model.has_heads:
        read = 2.0 * train.batch_size * held.labels * dims.vocab_size * dims.hidden_size
    within = dims.num_heads * getattr(dims, "head_dim", dims.hidden_size // dims.num_heads)
    scores = (4.0 if isinstance(dims, EncoderConfig) else 2.0) * tokens * job.length * within
    scores *= job.depth
    once = 1.0 if again else 0.0
    products = forward * (1 + backward + again) + read * (1 + backward + once)
    attention = scores * (1 + _BACKWARD + once)
    inner = dims.intermediate_size
    touched = tokens * job.depth * (_HIDDEN * dims.hidden_size + _INNER * inner)
    state = job.need(sizes, accumulate)
    memory = touched * (1 + 2 + again) * job.width / count
    memory += 2 * (state.parameters + state.optimizer) + state.gradients
    beside, between = _crossing(job, sizes, accumulate, tokens, 2 + min(1, math.ceil(again)))
    model = (forward + read) * (1 + backward) + scores * (1 + backward)
    twice = forward * again + (read + scores) * once
    return Work(
        products / count, attention / count, twice / count, memory, beside, between, model, tokens
    )


def shares(kind: str) -> Shares:
    """What steps of chips of that kind reach, of those that are known; see `CHIPS`."""
    if not CHIPS[kind].dimensions:
        return _GPU
    return _V6E if kind == "v6e" else _V5


def seconds(work: Work, topology: Topology, given: Shares | None = None) -> float:
    """Predicted seconds of a step."""
    chip, found = topology.chip, given or shares(topology.kind)
    return (
        work.products / chip.flops / found.products
        + work.attention / chip.flops / found.attention
        + work.memory / chip.bandwidth / found.memory
        + link_seconds(work.beside, chip) * found.waited
        + link_seconds(work.between, chip)
    )


def step_seconds(job: PlannedRun, sizes: Sizes, accumulate: int) -> float:
    """Predicted seconds of a step of the job on a mesh."""
    return seconds(work(job, sizes, accumulate), job.topology)


def share_of_peak(work: Work, seconds: float, topology: Topology) -> float:
    """Model FLOP/s over the published peak (MFU)."""
    return work.model / seconds / topology.count / topology.chip.flops


def link_seconds(found: Crossing, chip: Chip) -> float:
    """Seconds that so many bytes take to cross at the published peaks."""
    return found.inside / chip.links + (found.network / chip.network if found.network else 0.0)


def _crossing(
    job: PlannedRun, sizes: Sizes, accumulate: int, tokens: float, passes: int
) -> tuple[Crossing, Crossing]:
    """What crosses beside the computation, and what it waits for."""
    state, _ = job.state
    width = job.width
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.trained))
    cut, tensor = sizes["fsdp"] * sizes["sequence"], sizes["tensor"]
    hidden = tokens / (sizes["data"] * cut) * job.model.config.hidden_size * width

    def moved(kind: str, size: float, times: float, *axes: str) -> Crossing:
        """Of a collective over these axes that puts out `size` bytes."""
        groups = collectives.over(axes, sizes)
        found = Collective(kind, size, times if len(groups[0]) > 1 else 0, True, groups)
        return collectives.crossing(found, job.topology.per_node)

    # Kernels are gathered in each pass, their gradients summed once; tokens are gathered before
    # attention and feed-forward and summed after them; keys and values go to the row's other parts.
    beside = (
        moved("all-gather", job.body * width / tensor, passes * accumulate, "fsdp", "sequence"),
        moved("reduce-scatter", trained * width / tensor / cut, accumulate, "fsdp", "sequence"),
        moved("all-reduce", trained * width / tensor / cut, accumulate, "data"),
    )
    times = 2 * (1 + passes) * job.depth
    between = (
        moved("all-gather", hidden, times, "tensor"),
        moved("reduce-scatter", hidden / tensor, times, "tensor"),
        moved("all-gather", hidden, times, "sequence"),
    )
    return sum(beside, Crossing()), sum(between, Crossing())
