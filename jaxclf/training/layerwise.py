"""One step of an optimizer, a layer at a time and in place: the leanest way to large models.

Beside parameters, moments and gradients nothing is kept that is larger than one layer: no float32
copy of a stack, no second copy of gradients that are clipped, no updates before they are added.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclf.adapters.partition import is_stacked
from jaxclf.core.types import Array, Bool, Float, Int, Key, Shaped, Tree, path_name
from jaxclf.training.eight_bit import chances, is_moment


@dataclasses.dataclass(frozen=True)
class Layerwise:
    """An optimizer whose updates depend on nothing beyond a leaf, but for clipping by the norm.

    `inner`: of what is clipped; its state has a `layers` in the paths of what belongs to stacked
    layers. `max_grad_norm`: 0 clips nothing. `stochastic`: bfloat16 parameters are rounded up or
    down by chance, so that a step smaller than their spacing is made in the mean. Source: Gupta et
    al. 2015 (Deep learning with limited numerical precision); Zamirai et al. 2020.
    """

    inner: optax.GradientTransformation
    max_grad_norm: float
    stochastic: bool

    def init(self, params: Tree) -> Any:
        return self.inner.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))

    def apply(
        self,
        gradient: Tree,
        norm: Float[Array, ""],
        state: Any,
        params: Tree,
        key: Key[Array, ""],
        keep: Bool[Array, ""] | None = None,
    ) -> tuple[Tree, Any]:
        """(parameters, state) after a step; where `keep` is True, as they were.

        `norm`: of the whole gradient.
        """
        factor = jnp.float32(1)
        if self.max_grad_norm:
            factor = jnp.minimum(1, self.max_grad_norm / jnp.maximum(norm, 1e-30))

        def step(gradient: Tree, old: tuple[Tree, Any], key: Key[Array, ""]) -> tuple[Tree, Any]:
            clipped = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) * factor, gradient)
            new = self._stepped(clipped, *old, key)
            if keep is None:
                return new
            kept = keep
            return jax.tree.map(lambda old, new: jnp.where(kept, old, new), old, new)

        return _in_turn(step, gradient, (params, state), key)

    def add(self, total: Tree, gradient: Tree, key: Key[Array, ""]) -> Tree:
        """The sum of micro-batches' gradients, in the dtype that the total has."""

        def added(gradient: Tree, total: tuple[Tree], key: Key[Array, ""]) -> tuple[Tree]:
            return (self._moved(*total, gradient, key),)

        return _in_turn(added, gradient, (total,), key)[0]

    def sum_dtype(self, leaf: Shaped[Array, "..."]) -> Any:
        """In which gradients of a parameter are summed over micro-batches."""
        return leaf.dtype if self.stochastic else jnp.float32

    def _stepped(
        self, gradient: Tree, params: Tree, state: Any, key: Key[Array, ""]
    ) -> tuple[Tree, Any]:
        """(parameters, state) of some leaves after a step, from their clipped gradients."""
        update = optax.with_extra_args_support(self.inner).update
        updates, state = update(gradient, state, params, key=key)
        return self._moved(params, updates, key), state

    def _moved(self, tree: Tree, changes: Tree, key: Key[Array, ""]) -> Tree:
        """The tree with changes added, in its own dtypes."""

        def added(path, leaf, change):
            new = leaf.astype(jnp.float32) + change.astype(jnp.float32)
            if self.stochastic and leaf.dtype == jnp.bfloat16:
                return rounded(new, chances(key, path_name(path), leaf.shape))
            return new.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(added, tree, changes)


def _in_turn(
    step: Callable[[Tree, Any, Key[Array, ""]], Any],
    gradient: Tree,
    trees: tuple[Tree, ...],
    key: Key[Array, ""],
) -> Any:
    """`step(gradient, trees, key)` → new trees, of each stacked layer alone, then of all others.

    Counters, which belong to no layer, are given to each with the value of before.
    """
    parts = [step(_of(gradient, 0), tuple(_of(tree, 0) for tree in trees), key)]
    counts = {_layers(*item) for item in jax.tree_util.tree_leaves_with_path(gradient)}
    for count in sorted(counts - {0}):
        counters = tuple(_chosen(tree, lambda _, leaf: _is_counter(leaf)) for tree in trees)
        stacks = _of(gradient, count), tuple(_of(tree, count) for tree in trees)
        of_count = jax.random.fold_in(key, count)

        def one(index, stacks, counters=counters, of_count=of_count):
            # The barrier keeps a cast of the layer from becoming one of the whole stack.
            gradient, old = jax.lax.optimization_barrier(_layer(stacks, index))
            new = step(gradient, _merged(old, counters), jax.random.fold_in(of_count, index))
            new = _chosen(new, lambda path, leaf: _layers(path, leaf) > 0)
            return stacks[0], _written(stacks[1], index, new)

        parts.append(jax.lax.fori_loop(0, count, one, stacks)[1])
    return _merged(*parts)


def rounded(x: Float[Array, "..."], bits: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """float32 as bfloat16, up or down by chance, so that it is right in the mean.

    `bits`: random uint16 of the same shape.
    """
    words = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits.astype(jnp.uint32)
    moved = jax.lax.bitcast_convert_type((words >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), moved, x.astype(jnp.bfloat16))


def _layers(path: Any, leaf: Any) -> int:
    """How many layers are stacked in a leaf or moment; 0 where none are."""
    return len(jax.tree.leaves(leaf)[0]) if is_stacked(path_name(path)) else 0


def _is_counter(leaf: Any) -> bool:
    return not is_moment(leaf) and leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)


def _chosen(tree: Tree, wanted: Callable[[Any, Any], bool]) -> Tree:
    """The tree with None in place of all other leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if wanted(path, leaf) else None, tree, is_leaf=is_moment
    )


def _of(tree: Tree, count: int) -> Tree:
    """The leaves that stack so many layers."""
    return _chosen(tree, lambda path, leaf: _layers(path, leaf) == count)


def _layer(tree: Tree, index: Int[Array, ""]) -> Tree:
    """One layer of each stack, its first dimension kept."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), tree)


def _written(stacks: Tree, index: Int[Array, ""], layer: Tree) -> Tree:
    """The stacks with one layer put in place."""
    put = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda stack, part: put(stack, part, index, 0), stacks, layer)


def _merged(*trees: Tree) -> Tree:
    """What `_chosen` took apart."""
    return jax.tree.map(
        lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None),
        *trees,
        is_leaf=lambda leaf: leaf is None or is_moment(leaf),
    )
