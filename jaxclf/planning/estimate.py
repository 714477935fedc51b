"""What a config needs on devices that are not here, by arithmetic, and which mesh is the fastest.

`programs` asks the compiler.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclf.adapters import tuning
from jaxclf.core.tree import flatten
from jaxclf.data.batching import ANSWER, Batch, Targets
from jaxclf.distributed import sharding
from jaxclf.models import attention, registry, scan
from jaxclf.models.cutting import with_layers
from jaxclf.models.decoder_config import DecoderConfig
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.heads import HeadConfig
from jaxclf.models.registry import Model
from jaxclf.planning import gpus
from jaxclf.planning.hardware import Topology
from jaxclf.planning.workload import Workload
from jaxclf.runs.setup import with_heads, with_vocabulary
from jaxclf.training import losses, optim
from jaxclf.training.losses import Objective, Term
from jaxclf.training.train_step import init_state

Sizes = dict[str, int]


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


class Rows(NamedTuple):
    """What a micro-batch holds: tokens of a row, of all shared prefixes, and labels of a row."""

    length: int
    prefix: int
    labels: int


class PlannedRun:
    """A config's programs, for a mesh that need not be here.

    `workload`: what they read; without it rows have `train.max_length` tokens, of which
    `label_tokens` have a label, and share no prefix: then nothing is read from disk.
    """

    def __init__(
        self,
        config: ConfigDict,
        topology: Topology,
        label_tokens: int = 32,
        workload: Workload | None = None,
    ):
        self.config, self.topology, self.workload = config, topology, workload
        self.label_tokens = label_tokens
        self.compiles = topology.is_tpu or gpus.can_compile()
        dimensions = with_layers(registry.find(config.model.name), config.model.layers)
        if registry.has_heads(config.model.output, dimensions):
            if workload is not None:
                dimensions = with_heads(dimensions, workload.dataset.tasks, config.prompt.slots)
            else:
                dimensions = dimensions.with_heads((HeadConfig("label", "sequence", 64),))
        if workload is not None and workload.tokenizer_is_own and not config.model.checkpoint:
            dimensions = with_vocabulary(dimensions, workload.tokenizer, None)
        fields = config.copy_and_resolve_references()
        with fields.unlocked():
            if fields.model.dtype == "auto":
                fields.model.dtype = "bfloat16"
            if fields.model.attention == "auto":
                fields.model.attention = "splash" if topology.is_tpu else "cudnn"
            self.attention = fields.model.attention  # of the run
            if not self.compiles:  # a CPU has neither
                fields.model.attention = "plain"
        self.fields = fields
        self.model: Model = create_model(fields, dimensions)
        tokens = None
        if config.train.vocabulary == "used" and workload is not None:
            # Which tokens the texts have is not counted: all that the vocabulary names.
            tokens = np.arange(min(dimensions.vocab_size, workload.tokenizer.vocab_size))
        self.tuning = tuning.choose(config, self.model.abstract, tokens)
        self.optimizer = optim.optimizer(config.train, config.lora.loraplus_lr_ratio)
        plain = registry.create(dimensions).abstract["layers"]
        stacks = [plain]
        if self.model.reads_apart:  # a decoder that writes has the label's few tokens, else all
            stacks = [*plain.values()] if self.model.has_heads else [plain["encoder"]]
        self.depth = sum(jax.tree.leaves(stack)[0].shape[0] for stack in stacks)
        self.body = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(stacks))
        self.computed = self.body  # with each token
        if isinstance(dimensions, DecoderConfig):
            self.depth = dimensions.num_layers
        if isinstance(dimensions, DecoderConfig) and dimensions.experts:
            depth = sum(dimensions.expert_layers) or self.depth
            of_experts = 3 * dimensions.hidden_size * dimensions.expert_size * depth
            idle = dimensions.experts - dimensions.experts_per_token
            self.computed -= idle * of_experts
        if isinstance(dimensions, EncoderConfig) and dimensions.same_layer:
            self.depth = dimensions.num_layers
            self.body *= self.depth  # what is computed with, again and again
            self.computed = self.body
        self.width = jnp.dtype(self.model.dtype).itemsize
        self.length = config.train.max_length
        if config.train.pack:
            self.length = config.train.row_length or self.length
        if workload is not None:
            self.length = self.rows(config.train.gradient_accumulation_steps).length

    @functools.cached_property
    def state(self) -> tuple[Any, Any]:
        """Shapes of (the train state, what is frozen)."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        trained, frozen = jax.eval_shape(self.tuning.start, self.model.abstract, key)
        averages = self.config.train.average != "none"
        state = jax.eval_shape(
            lambda t, k: init_state(t, self.optimizer, k, averages), trained, key
        )
        return state, frozen

    def rows(self, accumulate: int) -> Rows:
        """What each of so many micro-batches holds."""
        if self.workload is None:
            count = 1 if self.model.has_heads else self.label_tokens
            return Rows(self.length, 0, count)
        batch = self._batch_of(accumulate)
        labels = sum(each.positions.shape[-1] for each in batch.targets.values())
        prefix = batch.prefixes
        shared = 0 if prefix is None else len(prefix.tokens) * prefix.tokens.shape[1] // accumulate
        return Rows(batch.tokens.shape[-1], shared, labels)

    @functools.lru_cache(maxsize=16)  # noqa: B019 - a job lives as long as its process
    def _batch_of(self, accumulate: int) -> Batch:
        """The workload's batch of a step in so many micro-batches."""
        assert self.workload is not None
        fields = self.config.copy_and_resolve_references()
        with fields.unlocked():
            fields.train.gradient_accumulation_steps = accumulate
        return self.workload.batch(fields)

    # -- by arithmetic

    def need(self, sizes: Sizes, accumulate: int) -> Need:
        """Estimated bytes of one chip; raises InputError where the mesh cannot divide a leaf."""
        state, frozen = self.state
        trained, kernels = (_bytes(state.trained, sizes, only) for only in (False, True))
        stored = jnp.dtype(self.config.model.param_dtype).itemsize
        # The gradient of a kernel that is stored in more bits has those of matmuls.
        gradients = trained - kernels + kernels * min(self.width, stored) // stored
        if accumulate > 1:
            gradients += trained
        held, parts = self.rows(accumulate), sizes["data"] * sizes["fsdp"]
        in_all = self.config.train.batch_size / accumulate
        rows, width = in_all / parts, self.length + -(-held.prefix // max(1, round(in_all)))
        tokens = rows * width / _divided(width, sizes, "length")
        depth, body = self.depth, self.body
        inner = self.model.config.intermediate_size / sizes["tensor"]
        hidden = self.model.config.hidden_size
        # Of one layer: two gathered inputs, and what feed-forward and its gradient hold.
        within = tokens * (2 * hidden + 5 * inner) * self.width
        within += tokens * self._dropped(state.trained, sizes)
        plain = self.attention == "plain"
        if self._scores():  # and their weights, of some queries at once
            heads = self.model.config.num_heads / sizes["tensor"]
            at_once = tokens if plain else rows * attention.QUERIES
            within += 3 * at_once * self.length * heads * 4
        model = self.config.model
        remat = model.gradient_checkpointing and model.checkpoint_layers
        group = scan.group_size(depth, remat)
        inputs = depth / group + (group if group > 1 else 0)  # of groups, and of layers in one
        kept = inputs * rows * width / _divided(width, sizes, "between") * hidden * self.width
        if not self.config.model.gradient_checkpointing and not plain:
            # What matrix products and the attention kernel gave, see `scan.scan_layers`.
            kept += depth * tokens * (self._given(sizes) + hidden / sizes["tensor"]) * self.width
        is_all_kept = not self.config.model.gradient_checkpointing and plain
        activations = depth * within if is_all_kept else within + kept
        activations += 3 * body / depth * self.width / sizes["tensor"]
        return Need(
            trained + _bytes(frozen, sizes),
            _bytes(state.opt_state, sizes),
            gradients,
            int(activations),
        )

    def _scores(self) -> bool:
        """Whether attention has scores at all: where weights are dropped or get a bias."""
        dropped = getattr(self.model.config, "attention_dropout", 0) > 0
        return self.model.reads_apart or dropped

    def _given(self, sizes: Sizes) -> float:
        """Numbers a token that the matrix products of a layer give, on one chip."""
        total = 0.0
        layers = self.model.abstract["layers"]
        if self.model.reads_apart:  # of the widest that all tokens go through
            decodes = self.model.has_heads and "decoder" in layers
            layers = layers["decoder" if decodes else "encoder"]
        for path, leaf in flatten(layers).items():
            # Products in groups, those of experts `[L E D F]`, are not kept.
            if path.endswith(("/kernel", "/kernel/values")) and leaf.ndim == 3:
                *_, cut = sharding.spec(f"layers/{path}", leaf.shape, sizes)
                axes = [axis for axis in np.atleast_1d(cut or ()) if axis == "tensor"]
                total += leaf.shape[-1] / math.prod(sizes[axis] for axis in axes)
        return total

    def _dropped(self, trained: Any, sizes: Sizes) -> float:
        """Bytes a token for dropout of what the widest adapter reads, while it is drawn.

        The dropped copy and its gradient; two words of 32 bits for each number, as the generator
        takes and gives them; and a flag.
        """
        if not (self.config.tune in ("lora", "dora", "lora_fa") and self.config.lora.dropout):
            return 0.0
        widest = 0.0
        for path, leaf in flatten(trained).items():
            if path.endswith("/a"):
                cut = sharding.spec(
                    path, leaf.shape, sizes | dict.fromkeys(("fsdp", "sequence"), 1)
                )
                parts = math.prod(sizes[axis] for axis in np.atleast_1d(cut[-2] or ()))
                widest = max(widest, leaf.shape[-2] / parts)
        return widest * (2 * self.width + 2 * 4 + 1)

    # -- what its programs read

    def objective(self) -> Objective:
        if self.workload is not None:
            return self.workload.objective
        if self.model.has_heads:
            return Objective(losses.head_scores, {"label": Term("class")})
        return losses.GENERATION

    def batch(self, accumulate: int) -> Batch:
        """The shapes of a step's batch, micro-batch by micro-batch, on the mesh in use."""
        rows = self.config.train.batch_size // accumulate
        if self.workload is not None:
            return jax.tree.map(
                lambda array: of_rows((accumulate, rows, *array.shape[1:]), array.dtype, 1),
                self._batch_of(accumulate),
            )
        count = self.rows(accumulate).labels

        def array(*shape, dtype: Any = jnp.int32):
            return of_rows((accumulate, rows, *shape), dtype, 1)

        name = "label" if self.model.has_heads else ANSWER
        targets = Targets(array(count), array(count), array(count, dtype=jnp.bool_))
        types = array(self.length) if self.model.has_heads else None
        tokens, segments, positions = (array(self.length) for _ in range(3))
        lengths = None if self.config.train.pack else array(1)
        return Batch(tokens, segments, positions, types, {name: targets}, lengths=lengths)


def _divided(tokens: int, sizes: Sizes, dim: str) -> int:
    """Parts that a row of so many tokens is cut into: the whole of it where nothing divides it."""
    (cut,) = sharding.activation((tokens,), (dim,), sizes)
    return math.prod(sizes[axis] for axis in np.atleast_1d(cut or ()))


def of_rows(shape: tuple[int, ...], dtype: Any, axis: int) -> Any:
    """An array of a batch, of which `axis` counts rows, on the mesh in use."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.of_rows(shape, axis))


def _bytes(tree: Any, sizes: Sizes, kernels: bool = False) -> int:
    """Of one chip's parts of all leaves, or of the kernels alone."""
    total = 0
    for path, leaf in flatten(tree).items():
        if kernels and not path.endswith("/kernel"):
            continue
        cut = sharding.spec(path, leaf.shape, sizes)
        parts = math.prod(sizes[axis] for axes in cut for axis in np.atleast_1d(axes or ()))
        width = 4 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(leaf.shape) * width // parts
    return total


# Choosing -----------------------------------------------------------------------------------------
