"""The one legend of dimensions, and the array types that signatures use.

    B batch rows         T query tokens      S key tokens        J label positions in a row
    D model              F feed-forward      N query heads       K key/value heads
    G queries per K      H head dimension    V vocabulary        L layers
    C classes            A adapters          R rank

Annotations such as `Float[Array, "B T D"]` are checked while the tests run (jaxtyping's import
hook) and cost nothing otherwise.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Shaped

Params = dict[str, Any]
"""A nested dict of arrays; layers are stacked on a leading L axis."""

Tree = Any
"""Any pytree of arrays: parameters, adapters, or a part of either with None elsewhere."""

AnyArray = Array | np.ndarray


class Prefixes(NamedTuple):
    """Prompt prefixes that rows share: each row holds C tokens of them, one row after the other.

    numbers: which prefix a token belongs to, from 1; 0 is padding. seen: which prefix each of the
    row's own T tokens continues; 0: none.
    """

    tokens: Int[AnyArray, "*micro B C"]
    positions: Int[AnyArray, "*micro B C"]
    numbers: Int[AnyArray, "*micro B C"]
    seen: Int[AnyArray, "*micro B T"]


__all__ = [
    "AnyArray",
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Params",
    "Prefixes",
    "Shaped",
    "Tree",
    "path_name",
]


def path_name(path: Any) -> str:
    """`layers/attention/q/kernel` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
