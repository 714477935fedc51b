"""Masks, grouped-query attention and the key/value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.models.layers import dropout
from jaxclf.shapes import AnyArray, Array, Bool, Float, Int, Key


def causal_mask(segment_ids: Int[AnyArray, "B T"]) -> Bool[Array, "B 1 T T"]:
    """True where a query may look: its own segment, itself and earlier; segment 0 is padding."""
    count = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    earlier = jnp.tril(jnp.ones((count, count), bool))
    return (same & earlier & (segment_ids[:, None, :] > 0))[:, None]


def full_mask(segment_ids: Int[AnyArray, "B T"]) -> Bool[Array, "B 1 T T"]:
    """True where a query may look: anywhere in its own segment; segment 0 is padding.

    Padding looks at all texts of its row, as in transformers; nothing looks at padding.
    """
    query = segment_ids[:, :, None]
    same = (query == segment_ids[:, None, :]) | (query == 0)
    return jnp.asarray(same & (segment_ids[:, None, :] > 0))[:, None]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"],
    rate: float = 0.0,
    random_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention scaled by 1/sqrt(H); each key head serves N/K query heads.

    Scores and softmax are float32; a key turns dropout of the weights on. A query whose mask is all
    False gets a finite value that means nothing.
    """
    rows, count, heads, size = query.shape
    group = heads // key.shape[2]
    # Heads before tokens, and the queries of a group below each other: matmuls of whole blocks.
    # XLA on a CPU takes a seventh longer for a step with heads or groups between them.
    query, key, value = (jnp.swapaxes(each, 1, 2) for each in (query, key, value))
    query = query.reshape(rows, -1, group * count, size)
    scores = jnp.einsum("bkth,bksh->bkts", query, key, preferred_element_type=jnp.float32)
    mask = jnp.tile(mask, (1, 1, group, 1))
    scores = jnp.where(mask, scores * size**-0.5, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, random_key)
    found = jnp.einsum("bkts,bksh->bkth", weights.astype(value.dtype), value)
    return jnp.swapaxes(found.reshape(rows, heads, count, size), 1, 2)


class Prefix(nnx.Module):
    """P keys and values that every query sees before those of the text (prefix tuning).

    Source: Li & Liang 2021; trained directly, without their reparametrisation.
    """

    def __init__(self, count: int, heads: int, head_dim: int, *, std: float, dtype, rngs: nnx.Rngs):
        def pairs():
            drawn = jax.random.normal(rngs.params(), (count, heads, head_dim), jnp.float32) * std
            return nnx.Param(drawn.astype(dtype))

        self.key, self.value = pairs(), pairs()

    def before(
        self,
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        mask: Bool[Array, "B 1 T S"],
    ) -> tuple[Float[Array, "B PS K H"], Float[Array, "B PS K H"], Bool[Array, "B 1 T PS"]]:
        """Keys, values and mask with the prefix in front."""

        def extended(param, rest):
            own = param.get_value().astype(rest.dtype)
            return jnp.concatenate([jnp.broadcast_to(own, (len(rest), *own.shape)), rest], axis=1)

        count = self.key.get_value().shape[0]
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (count, 0)), constant_values=True)
        return extended(self.key, key), extended(self.value, value), mask


def prefix(count: int, heads: int, head_dim: int, **options) -> Prefix | None:
    """A layer's prefix, or None where the model has none."""
    return Prefix(count, heads, head_dim, **options) if count else None


class Cache(NamedTuple):
    """Keys and values of every layer for S slots."""

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], dtype) -> "Cache":
        """All zeros, of shape [L, B, S, K, H]."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(
        self,
        layer: Int[Array, ""],
        slot: Int[Array, ""] | int,
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
    ) -> "Cache":
        """Put the keys and values of T tokens at `slot` and on, for one layer."""
        at = (layer, 0, slot, 0, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.key, key[None].astype(self.key.dtype), at),
            jax.lax.dynamic_update_slice(self.value, value[None].astype(self.value.dtype), at),
        )
