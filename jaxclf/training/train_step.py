"""The train state and the pure function that makes one step of it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxclf.core.tree import flatten
from jaxclf.core.types import Array, Float, Int, Key, Params, Tree, path_name
from jaxclf.data.batching import Batch
from jaxclf.distributed import sharding
from jaxclf.models.kernels import MasterKernel
from jaxclf.models.registry import Model
from jaxclf.training.layerwise import Layerwise
from jaxclf.training.losses import Objective, Sums


@runtime_checkable
class Tuning(Protocol):
    """What is trained beside what is frozen: `optim.Partition` or `tuning.Adapted`."""

    def join(self, trained: Tree, frozen: Tree, key: Key[Array, ""] | None = None) -> Params:
        """The parameters to bind; a key turns the adapters' dropout on."""
        ...


Optimizer = optax.GradientTransformation | Layerwise


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: Int[Array, ""]
    trained: Tree
    opt_state: Any
    key: Key[Array, ""]
    skipped: Int[Array, ""]  # non-finite steps in a row
    average: Tree = None  # of `trained` over the steps, in float32; None: there is none

    @property
    def evaluated(self) -> Tree:
        """The trained parameters that label and are kept: their average where there is one."""
        if self.average is None:
            return self.trained
        return jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), self.average, self.trained)


