"""The programs of a run, compiled for devices that are not here.

For TPUs libtpu compiles them for the named slice, for GPUs XLA:GPU, on any machine. Where the
compiler for GPUs is not installed, they are partitioned on as many imaginary CPUs: what they
exchange is then about right, their memory is not.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxclf.adapters import lora
from jaxclf.adapters.tuning import Adapted
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.classifiers.heads import HeadClassifier
from jaxclf.core.errors import InputError
from jaxclf.data import batching
from jaxclf.data.batching import Batch, PromptBatch
from jaxclf.decoding import decode, label_choice, label_decoder
from jaxclf.decoding.answer_layout import Field
from jaxclf.decoding.label_decoder import Decoding, LabelDecoder
from jaxclf.distributed import sharding
from jaxclf.ensemble import features, fitting
from jaxclf.ensemble.attens import Combiner, Pooling
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.registry import Model
from jaxclf.planning import gpus, hlo
from jaxclf.planning.estimate import PlannedRun, Sizes, of_rows
from jaxclf.planning.hardware import Topology
from jaxclf.planning.workload import Workload
from jaxclf.training import optim
from jaxclf.training.losses import Term
from jaxclf.training.train_step import make_train_step

_SCORED = 8  # inner nodes of labels that are read at once where a bound leaves others unread


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


def of(job: PlannedRun, sizes: Sizes, accumulate: int) -> dict[str, Callable[[], Program]]:
    """Name → what compiles it: all that a run of the config does on its devices.

    Each raises InputError where rows or leaves cannot be divided, `MemoryError` where the compiler
    finds no room.
    """
    found = {"train_step": lambda: train_step(job, sizes, accumulate)}
    if job.config.attens.modules:
        found["features"] = lambda: module_features(job, sizes)
        found["combiner"] = lambda: combiner(job, sizes)
    elif job.model.has_heads:
        if job.workload is not None:
            found["prediction"] = lambda: prediction(job, sizes)
    elif job.workload is not None and Decoding.of(job.config).mode == "score":
        found["reading"] = lambda: scoring(job, sizes)[0]
        found["scoring"] = lambda: scoring(job, sizes)[1]
    else:
        found["decoding"] = lambda: decoding(job, sizes)
    return found


def train_step(job: PlannedRun, sizes: Sizes, accumulate: int) -> Program:
    """The true train step: dropout of the model and its adapters on."""
    train, parts = job.config.train, sizes["data"] * sizes["fsdp"]
    if train.batch_size % (accumulate * parts):
        raise InputError(
            f"train.batch_size is {train.batch_size:,}; its {accumulate:,} parts cannot be "
            f"divided over data={sizes['data']} times fsdp={sizes['fsdp']}"
        )
    step = make_train_step(
        job.model,
        job.tuning,
        job.optimizer,
        optim.schedule(train),
        job.objective(),
        may_skip=train.max_skipped > 0,
        prng=train.prng,
        average_decay=train.average_decay,
    )
    with jax.set_mesh(mesh(job.topology, sizes)):
        state, frozen = (sharding.abstract(tree) for tree in job.state)
        results = sharding.shardings(state), sharding.whole()
        jitted = jax.jit(step, donate_argnums=0, out_shardings=results)
        return compiled(job, jitted, state, frozen, job.batch(accumulate))


def prediction(job: PlannedRun, sizes: Sizes) -> Program:
    """An encoder's scores of one batch of the longest texts."""
    found = _workload(job)
    with jax.set_mesh(mesh(job.topology, sizes)):
        batch = _rows_of(found.scored_batch(sharding.divisible(job.config.eval.batch_size)))
        classifier = HeadClassifier(job.model, found.tokenizer, found.recipe)
        return _of_params(job, classifier.scores, batch)


# Decoders -----------------------------------------------------------------------------------------


