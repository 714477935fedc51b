"""What can stand where an array stood in a parameter tree: low-rank, quantised and split nodes.

All are pytree nodes. The arrays of a kernel's share its leading layer axis, so that scan, grad,
vmap and sharding treat them as they treat an array (their fields are Any: in a tree of shapes or of
shardings these stand there). `models.layers` alone asks which kind it has: `matmul` and `Embed`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Float, Int, Tree
from jaxclf.models.quantization import QuantKernel
from jaxclf.models.unstacked import SplitTable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraKernel:
    """A frozen kernel and its low-rank addition `scale * a @ b`, never multiplied out.

    `base`: an array `[*L D F]` or a QuantKernel; `a` `[*L D R]`, `b` `[*L R F]`, `scale` `[*L]`
    (of experts L and E).
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MasterKernel:
    """A trained kernel that is stored in more bits than it is multiplied in.

    `base` `[*L D F]` is cast where it is used, so that no second copy of the stack is kept. The
    gradient is that of `change`, zeros of the dtype of matmuls which nothing reads: in that dtype
    it is stacked.
    """

    base: Any
    change: Any


Kernel = Array | QuantKernel | LoraKernel | MasterKernel


def take(
    table: Array | QuantKernel | SplitTable, ids: Int[AnyArray, "*batch"]
) -> Float[Array, "*batch D"]:
    """The rows `ids` of an embedding."""
    if isinstance(table, SplitTable):
        return table.take(ids)
    rows = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), table)
    return rows.dequantise(jnp.float32) if isinstance(rows, QuantKernel) else rows


def plain(kernel: Array | QuantKernel | MasterKernel, dtype: Any) -> Float[Array, "*layers D F"]:
    """A kernel without adapters as an array of `dtype`."""
    if isinstance(kernel, QuantKernel):
        return kernel.dequantise(dtype)
    if isinstance(kernel, MasterKernel):
        return _cast(kernel.base, kernel.change).astype(dtype)
    return kernel.astype(dtype)


def of_layer(params: Tree, index: Int[Array, ""]) -> Tree:
    """A layer's parameters, of which the compiler does not cast the whole stack before the loop.

    XLA would wherever nothing is computed in more bits, also through a barrier. So a factor of 1
    is, which depends on the loop.
    """

    def one(node):
        if not isinstance(node, MasterKernel):
            return node
        return dataclasses.replace(node, base=node.base * jnp.where(index < 0, 2.0, 1.0))

    return jax.tree.map(one, params, is_leaf=lambda node: isinstance(node, MasterKernel))


@jax.custom_vjp
def _cast(base: Array, change: Array) -> Array:
    """`base` in the dtype of `change`, which gets the gradient."""
    return base.astype(change.dtype)


def _cast_forward(base: Array, change: Array) -> tuple[Array, None]:
    return _cast(base, change), None


def _cast_backward(_: None, gradient: Array) -> tuple[None, Array]:
    return None, gradient


_cast.defvjp(_cast_forward, _cast_backward)


def column_norms(kernel: LoraKernel) -> Float[Array, "*layers F"]:
    """The norm of each column of base + scale·a·b, float32, without multiplying a and b out."""
    base, a, b = (plain(part, jnp.float32) for part in (kernel.base, kernel.a, kernel.b))
    scale = kernel.scale.astype(jnp.float32)[..., None]
    cross = jnp.sum((jnp.swapaxes(a, -1, -2) @ base) * b, axis=-2)
    square = jnp.sum((jnp.swapaxes(a, -1, -2) @ a @ b) * b, axis=-2)
    total = jnp.sum(jnp.square(base), axis=-2) + 2 * scale * cross + jnp.square(scale) * square
    return jnp.sqrt(jnp.maximum(total, 0.0))
