"""Which parameters are trained, and which are frozen."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.errors import InputError
from jaxclf.core.types import Array, Key, Tree, path_name
from jaxclf.models.quantization import TOKEN_TABLES
from jaxclf.models.unstacked import SplitTable, stack, unstack

PARTS = "parts"  # what an Unstacked array adds to the path of its leaves


def is_stacked(path: str) -> bool:
    """Whether a leaf at this path holds a part for each layer along its first dimension."""
    names = path.split("/")
    return "layers" in names and PARTS not in names


_NAMED_PATTERNS = {"all": ".*", "biases": r".*/bias", "norms": r".*norm.*"}


class Partition(NamedTuple):
    """Splits a parameter tree into what is trained and what stays.

    `chosen` holds for each leaf the count of its last layers that train: all of a leaf is -1,
    none is 0. A leaf that trains in part is cut along its layer axis, so that no gradient and no
    optimizer state exists for the rest. `rows`: the sorted rows of a table that alone train, which
    saves the same for an embedding. `unstacked`: both parts hold their layers one by one.
    """

    chosen: dict[str, int]
    rows: Mapping[str, np.ndarray] = MappingProxyType({})
    unstacked: bool = False

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """(trained, frozen): trees of the same structure with None where the other has all."""

        def trained(path, leaf):
            count, rows = self.chosen[path], self.rows.get(path)
            if rows is not None:
                return leaf[rows]
            return leaf if count < 0 else leaf[-count:] if count else None

        def frozen(path, leaf):
            count, rows = self.chosen[path], self.rows.get(path)
            if rows is not None:
                place = np.full(len(leaf), -1, np.int32)
                place[rows] = np.arange(len(rows))
                return SplitTable(leaf, jnp.asarray(place))
            return None if count < 0 else leaf[:-count] if count else leaf

        def part(select: Callable):
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: select(path_name(path), leaf), params
            )

        if self.unstacked:
            return unstack(part(trained)), unstack(part(frozen))
        return part(trained), part(frozen)

    def join(self, trained: Tree, frozen: Tree, key: Key[Array, ""] | None = None) -> Tree:
        """The whole tree again; `key` is for tunings with a dropout of their own."""

        def whole(one, other):
            if one is None or other is None:
                return other if one is None else one
            if isinstance(other, SplitTable):
                return dataclasses.replace(other, rows=one)
            return jnp.concatenate([other, one])

        return jax.tree.map(whole, stack(trained), stack(frozen), is_leaf=lambda leaf: leaf is None)


def choose_trained(params: Tree, trained: str, tokens: np.ndarray | None = None) -> Partition:
    """Read `config.train.trained`: all, last:N (layers), biases, norms, or a path pattern.

    A pattern is a regular expression that must match a whole path such as
    `layers/attention/q/kernel`. `tokens`: the sorted ids whose embeddings train, where these do;
    None: all. Raises InputError when the pattern is malformed or matches nothing, or when the
    embedding is the unembedding too, so that every row of it trains.
    """
    paths = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    if last := re.fullmatch(r"last:(\d+)", trained):
        count = int(last.group(1))
        depths = {path: leaf.shape[0] for path, leaf in paths.items() if path.startswith("layers/")}
        layers = max(depths.values())
        if not 1 <= count <= layers:
            raise InputError(f"train.trained is {trained!r}; the model has {layers} layers")
        chosen = {
            path: (-1 if count >= depths[path] else count) if path in depths else 0
            for path in paths
        }
        return Partition(chosen)
    try:
        pattern = re.compile(_NAMED_PATTERNS.get(trained, trained))
    except re.error as error:
        raise InputError(f"train.trained {trained!r} is no regular expression: {error}") from error
    chosen = {path: -1 if pattern.fullmatch(path) else 0 for path in paths}
    if not any(chosen.values()):
        raise InputError(
            f"train.trained {trained!r} matches no parameter; the paths are: {', '.join(paths)}"
        )
    if tokens is None:
        return Partition(chosen)
    tables = [path for path in TOKEN_TABLES if chosen.get(path)]
    has_heads = any(path.startswith("heads/") for path in paths)  # which predict no tokens
    if "embed/embedding" in tables and "unembed/kernel" not in paths and not has_heads:
        raise InputError(
            "train.vocabulary is 'used', but this model predicts tokens with the table it reads "
            "them by: each step changes all rows of it. Set train.vocabulary to 'all'"
        )
    return Partition(chosen, dict.fromkeys(tables, tokens))
