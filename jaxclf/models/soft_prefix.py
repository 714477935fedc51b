"""Prefix tuning: trained keys and values before every text."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import Array, Bool, Float
from jaxclf.models.masks import Segments, SharedSegments, Visible
from jaxclf.models.shared_prefix_attention import SharedMask


class SoftPrefix(nnx.Module):
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
        mask: Visible,
    ) -> tuple[
        Float[Array, "B _ K H"],
        Float[Array, "B _ K H"],
        Bool[Array, "B 1 T _"] | Segments | SharedMask | SharedSegments,
    ]:
        """Keys, values and what is seen of them with the prefix before."""
        if not isinstance(mask, jax.Array):
            own = self.key.get_value(), self.value.get_value()
            return key, value, mask.after(*(each.astype(key.dtype) for each in own))

        def extended(param, rest):
            own = param.get_value().astype(rest.dtype)
            return jnp.concatenate([jnp.broadcast_to(own, (len(rest), *own.shape)), rest], axis=1)

        count = self.key.get_value().shape[0]
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (count, 0)), constant_values=True)
        return extended(self.key, key), extended(self.value, value), mask


def soft_prefix(count: int, heads: int, head_dim: int, **options) -> SoftPrefix | None:
    """A layer's trained prefix, or None where the model has none."""
    return SoftPrefix(count, heads, head_dim, **options) if count else None
