"""What can stand where an array stood in a parameter tree: low-rank, quantised and split nodes.

All are pytree nodes. The arrays of a kernel's share its leading layer axis, so that scan, grad,
vmap and sharding treat them as they treat an array (their fields are Any: in a tree of shapes or of
shardings these stand there). `models.layers` alone asks which kind it has: `matmul` and `Embed`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Float, Int
from jaxclf.models.quantization import QuantKernel
from jaxclf.models.unstacked import SplitTable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraKernel:
    """A frozen kernel and its low-rank addition `scale * a @ b`, never multiplied out.

    `base`: an array `[*L D F]` or a QuantKernel; `a` `[*L D R]`, `b` `[*L R F]`, `scale` `[*L]`.
    `magnitude`: DoRA's norm of each column, `[*L F]`, or None. `key`: `[*L]`, turns dropout (of
    what enters `a`) on. Source: Hu et al. 2021; Liu et al. 2024 (DoRA).
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    magnitude: Any = None
    key: Any = None
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> Any:
        return self.base.dtype


Kernel = Array | QuantKernel | LoraKernel


def take(
    table: Array | QuantKernel | SplitTable, ids: Int[AnyArray, "*batch"]
) -> Float[Array, "*batch D"]:
    """The rows `ids` of an embedding."""
    if isinstance(table, SplitTable):
        return table.take(ids)
    rows = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), table)
    return rows.dequantise(jnp.float32) if isinstance(rows, QuantKernel) else rows


def plain(kernel: Array | QuantKernel, dtype: Any) -> Float[Array, "*layers D F"]:
    """A frozen kernel as an array of `dtype`."""
    if isinstance(kernel, QuantKernel):
        return kernel.dequantise(dtype)
    return kernel.astype(dtype)


def column_norms(kernel: LoraKernel) -> Float[Array, "*layers F"]:
    """The norm of each column of base + scale·a·b, float32, without multiplying a and b out."""
    base, a, b = (plain(part, jnp.float32) for part in (kernel.base, kernel.a, kernel.b))
    scale = kernel.scale.astype(jnp.float32)[..., None]
    cross = jnp.sum((jnp.swapaxes(a, -1, -2) @ base) * b, axis=-2)
    square = jnp.sum((jnp.swapaxes(a, -1, -2) @ a @ b) * b, axis=-2)
    total = jnp.sum(jnp.square(base), axis=-2) + 2 * scale * cross + jnp.square(scale) * square
    return jnp.sqrt(jnp.maximum(total, 0.0))
