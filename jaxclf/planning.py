"""What a config needs on a slice that is not here: compiled ahead of time, or estimated.

For TPUs libtpu compiles the real train step and the real decoding for the named slice, on any
machine. For GPUs the program is partitioned on as many imaginary devices, and memory is arithmetic.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from jaxclf import decode, hlo, losses, optim, sharding, storage, tuning
from jaxclf.chips import TPUS, Topology
from jaxclf.classify import create_model
from jaxclf.data.pack import ANSWER, Batch, PromptBatch, Targets
from jaxclf.errors import InputError
from jaxclf.losses import Objective, Term
from jaxclf.models import zoo
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.heads import HeadConfig
from jaxclf.models.zoo import Model
from jaxclf.steps import init_state, make_train_step

Sizes = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program on one chip: bytes unless said otherwise.

    `arguments` and `temporary` are reserved while it runs; `peak` is the most of both that is in
    use at once. `flops` are of one chip, with what rematerialisation computes again.
    """

    arguments: int
    temporary: int
    peak: int
    flops: float
    traffic: hlo.Traffic
    compile_seconds: float
    text: str = dataclasses.field(repr=False)

    @property
    def reserved(self) -> int:
        return self.arguments + self.temporary


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one chip by arithmetic: what is kept, and what a step adds to it."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.activations