class Metrics(NamedTuple):
    """One step's figures; `accuracy` is of single labels (tokens, for an answer that is generated).

    It is NaN where no label is a class.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped: Int[Array, ""]


# Beside the numbers of micro-batches, which have keys of their own.
_ROUNDING, _ADDING = 2**31 - 1, 2**31 - 2


def init_state(
    trained: Tree, optimizer: Optimizer, key: Key[Array, ""], averages: bool = False
) -> TrainState:
    """The state before the first step; moments are float32. `key`: of dropout alone.

    `averages`: whether an average of the parameters is kept.
    """
    moments = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained)
    # Two arrays: a buffer that is donated must not stand in the state twice.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    average = None
    if averages:  # a copy, for the same reason
        average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), trained)
    return TrainState(step, trained, optimizer.init(moments), key, skipped, average)


def make_train_step(
    model: Model,
    tuning: Tuning,
    optimizer: Optimizer,
    schedule: optax.Schedule,
    objective: Objective,
    *,
    may_skip: bool = True,
    prng: str = "threefry2x32",
    average_decay: float = 0.0,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """A function (state, frozen parameters, batch) → (state, metrics), to be jitted.

    The batch has a leading micro-batch axis; losses and gradients are summed over it, each divided
    by the totals of the whole step, so that accumulation changes memory only. A step whose loss or
    gradient is not finite raises `skipped` by one; if it `may_skip` such steps it leaves parameters
    and optimizer as they were, otherwise they are lost. `prng`: JAX's generator of dropout masks.
    `average_decay`: of the average, where the state has one.
    """

    def loss(changes: Tree, trained: Tree, frozen: Tree, masters: set[str], batch, totals, key):
        of_model, of_adapters = jax.random.split(key)
        params = _with_masters(tuning, changes, trained, frozen, masters, of_adapters)
        sums = objective.sums(model.bind(params), batch, totals, of_model)
        return sums.loss, sums

    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def sum_dtype(leaf) -> Any:
        return optimizer.sum_dtype(leaf) if isinstance(optimizer, Layerwise) else jnp.float32

    def train_step(state: TrainState, frozen: Tree, batch: Batch):
        totals = objective.totals(batch)
        key = _of_generator(jax.random.fold_in(state.key, state.step), prng)
        masters = _masters(tuning, state.trained, frozen, model.dtype)
        changes = _changes(state.trained, masters, model.dtype)

        def of_micro_batch(micro, index):
            (_, sums), gradient = value_and_grad(
                changes,
                state.trained,
                frozen,
                masters,
                micro,
                totals,
                jax.random.fold_in(key, index),
            )
            return sums, sharding.like_params(gradient)

        def add_micro_batch(total, item):
            found = of_micro_batch(*item)
            if not isinstance(optimizer, Layerwise):
                return jax.tree.map(jnp.add, total, found), None
            of_sum = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _ADDING)
            gradient = optimizer.add(total[1], found[1], jax.random.fold_in(of_sum, item[1]))
            return (jax.tree.map(jnp.add, total[0], found[0]), gradient), None

        count = len(batch.tokens)
        if count == 1:  # nothing to add up: no zeros, no copies
            sums, gradient = of_micro_batch(jax.tree.map(lambda array: array[0], batch), 0)
        else:
            # Sums in float32: bfloat16 ones would lose the later micro-batches, if not by chance.
            zeros = (
                Sums(*jnp.zeros(3)),
                jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, sum_dtype(leaf)), state.trained),
            )
            (sums, gradient), _ = jax.lax.scan(add_micro_batch, zeros, (batch, jnp.arange(count)))

        in_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)
        norm = optax.tree.norm(in_float32)
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)

        if isinstance(optimizer, Layerwise):
            trained, opt_state = optimizer.apply(
                gradient,
                norm,
                state.opt_state,
                state.trained,
                jax.random.fold_in(jax.random.fold_in(state.key, state.step), _ROUNDING),
                ~finite if may_skip else None,
            )
        else:
            updates, opt_state = optimizer.update(in_float32, state.opt_state, state.trained)
            trained = jax.tree.map(
                lambda leaf, update: (leaf + update).astype(leaf.dtype), state.trained, updates
            )
            if may_skip:  # it keeps old beside new, which a run that stops there can do without
                trained, opt_state = jax.tree.map(
                    lambda new, old: jnp.where(finite, new, old),
                    (trained, opt_state),
                    (state.trained, state.opt_state),
                )
        average = _averaged(state.average, trained, state.step, average_decay)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = Metrics(
            sums.loss, sums.correct / sums.count, norm, jnp.asarray(schedule(state.step)), skipped
        )
        after = TrainState(state.step + 1, trained, opt_state, state.key, skipped, average)
        return after, metrics

    return train_step


def _averaged(average: Tree, trained: Tree, step: Int[Array, ""], decay: float) -> Tree:
    """The exponential moving average after one more step; None where there is none.

    The first steps have a smaller decay, so that the start is soon forgotten. Source: Polyak &
    Juditsky 1992; the warm-up (1 + t) / (10 + t) of TensorFlow's ExponentialMovingAverage.
    """
    if average is None:
        return None
    kept = jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
    return jax.tree.map(
        lambda mean, leaf: mean + (1 - kept) * (leaf.astype(jnp.float32) - mean), average, trained
    )


def _masters(tuning: Tuning, trained: Tree, frozen: Tree, dtype: Any) -> set[str]:
    """Paths of trained kernels in another dtype than matmuls that the model has as they are."""
    joined = flatten(jax.eval_shape(tuning.join, trained, frozen))
    return {
        path
        for path, leaf in flatten(trained).items()
        if path.endswith("/kernel") and leaf.dtype != dtype
        if path in joined and joined[path].shape == leaf.shape
    }


def _changes(trained: Tree, masters: set[str], dtype: Any) -> Tree:
    """What the loss is differentiated by: in place of masters zeros of the dtype of matmuls.

    Other kernels are cast to it, which is the dtype of their gradient then.
    """

    def one(path, leaf):
        name = path_name(path)
        if name in masters:
            return jnp.zeros(leaf.shape, dtype)
        return leaf.astype(dtype) if name.endswith("/kernel") else leaf

    return jax.tree_util.tree_map_with_path(one, trained)


def _with_masters(
    tuning: Tuning, changes: Tree, trained: Tree, frozen: Tree, masters: set[str], key: Any
) -> Params:
    """The model's parameters, each of the masters beside its change."""

    def given(path, change, leaf):
        return leaf if path_name(path) in masters else change

    given_tree = jax.tree_util.tree_map_with_path(given, changes, trained)
    beside = flatten(changes)

    def one(path, leaf):
        name = path_name(path)
        return MasterKernel(leaf, beside[name]) if name in masters else leaf

    return jax.tree_util.tree_map_with_path(one, tuning.join(given_tree, frozen, key))


def _of_generator(key: Key[Array, ""], prng: str) -> Key[Array, ""]:
    """A key of another generator, derived from `key`; `key` itself where it is of that one."""
    if prng == str(jax.random.key_impl(key)):
        return key
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=prng)))
    return jax.random.wrap_key_data(jax.random.bits(key, words.shape, words.dtype), impl=prng)
