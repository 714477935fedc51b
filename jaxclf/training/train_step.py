"""The train state and the pure function that makes one step of it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxclf.core.types import Array, Float, Int, Key, Params, Tree, path_name
from jaxclf.data.batching import Batch
from jaxclf.distributed import sharding
from jaxclf.models.registry import Model
from jaxclf.training.losses import Objective, Sums

_ADAPTER_DROPOUT = 0x10A  # keys of a stream apart from the model's own dropout


@runtime_checkable
class Tuning(Protocol):
    """What is trained beside what is frozen: `optim.Partition` or `tuning.Adapted`."""

    def join(self, trained: Tree, frozen: Tree, key: Key[Array, ""] | None = None) -> Params:
        """The parameters to bind; a key turns the adapters' dropout on."""
        ...


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: Int[Array, ""]
    trained: Tree
    opt_state: Any
    key: Key[Array, ""]
    skipped: Int[Array, ""]  # non-finite steps in a row


class Metrics(NamedTuple):
    """One step's figures; `accuracy` is of single labels (tokens, for an answer that is generated).

    It is NaN where no label is a class.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped: Int[Array, ""]


def init_state(
    trained: Tree, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step; moments are float32."""
    moments = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained)
    # Two arrays: a buffer that is donated must not stand in the state twice.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, trained, optimizer.init(moments), key, skipped)


def make_train_step(
    model: Model,
    tuning: Tuning,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    objective: Objective,
    *,
    may_skip: bool = True,
    prng: str = "threefry2x32",
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """A function (state, frozen parameters, batch) → (state, metrics), to be jitted.

    The batch has a leading micro-batch axis; losses and gradients are summed over it, each divided
    by the totals of the whole step, so that accumulation changes memory only. A step whose loss or
    gradient is not finite raises `skipped` by one; if it `may_skip` such steps it leaves parameters
    and optimizer as they were, otherwise they are lost. `prng`: JAX's generator of dropout masks.
    """

    def loss(trained: Tree, frozen: Tree, batch: Batch, totals, key):
        params = tuning.join(trained, frozen, jax.random.fold_in(key, _ADAPTER_DROPOUT))
        sums = objective.sums(model.bind(params), batch, totals, key)
        return sums.loss, sums

    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def as_multiplied(path, leaf):
        """A kernel in the dtype of matmuls, which is that of its gradient too.

        Cast within the layers, the compiler would keep whole stacks of both in both dtypes.
        """
        is_kernel = path_name(path).endswith("/kernel")
        return leaf.astype(model.dtype) if is_kernel else leaf

    def train_step(state: TrainState, frozen: Tree, batch: Batch):
        totals = objective.totals(batch)
        key = _of_generator(jax.random.fold_in(state.key, state.step), prng)
        multiplied = jax.tree_util.tree_map_with_path(as_multiplied, state.trained)

        def add_micro_batch(total, item):
            micro, index = item
            (_, sums), gradient = value_and_grad(
                multiplied, frozen, micro, totals, jax.random.fold_in(key, index)
            )
            sums, gradient = jax.tree.map(jnp.add, total, (sums, gradient))
            return (sums, sharding.like_params(gradient)), None

        # Sums in float32: bfloat16 gradients would lose the later micro-batches.
        zeros = (
            Sums(*jnp.zeros(3)),
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), state.trained),
        )
        count = len(batch.tokens)
        if count == 1:  # nothing to add up: no zeros, no copies
            only = jax.tree.map(lambda array: array[0], batch)
            (sums, gradient), _ = add_micro_batch(zeros, (only, 0))
        else:
            (sums, gradient), _ = jax.lax.scan(add_micro_batch, zeros, (batch, jnp.arange(count)))

        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained)
        trained = jax.tree.map(
            lambda leaf, update: (leaf + update).astype(leaf.dtype), state.trained, updates
        )
        if may_skip:  # it keeps old beside new, which a run that stops there can do without
            trained, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (trained, opt_state),
                (state.trained, state.opt_state),
            )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = Metrics(
            sums.loss, sums.correct / sums.count, norm, jnp.asarray(schedule(state.step)), skipped
        )
        return TrainState(state.step + 1, trained, opt_state, state.key, skipped), metrics

    return train_step


def _of_generator(key: Key[Array, ""], prng: str) -> Key[Array, ""]:
    """A key of another generator, derived from `key`; `key` itself where it is of that one."""
    if prng == str(jax.random.key_impl(key)):
        return key
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=prng)))
    return jax.random.wrap_key_data(jax.random.bits(key, words.shape, words.dtype), impl=prng)