class Job:
    """A config's train step and decoding, for a mesh that need not be here.

    `label_tokens`: places with a label in a row, and tokens of an answer. Nothing is read: data and
    checkpoint may be missing.
    """

    def __init__(self, config: ConfigDict, topology: Topology, label_tokens: int = 32):
        self.config, self.topology, self.label_tokens = config, topology, label_tokens
        dimensions = zoo.find(config.model.name)
        if isinstance(dimensions, EncoderConfig):
            heads = (HeadConfig("label", "sequence", 64),)
            pooler = dimensions.family == "bert"
            dimensions = dataclasses.replace(dimensions, heads=heads, pooler=pooler)
        fields = config.copy_and_resolve_references()
        with fields.unlocked():
            if fields.model.dtype == "auto":
                fields.model.dtype = "bfloat16"
            if fields.model.attention == "auto":
                fields.model.attention = "splash" if topology.is_tpu else "plain"
        self.model: Model = create_model(fields, dimensions)
        self.tuning = tuning.choose(config, self.model.abstract)
        self.optimizer = optim.optimizer(config.train, config.lora.b_rate)
        plain = zoo.create(dimensions).abstract["layers"]
        if self.model.reads_apart:  # a decoder of its own has the label's few tokens
            plain = plain["encoder"]
        self.depth = jax.tree.leaves(plain)[0].shape[0]
        self.body = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plain))
        self.width = jnp.dtype(self.model.dtype).itemsize
        self.length = config.train.max_length
        if config.train.pack:
            self.length = config.train.row_length or self.length

    @functools.cached_property
    def state(self) -> tuple[Any, Any]:
        """Shapes of (the train state, what is frozen)."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        trained, frozen = jax.eval_shape(self.tuning.start, self.model.abstract, key)
        return jax.eval_shape(lambda t, k: init_state(t, self.optimizer, k), trained, key), frozen

    # -- by arithmetic

    def need(self, sizes: Sizes, accumulate: int) -> Need:
        """Estimated bytes of one chip; raises InputError where the mesh cannot divide a leaf."""
        state, frozen = self.state
        trained, kernels = (_bytes(state.trained, sizes, only) for only in (False, True))
        stored, width = jnp.dtype(self.config.model.param_dtype).itemsize, self.width
        # A kernel stored in more bits has a copy in those of matmuls, and its gradient is in these.
        copies = kernels * width // stored if width < stored else 0
        gradients = trained - kernels + (2 * copies if copies else kernels)
        if accumulate > 1:
            gradients += trained
        rows = self.config.train.batch_size / accumulate / (sizes["data"] * sizes["fsdp"])
        tokens = rows * self.length / sizes["sequence"]
        depth, body = self.depth, self.body
        inner = self.model.config.intermediate_size / sizes["tensor"]
        hidden = self.model.config.hidden_size
        # Of one layer: two gathered inputs, and what feed-forward and its gradient hold.
        within = tokens * (2 * hidden + 5 * inner) * width
        if self.model.reads_apart:  # whose attention no kernel computes: scores and their weights
            heads = self.model.config.num_heads / sizes["tensor"]
            within += 3 * tokens * self.length * heads * 4
        kept = depth * tokens / sizes["tensor"] * hidden * width
        activations = within + kept if self.config.model.remat else depth * within
        activations += 3 * body / depth * width / sizes["tensor"]
        return Need(
            trained + _bytes(frozen, sizes),
            _bytes(state.opt_state, sizes),
            gradients,
            int(activations),
        )

    # -- by the compiler

    def mesh(self, sizes: Sizes) -> jax.sharding.Mesh:
        """The mesh over the slice's chips: of a TPU by libtpu, else of as many imaginary CPUs."""
        return sharding.make_mesh(sizes, _devices(self.topology.name, self.topology.count))

    def train_step(self, sizes: Sizes, accumulate: int) -> Program:
        """The true train step. Raises InputError where rows or leaves cannot be divided.

        `MemoryError` where the compiler finds no room.
        """
        train = self.config.train
        rows = train.batch_size // accumulate
        if train.batch_size % accumulate or rows % (sizes["data"] * sizes["fsdp"]):
            raise InputError(
                f"train.batch_size is {train.batch_size:,}; its {accumulate:,} parts cannot be "
                f"divided over data={sizes['data']} times fsdp={sizes['fsdp']}"
            )
        step = make_train_step(
            self.model,
            self.tuning,
            self.optimizer,
            optim.schedule(train),
            self.objective(),
            may_skip=train.max_skipped > 0,
            prng=train.prng,
        )
        with jax.set_mesh(self.mesh(sizes)):
            state, frozen = (sharding.abstract(tree) for tree in self.state)
            results = sharding.shardings(state), sharding.whole()
            compiled = jax.jit(step, donate_argnums=0, out_shardings=results)
            return self.compile(compiled, state, frozen, self.batch(accumulate, rows))

    def decoding(self, sizes: Sizes) -> Program | None:
        """Greedy decoding of one batch of the longest prompts; None for an encoder."""
        if self.model.is_encoder:
            return None
        greedy = decode.make_greedy(self.model, self.label_tokens, 0)
        with jax.set_mesh(self.mesh(sizes)):
            state, frozen = self.state
            trained, frozen = sharding.abstract(state.trained), sharding.abstract(frozen)
            rows = sharding.divisible(self.config.eval.batch_size)
            shape = (rows, self.length - self.label_tokens)
            prompt = PromptBatch(*(_of_rows(shape, jnp.int32, 0) for _ in range(3)))

            def function(trained, frozen, prompt):
                return greedy(self.tuning.join(trained, frozen), prompt)

            return self.compile(jax.jit(function), trained, frozen, prompt)

    def objective(self) -> Objective:
        if self.model.is_encoder:
            return Objective(losses.head_scores, {"label": Term("class")})
        return losses.GENERATION

    def batch(self, accumulate: int, rows: int) -> Batch:
        """The shapes of a step's batch."""
        count = 1 if self.model.is_encoder else self.label_tokens

        def array(*shape, dtype: Any = jnp.int32):
            return _of_rows((accumulate, rows, *shape), dtype, 1)

        name = "label" if self.model.is_encoder else ANSWER
        targets = Targets(array(count), array(count), array(count, dtype=jnp.bool_))
        types = array(self.length) if self.model.is_encoder else None
        tokens, segments, positions = (array(self.length) for _ in range(3))
        return Batch(tokens, segments, positions, types, {name: targets})

    def compile(self, function: Any, *arguments: Any) -> Program:
        """Compile for the mesh in use; `MemoryError` where the compiler finds no room."""
        traced = function.trace(*arguments)
        flops = _flops(traced.jaxpr.jaxpr, self.label_tokens) / self.topology.count
        start = time.monotonic()
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise MemoryError(str(error).splitlines()[0]) from error
            raise
        text = compiled.as_text()
        memory = compiled.memory_analysis()
        own = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Program(
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes + max(0, own),
            memory.peak_memory_in_bytes,
            flops,
            hlo.traffic(text),
            time.monotonic() - start,
            text,
        )


@functools.lru_cache(maxsize=8)
def _devices(name: str, count: int) -> Any:
    kind, _, shape = name.partition(":")
    if kind not in TPUS:
        if len(devices := jax.devices("cpu")) < count:
            raise InputError(
                f"--topology {name}: {len(devices):,} imaginary devices; set jax_num_cpu_devices "
                f"to {count:,} before jax starts"
            )
        return devices[:count]
    try:
        return topologies.get_topology_desc(f"{kind}:{shape}", "tpu").devices
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"--topology {name}: libtpu cannot describe it ({str(error).splitlines()[0]}). It "
            "comes with pip install -e '.[plan]'"
        ) from error