def decoding(job: PlannedRun, sizes: Sizes) -> Program:
    """Answers to one batch of the longest prompts, free or among the labels.

    Prefixes that the prompts share were computed before.
    """
    with jax.set_mesh(mesh(job.topology, sizes)):
        rows = sharding.divisible(job.config.eval.batch_size)
        if job.workload is None:
            greedy = decode.make_greedy(job.model, job.label_tokens, 0)
            shape = (rows, job.length - job.label_tokens)
            prompt = PromptBatch(*(of_rows(shape, jnp.int32, 0) for _ in range(3)))
            return _of_params(job, greedy, prompt)
        classifier = _classifier(job)
        prompt, prefix = _prompts(job, rows, classifier.answerer)
        if classifier.answerer is None:
            return _of_params(job, classifier.greedy, prompt, prefix)
        answerer = classifier.answerer
        plan = _plan(job, answerer, rows, answerer.layout.fields)
        spare = batching.bucket(label_choice.room(answerer.forest, plan))
        constrained = functools.partial(answerer._constrained, spare=spare)
        return _of_params(job, constrained, prompt, prefix, _rows_of(plan))


def scoring(job: PlannedRun, sizes: Sizes) -> tuple[Program, Program]:
    """Prompts read, and the labels of the first task scored after them.

    All labels at once, or as many as a bound usually leaves to be read.
    """
    with jax.set_mesh(mesh(job.topology, sizes)):
        answerer = _classifier(job).answerer
        assert answerer is not None
        rows = sharding.divisible(job.config.eval.batch_size)
        prompt, prefix = _prompts(job, rows, answerer)
        first_field, *others = answerer.layout.fields
        spare = max(map(len, first_field.pieces)) if others else 0
        for field in others:
            plan = _plan(job, answerer, rows, [field])
            spare += label_choice.room(answerer.forest, plan) if field.inner else 0
        begin = functools.partial(answerer._begin, spare=batching.bucket(spare) if spare else 0)
        first, read = _with_result(job, _bound(job, begin), *_params(job), prompt, prefix)
        ranker = answerer.rankers.get(first_field.task.name)
        if ranker is None:  # slots are chosen, one after the other
            plan = _rows_of(_plan(job, answerer, rows, [first_field]))
            chosen = functools.partial(answerer._likeliest, go_on=bool(others))
            return first, _of_params(job, chosen, read, plan)
        width, chosen = max(1, ranker.trie.inner - 1), None
        if answerer.decoding.bound and width > _SCORED:
            width, rows = _SCORED, max(1, 4 * rows // _SCORED)
            chosen = of_rows((rows,), jnp.int32, 0)
        nodes = of_rows((rows, width), jnp.int32, 0)
        return first, _of_params(job, ranker._some, read, chosen, nodes)


def _classifier(job: PlannedRun) -> GenerativeClassifier:
    found = _workload(job)
    return GenerativeClassifier(job.model, found.tokenizer, found.recipe, Decoding.of(job.config))


def _prompts(
    job: PlannedRun, rows: int, answerer: LabelDecoder | None = None
) -> tuple[PromptBatch, decode.ComputedPrefix | None]:
    """The longest prompts, and the prefixes that they share as the devices hold them."""
    followed = None if answerer is None else answerer.followed
    prompt, shared = _workload(job).prompt_batch(rows, followed)
    if not shared:
        return _rows_of(prompt), None
    row = _rows_of(batching.prefix_row(shared))
    compute = _bound(job, decode.make_prefix(job.model))
    _, prefix = _with_result(job, compute, *_params(job), row)
    return _rows_of(prompt), prefix


def _plan(job: PlannedRun, answerer: LabelDecoder, rows: int, fields: Sequence[Field]) -> Any:
    """What each row chooses from, where every text has as many words as the longest."""
    return label_decoder._Rows(answerer, [_workload(job).words] * rows, rows).plan(fields)


# Ensembles ----------------------------------------------------------------------------------------


def module_features(job: PlannedRun, sizes: Sizes) -> Program:
    """What an ensemble's base and all its modules see in one batch of the longest texts."""
    fields, dimensions = job.config.attens, job.model.config
    if isinstance(dimensions, EncoderConfig):
        dimensions = dimensions.with_heads(())
    model: Model = create_model(job.fields, dimensions)
    assert isinstance(job.tuning, Adapted)
    compute = features.make_pass(model, Pooling(fields.tokens, fields.padding))
    with jax.set_mesh(mesh(job.topology, sizes)):
        spec = dataclasses.replace(job.tuning.spec, saved=())
        one = lora.abstract(model.abstract, spec)
        stack = jax.eval_shape(lambda: lora.stack([_zeros(one)] * _modules(job)))
        base, stacks = sharding.abstract(model.abstract), [sharding.abstract(stack)]
        batch = _texts(job, sharding.divisible(job.config.eval.batch_size))
        return compiled(job, jax.jit(compute), base, stacks, batch)


def combiner(job: PlannedRun, sizes: Sizes) -> Program:
    """An ensemble's steps on what its modules saw; every device has all of it."""
    fields, size = job.config.attens, job.model.config.hidden_size
    task = _workload(job).dataset.tasks[0]
    classes = max(1, len(task.labels))
    head = fitting.combiner_head(
        Combiner(
            size, classes, fields.heads, fields.over, fields.combine, fields.norms, fields.across
        )
    )
    optimizer = optim.adamw(fitting._optimizer_fields(job.config, 1))
    steps = fitting.make_steps(head, Term(task.kind), optimizer)
    with jax.set_mesh(mesh(job.topology, sizes)):
        params = jax.eval_shape(head.init, jax.eval_shape(lambda: jax.random.key(0)))
        shape = (fitting._CHUNK, fields.batch_size)
        labels = jnp.float32 if task.kind == "regression" else jnp.int32
        batches = (
            jax.ShapeDtypeStruct((*shape, 1 + _modules(job), size), jnp.float32),
            jax.ShapeDtypeStruct(shape, labels),
            jax.ShapeDtypeStruct(shape, jnp.bool_),
        )
        arguments = (params, jax.eval_shape(optimizer.init, params), batches)
        return compiled(job, steps, *jax.tree.map(_everywhere, arguments))


def _modules(job: PlannedRun) -> int:
    fields = job.config.attens
    return fields.k or len(fields.modules)


def _texts(job: PlannedRun, rows: int) -> Batch | PromptBatch:
    """Texts as an ensemble's base reads them; those of other modules may fill max_length."""
    if not job.model.has_heads:
        return _rows_of(_workload(job).prompt_batch(rows, share=False)[0])
    length = job.config.attens.padding or batching.bucket(job.config.train.max_length)
    tokens, segments, positions, types = (of_rows((rows, length), jnp.int32, 0) for _ in range(4))
    return Batch(tokens, segments, positions, types, {}, lengths=of_rows((rows, 1), jnp.int32, 0))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def _everywhere(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.whole())


# Compiling ----------------------------------------------------------------------------------------


def mesh(topology: Topology, sizes: Sizes) -> jax.sharding.Mesh:
    """The mesh over devices that compile alone, or over as many imaginary CPUs."""
    if topology.is_tpu:
        devices = _slice(topology.name, topology.slices)
    elif gpus.can_compile():
        devices = gpus.devices(topology.kind, topology.count, topology.chip.hosted)
    elif len(devices := jax.devices("cpu")) < topology.count:
        raise InputError(
            f"--topology {topology.name}: {len(devices):,} imaginary devices; set "
            f"jax_num_cpu_devices to {topology.count:,} before jax starts"
        )
    return sharding.make_mesh(sizes, devices[: topology.count])


@functools.lru_cache(maxsize=8)
def _slice(name: str, slices: int) -> Any:
    """The devices of TPU slices; raises InputError where libtpu cannot describe them."""
    kind, _, shape = name.partition(":")
    try:
        found = topologies.get_topology_desc(f"{kind}:{shape}", "tpu", num_slices=slices)
        return found.devices
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"--topology {name}: libtpu cannot describe it ({str(error).splitlines()[0]}). It "
            "comes with pip install -e '.[plan]'"
        ) from error


