"""Kernels in 8 and 4 bits, multiplied as they are."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import qwix

from jaxclf.core.types import Array, Float, Params, Shaped, path_name

Quantisation = Literal["int8", "int4", "nf4"]

Quantise = Quantisation | Literal["none"]

TOKEN_TABLES = ("embed/embedding", "embed/tokens/embedding")  # paths of the token embeddings


TILE = 64  # rows of a kernel that share one 4-bit scale; source: Dettmers et al. 2023


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantKernel:
    """A frozen kernel `[*L D F]` in 8 or 4 bits, symmetric around 0.

    `values`: int8 `[*L D F]`, or two 4-bit values a byte, uint8 `[*L D/2 F]` (rows 2i and 2i+1 in
    the low and high half: packed by us, as a CPU keeps one int4 a byte). `scale`: one a column
    (int8), one for each TILE rows of a column, `[*L D/TILE F]`, or one a row (an embedding's).
    """

    values: Any
    scale: Any
    kind: Quantisation = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        *layers, rows, columns = self.values.shape
        return (*layers, rows if self.kind == "int8" else 2 * rows, columns)

    @property
    def dtype(self) -> Any:
        return self.scale.dtype

    def dequantise(self, dtype: Any) -> Float[Array, "*layers D F"]:
        """The kernel as an array again."""
        values = self.values if self.kind == "int8" else _unpack(self.values, self.kind)
        array = qwix.QArray(values, self.scale.astype(dtype), qtype=_QTYPES[self.kind])
        return qwix.dequantize(array)


_QTYPES: dict[Quantisation, Any] = {"int8": jnp.int8, "int4": jnp.int4, "nf4": "nf4"}


def quantise(
    kernel: Float[Array, "*layers D F"], kind: Quantisation, scale_dtype: Any = jnp.bfloat16
) -> QuantKernel:
    """The nearest kernel of that kind; raises ValueError where an odd D cannot be packed.

    Source: absolute-maximum scaling; NF4's values are those of Dettmers et al. 2023, appendix E.
    """
    *layers, rows, _ = kernel.shape
    if kind != "int8" and rows % 2:
        raise ValueError(f"a kernel of {rows} rows cannot be packed two rows a byte")
    tile = rows if kind == "int8" else math.gcd(rows, TILE)
    channels = [*range(len(layers)), len(layers) + 1]
    nearest = qwix.quantize(
        kernel.astype(jnp.float32),
        _QTYPES[kind],
        channelwise_axes=channels,
        tiled_axes={len(layers): tile},
        scale_dtype=scale_dtype,
    )
    values = nearest.qvalue if kind == "int8" else _pack(nearest.qvalue)
    return QuantKernel(values, nearest.scale, kind)


def quantise_rows(table: Float[Array, "V D"], scale_dtype: Any = jnp.bfloat16) -> QuantKernel:
    """An embedding in int8 with one scale a row, so that rows can be taken from it."""
    nearest = qwix.quantize(
        table.astype(jnp.float32), jnp.int8, channelwise_axes=[0], scale_dtype=scale_dtype
    )
    return QuantKernel(nearest.qvalue, nearest.scale, "int8")


def quantiser(path: str, kind: Quantisation) -> Callable[[Array], QuantKernel] | None:
    """How the leaf at `path` of a model is quantised; None: it stays as it is.

    Kernels of the layers and the unembedding are of `kind`, the embedding of tokens always int8:
    norms, biases, positions and heads are small.
    """
    if path.startswith(("layers/", "unembed/")) and path.endswith("/kernel"):
        return functools.partial(quantise, kind=kind)
    if path in TOKEN_TABLES:
        return quantise_rows
    return None


def quantised(params: Params, kind: Quantisation) -> Params:
    """A model's parameters with every leaf quantised that `quantiser` names."""

    def one(path, leaf):
        change = quantiser(path_name(path), kind)
        return change(leaf) if change else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _pack(values: Shaped[Array, "*layers D F"]) -> Shaped[Array, "*layers half F"]:
    *layers, rows, columns = values.shape
    pairs = values.astype(jnp.uint8).reshape(*layers, rows // 2, 2, columns) & 15
    return pairs[..., 0, :] | (pairs[..., 1, :] << 4)


def _unpack(packed: Shaped[Array, "*layers half F"], kind: Quantisation) -> Shaped[Array, "..."]:
    *layers, half, columns = packed.shape
    pairs = jnp.stack([packed & 15, packed >> 4], axis=-2).reshape(*layers, 2 * half, columns)
    if kind == "nf4":
        return pairs.astype(jnp.uint4)
    # The sign of a 4-bit number stands in its highest bit.
    return (pairs.astype(jnp.int8) ^ 8) - 8
