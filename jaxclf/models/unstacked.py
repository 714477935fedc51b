"""Parameters taken apart: a table of which only some rows train, layers that lie one by one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Float, Int, Params, Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitTable:
    """An embedding whose trained rows stand apart from the rest.

    `table`: `[V D]`, frozen; `place`: `[V]` int32, where a token's row is in `rows` `[R D]`, or -1;
    `rows` is None where the trained half of a partition holds them.
    """

    table: Any
    place: Any
    rows: Any = None

    def take(self, ids: Int[AnyArray, "*batch"]) -> Float[Array, "*batch D"]:
        """The rows of these tokens."""
        place = jnp.take(self.place, ids)
        own = jnp.take(self.rows, jnp.maximum(place, 0), axis=0)
        return jnp.where(place[..., None] < 0, jnp.take(self.table, ids, axis=0), own)

    def joined(self) -> Float[Array, "V D"]:
        """The whole table as one array."""
        return self.take(jnp.arange(len(self.place)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unstacked:
    """An array `[L …]` as its L parts.

    A step that compiles every layer on its own reads and writes them without a copy out of the
    stack or into it. Models never see one: see `stack`.
    """

    parts: tuple[Any, ...]


def unstack(params: Tree) -> Tree:
    """The tree with every array below `layers` as its parts."""

    def apart(path, leaf):
        in_layers = any(getattr(key, "key", None) == "layers" for key in path)
        return Unstacked(tuple(leaf[i] for i in range(len(leaf)))) if in_layers else leaf

    return jax.tree_util.tree_map_with_path(apart, params)


def stack(params: Tree) -> Tree:
    """The inverse of `unstack`; a tree without parts stays as it is."""
    return jax.tree.map(
        lambda leaf: jnp.stack(leaf.parts) if isinstance(leaf, Unstacked) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, Unstacked),
    )


def join_tables(params: Params) -> Params:
    """The parameters with every SplitTable made one array again."""
    return jax.tree.map(
        lambda leaf: leaf.joined() if isinstance(leaf, SplitTable) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, SplitTable),
    )