def compiled(job: PlannedRun, function: Any, *arguments: Any) -> Program:
    """A jitted function compiled for the mesh in use; see `of` for what it raises."""
    return _compiled(job, function, *arguments)[0]


def _compiled(job: PlannedRun, function: Any, *arguments: Any) -> tuple[Program, Any]:
    traced = function.trace(*arguments)
    count = job.topology.count
    turns = job.label_tokens if job.workload is None else job.workload.recipe.max_new_tokens
    work = flops(traced.jaxpr.jaxpr, max(1, turns)) / count
    start = time.monotonic()
    lowered = traced.lower()
    try:
        found, _ = gpus.compiled(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise
    text, memory = found.as_text(), found.memory_analysis()
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    program = Program(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes + max(0, own),
        memory.peak_memory_in_bytes,
        work,
        hlo.traffic(text, count),
        time.monotonic() - start,
        text,
    )
    return program, found


def _with_result(job: PlannedRun, function: Any, *arguments: Any) -> tuple[Program, Any]:
    """A function compiled, and what it gives as it lies on the mesh, for a program after it."""
    program, found = _compiled(job, jax.jit(function), *arguments)
    shapes = jax.eval_shape(function, *arguments)
    result = jax.tree.map(
        lambda leaf, cut: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut),
        shapes,
        found.output_shardings,
    )
    return program, result


