"""Feed-forward by experts: a router sends each token to a few of them.

Source: Shazeer et al. 2017, Jiang et al. 2024 (Mixtral), Yang et al. 2025 (Qwen3); checked against
the models of transformers. Tokens are laid out by expert and multiplied in groups, so that none is
dropped and none computed in vain.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import Array, Float, Int
from jaxclf.distributed import sharding
from jaxclf.models import layers


class Experts(nnx.Module):
    """Of each token the weighted sum of its experts' `down(activation(gate(x)) * up(x))`.

    Every device has its tokens, all experts, and of each the part that `tensor` cuts: sorting
    tokens crosses no device. Their kernels are plain arrays `[E D F]`, which adapters and
    quantisation leave as they are.
    """

    def __init__(
        self,
        hidden_size: int,
        size: int,
        count: int,
        chosen: int,
        *,
        normalised: bool,
        activation: str,
        std: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """count experts of `size`, of which each token has `chosen`.

        normalised: their weights sum to 1; else they are shares among all experts.
        """

        def drawn(*shape: int) -> nnx.Param:
            kernel = jax.random.normal(rngs.params(), shape, jnp.float32) * std
            return nnx.Param(kernel.astype(dtype))

        self.router = drawn(hidden_size, count)
        self.gate, self.up = (drawn(count, hidden_size, size) for _ in range(2))
        self.down = drawn(count, size, hidden_size)
        self.chosen, self.normalised, self.activation = chosen, normalised, activation

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        weights, experts = self.routed(x)
        kernels = [each.get_value().astype(x.dtype) for each in (self.gate, self.up, self.down)]
        activation = layers.ACTIVATIONS[self.activation]

        def own(x, weights, experts, gate, up, down):
            found = mixed(x, weights, experts, (gate, up, down), activation)
            return jax.lax.psum(found, "tensor") if is_divided else found

        sizes = sharding.sizes()
        is_divided = sizes["tensor"] > 1 and self.gate.get_value().shape[-1] % sizes["tensor"] == 0
        if not sharding.is_cut():
            return own(x, weights, experts, *kernels)
        cut = sharding.activation(x.shape, ("batch", "length", None), sizes)
        by_part = "tensor" if is_divided else None
        inner, outer = jax.P(None, None, by_part), jax.P(None, by_part, None)
        return jax.shard_map(
            own, in_specs=(cut, cut, cut, inner, inner, outer), out_specs=cut, check_vma=False
        )(x, weights, experts, *kernels)

    def routed(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T K"], Int[Array, "B T K"]]:
        """Weights (float32) and numbers of each token's experts, the heaviest first."""
        scores = jnp.matmul(x, self.router.get_value().astype(x.dtype))
        shares = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        weights, experts = jax.lax.top_k(shares, self.chosen)
        if self.normalised:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return weights, experts


def mixed(
    x: Float[Array, "B T D"],
    weights: Float[Array, "B T K"],
    experts: Int[Array, "B T K"],
    kernels: tuple[Array, Array, Array],
    activation: Callable[[Any], Array],
) -> Float[Array, "B T D"]:
    """The weighted sum over each token's experts; kernels `[E D F]` twice and `[E F D]`."""
    gate, up, down = kernels
    tokens, chosen = x.reshape(-1, x.shape[-1]), experts.shape[-1]
    numbers = experts.reshape(-1)
    order = jnp.argsort(numbers, stable=True)
    counts = jnp.bincount(numbers, length=len(gate)).astype(jnp.int32)
    rows = tokens[order // chosen]
    inner = activation(jax.lax.ragged_dot(rows, gate, counts))
    inner = inner * jax.lax.ragged_dot(rows, up, counts)
    found = jax.lax.ragged_dot(inner, down, counts)
    back = jnp.argsort(order)
    found = found[back].reshape(*x.shape[:-1], chosen, x.shape[-1])
    return jnp.einsum("btk,btkd->btd", weights.astype(x.dtype), found)