def _of_rows(shape: tuple[int, ...], dtype: Any, axis: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.of_rows(shape, axis))


def _bytes(tree: Any, sizes: Sizes, kernels: bool = False) -> int:
    """Of one chip's parts of all leaves, or of the kernels alone."""
    total = 0
    for path, leaf in storage.flatten(tree).items():
        if kernels and not path.endswith("/kernel"):
            continue
        cut = sharding.spec(path, leaf.shape, sizes)
        parts = math.prod(sizes[axis] for axes in cut for axis in np.atleast_1d(axes or ()))
        width = 4 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(leaf.shape) * width // parts
    return total


def _flops(jaxpr: Any, turns: int) -> float:
    """Of all matrix products that a traced program makes, 2 for each multiply and add.

    `turns`: of a loop whose end is not known beforehand. A Pallas kernel counts with its whole
    grid, what it may skip included.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            ((left, _), _) = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * size * math.prod(shape[axis] for axis in left)
            continue
        times: float = 1
        if name == "scan":
            times = params["length"]
        elif name == "while":
            times = turns
        elif name == "pallas_call":
            times = math.prod(size for size in params["grid_mapping"].grid)
        elif name == "shard_map":
            times = params["mesh"].size
        for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_program):
            if _is_program(inner):
                total += times * _flops(getattr(inner, "jaxpr", inner), turns)
    return total


def _is_program(leaf: Any) -> bool:
    return hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")


# Choosing -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mesh and micro-batches with what a step needs by arithmetic, and its estimated seconds."""

    sizes: Sizes
    accumulate: int
    need: Need
    seconds: float


def choices(job: Job) -> list[Choice]:
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
            if need.total < job.topology.chip.memory / 2:
                break  # smaller micro-batches would only be slower
    return sorted(found, key=lambda choice: choice.seconds)


def leanest(job: Job) -> Choice | None:
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


def fitting(job: Job, share: float = 0.9) -> list[Choice]:
    """The choices whose estimate leaves room in the chip's memory."""
    limit = job.topology.chip.memory * share
    return [choice for choice in choices(job) if choice.need.total <= limit]


def _meshes(job: Job) -> Iterator[Sizes]:
    """All meshes of the slice that divide the rows of a step, and tokens only of long rows."""
    for factors in _factors(job.topology.count, len(sharding.AXES)):
        sizes: Sizes = dict(zip(sharding.AXES, factors, strict=True))
        if sizes["sequence"] > 1 and job.length < 4096:
            continue
        if job.config.train.batch_size % _row_parts(sizes) == 0:
            yield sizes


def _row_parts(sizes: Sizes) -> int:
    return sizes["data"] * sizes["fsdp"]


def step_seconds(job: Job, sizes: Sizes, accumulate: int) -> float:
    """Seconds of a step: matmuls at half the peak, and what crosses the links."""
    chip, count = job.topology.chip, job.topology.count
    dims, train = job.model.config, job.config.train
    state, _ = job.state
    width = job.width
    tokens = train.batch_size * job.length
    passes = 4 if job.config.model.remat else 3
    if job.config.tune != "full":
        passes -= 1
    attention = 2 * job.length * dims.hidden_size * job.depth
    compute = 2 * passes * tokens * (job.body + attention) / count / chip.flops / 0.5
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.trained))
    cut = sizes["fsdp"] * sizes["sequence"]
    moved = 0.0
    if cut > 1:  # kernels are gathered in each pass, their gradients summed once
        moved += 3 * accumulate * job.body * width / sizes["tensor"] * (cut - 1) / cut
        moved += accumulate * trained * width / sizes["tensor"]
    if sizes["data"] > 1:
        moved += 2 * accumulate * trained * width / (sizes["tensor"] * cut)
    between = tokens / (sizes["data"] * sizes["fsdp"] * sizes["sequence"]) * dims.hidden_size
    if sizes["tensor"] > 1:
        moved += 4 * passes * job.depth * between * width * (sizes["tensor"] - 1) / sizes["tensor"]
    if sizes["sequence"] > 1:
        moved += 2 * passes * job.depth * between * width
    return compute + moved / chip.links


def _factors(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (count,)
        return
    for first in _divisors(count):
        for rest in _factors(count // first, parts - 1):
            yield (first, *rest)


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]