def _bound(job: PlannedRun, function: Any) -> Any:
    """A function of the model's parameters as one of what is trained and what is frozen."""

    def joined(trained, frozen, *rest):
        return function(job.tuning.join(trained, frozen), *rest)

    return joined


def _of_params(job: PlannedRun, function: Any, *arguments: Any) -> Program:
    """A function of the model's parameters, compiled for arguments after them."""
    return compiled(job, jax.jit(_bound(job, function)), *_params(job), *arguments)


def _params(job: PlannedRun) -> tuple[Any, Any]:
    """(trained, frozen) as they lie on the mesh in use."""
    state, frozen = job.state
    return sharding.abstract(state.trained), sharding.abstract(frozen)


def _rows_of(batch: Any) -> Any:
    """The shapes of a batch on the mesh in use."""
    return jax.tree.map(lambda array: of_rows(array.shape, array.dtype, 0), batch)


def _workload(job: PlannedRun) -> Workload:
    assert job.workload is not None, "what a program reads must be known"
    return job.workload


def flops(jaxpr: Any, turns: int) -> float:
    """Of all matrix products that a traced program makes, 2 for each multiply and add.

    `turns`: of a loop whose end is not known beforehand. A kernel of attention counts with all
    queries and keys, what it may skip included.
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
        if name.startswith("dot_product_attention"):  # cuDNN's: 2 products forward, 5 backward
            rows, queries, heads, size = equation.invars[0].aval.shape
            keys = equation.invars[1].aval.shape[1]
            products = 5 if "_bwd" in name else 2
            total += 2.0 * products * rows * heads * queries * keys * size
            continue
        times: float = 1
        within = turns
        if name == "scan":
            times = params["length"]
        elif name == "while":
            times = turns
        elif name == "pallas_call":
            times = math.prod(size for size in params["grid_mapping"].grid)
            within = _blocks(params)
        elif name == "shard_map":
            times = params["mesh"].size
        for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_program):
            if _is_program(inner):
                total += times * flops(getattr(inner, "jaxpr", inner), within)
    return total


def _blocks(params: Any) -> int:
    """How often a loop in a kernel of attention runs at most.

    Its arrays are [rows, tokens, heads, size]: it loops over those of which a step of the grid has
    all tokens, in blocks as long as those of which it has a part.
    """
    shapes = [mapping.block_shape for mapping in params["grid_mapping"].block_mappings]
    tokens = [getattr(shape[1], "block_size", shape[1]) for shape in shapes if len(shape) == 4]
    tokens = [count for count in tokens if isinstance(count, int)]
    return -(-max(tokens) // min(tokens)) if tokens else 1


def _is_program(leaf: Any) -> bool:
    return hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
