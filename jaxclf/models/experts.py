"""Feed-forward by experts: a router sends each token to a few of them.

Source: Shazeer et al. 2017, Jiang et al. 2024 (Mixtral), Yang et al. 2025 (Qwen3), OpenAI 2025
(gpt-oss), Meta 2025 (Llama 4); checked against the models of transformers. Tokens are laid out by
expert and multiplied in groups, so that none is dropped and none computed in vain.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import Array, Float, Int
from jaxclf.distributed import sharding
from jaxclf.models import kernels
from jaxclf.models.kernels import LoraKernel
from jaxclf.models.layers import Gate


class Router(nnx.Module):
    """A score of every expert for a token.

    It is small, and what it chooses is sensitive: its `weight` `[D E]` is no kernel, so that
    neither quantisation nor adapters of all linear layers touch it.
    """

    def __init__(self, size_in: int, count: int, *, bias: bool, std: float, dtype: Any, rngs: Any):
        weight = jax.random.normal(rngs.params(), (size_in, count), jnp.float32) * std
        self.weight = nnx.Param(weight.astype(dtype))
        self.bias = nnx.Param(jnp.zeros(count, dtype)) if bias else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        scores = jnp.matmul(x, self.weight.get_value().astype(x.dtype))
        return scores if self.bias is None else scores + self.bias.get_value().astype(x.dtype)


class Grouped(nnx.Module):
    """A linear layer of each expert: kernels `[E in out]`, and biases `[E out]` if asked for."""

    def __init__(
        self,
        count: int,
        size_in: int,
        size_out: int,
        *,
        bias: bool,
        std: float,
        dtype: Any,
        rngs: Any,
    ):
        kernel = jax.random.normal(rngs.params(), (count, size_in, size_out), jnp.float32) * std
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.Param(jnp.zeros((count, size_out), dtype)) if bias else None

    def arrays(self, dtype: Any) -> "GroupedArrays":
        """What it multiplies with; quantised kernels of this layer are arrays here."""
        kernel, factors = self.kernel.get_value(), None
        if isinstance(kernel, LoraKernel):
            scale = kernel.scale[:, None, None].astype(dtype)
            factors = kernel.a.astype(dtype), kernel.b.astype(dtype) * scale
            kernel = kernel.base
        bias = None if self.bias is None else self.bias.get_value().astype(dtype)
        return GroupedArrays(kernels.plain(kernel, dtype), factors, bias)


class GroupedArrays(NamedTuple):
    """`[E in out]`, `[E in R]` with `[E R out]`, and `[E out]`; specs of their sharding too."""

    kernel: Any
    factors: Any
    bias: Any

    def __call__(
        self, rows: Float[Array, "S D"], counts: Int[Array, " E"], numbers: Int[Array, " S"]
    ) -> Float[Array, "S F"]:
        """Of rows laid by expert, `counts` of each; `numbers`: which expert a row is for."""
        found = jax.lax.ragged_dot(rows, self.kernel, counts)
        if self.factors is not None:
            a, b = self.factors
            found += jax.lax.ragged_dot(jax.lax.ragged_dot(rows, a, counts), b, counts)
        return found if self.bias is None else found + self.bias[numbers]

    def specs(self, rows: str | None, columns: str | None) -> "GroupedArrays":
        """How they are cut where the kernel's rows and columns are cut along these axes."""
        a, b = jax.P(None, rows, None), jax.P(None, None, columns)
        return GroupedArrays(
            jax.P(None, rows, columns),
            None if self.factors is None else (a, b),
            None if self.bias is None else jax.P(None, columns),
        )


class Routing(NamedTuple):
    """How many experts a token has, and with which weights.

    kind, normalised: they are a softmax over all experts, divided by their sum where `normalised`,
    or each is the sigmoid of its score. of_inputs: what experts read is multiplied by them, not
    what they give.
    """

    chosen: int
    kind: Literal["softmax", "sigmoid"]
    normalised: bool
    of_inputs: bool


class Experts(nnx.Module):
    """Of each token the weighted sum of its experts' `down(gate(gate(x), up(x)))`.

    Every device has its tokens, all experts, and of each the part that `tensor` cuts: sorting
    tokens crosses no device.
    """

    def __init__(
        self,
        hidden_size: int,
        size: int,
        count: int,
        routing: Routing,
        *,
        gate: Gate,
        shared: nnx.Module | None,
        bias: bool,
        std: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """count experts of `size`; shared: one that every token has beside its own.

        bias: of the router and of every expert's linear layers.
        """
        options = {"bias": bias, "std": std, "dtype": dtype, "rngs": rngs}
        self.router = Router(hidden_size, count, **options)
        self.gate, self.up = (Grouped(count, hidden_size, size, **options) for _ in range(2))
        self.down = Grouped(count, size, hidden_size, **options)
        self.shared, self.routing, self.gated = shared, routing, gate

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        found = self._chosen(x)
        return found if self.shared is None else found + self.shared(x)

    def _chosen(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        weights, experts = self.routed(x)
        layers = [each.arrays(x.dtype) for each in (self.gate, self.up, self.down)]
        gated, of_inputs = self.gated, self.routing.of_inputs

        def own(x, weights, experts, gate, up, down):
            if is_divided and down.bias is not None:  # of which each part would add all
                is_first = jax.lax.axis_index("tensor") == 0
                down = down._replace(bias=down.bias * is_first.astype(x.dtype))
            found = mixed(x, weights, experts, (gate, up, down), gated, of_inputs)
            return jax.lax.psum(found, "tensor") if is_divided else found

        sizes = sharding.sizes()
        size = layers[0].kernel.shape[-1]
        is_divided = sizes["tensor"] > 1 and size % sizes["tensor"] == 0
        if not sharding.is_cut():
            return own(x, weights, experts, *layers)
        cut = sharding.activation(x.shape, ("batch", "length", None), sizes)
        by_part = "tensor" if is_divided else None
        inner, outer = (None, by_part), (by_part, None)
        specs = [
            each.specs(*cuts) for each, cuts in zip(layers, (inner, inner, outer), strict=True)
        ]
        return jax.shard_map(own, in_specs=(cut, cut, cut, *specs), out_specs=cut, check_vma=False)(
            x, weights, experts, *layers
        )

    def routed(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T K"], Int[Array, "B T K"]]:
        """Weights (float32) and numbers of each token's experts, the heaviest first."""
        scores, routing = self.router(x).astype(jnp.float32), self.routing
        if routing.kind == "sigmoid":
            best, experts = jax.lax.top_k(scores, routing.chosen)
            return jax.nn.sigmoid(best), experts
        weights, experts = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), routing.chosen)
        if routing.normalised:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return weights, experts


def mixed(
    x: Float[Array, "B T D"],
    weights: Float[Array, "B T K"],
    experts: Int[Array, "B T K"],
    layers: tuple[GroupedArrays, GroupedArrays, GroupedArrays],
    gated: Gate,
    of_inputs: bool,
) -> Float[Array, "B T D"]:
    """The weighted sum over each token's experts; layers: gate, up and down of all of them.

    of_inputs: the sum over experts that read the token times its weight.
    """
    gate, up, down = layers
    tokens, chosen = x.reshape(-1, x.shape[-1]), experts.shape[-1]
    numbers = experts.reshape(-1)
    order = jnp.argsort(numbers, stable=True)
    counts = jnp.bincount(numbers, length=len(gate.kernel)).astype(jnp.int32)
    rows, by_expert = tokens[order // chosen], (counts, numbers[order])
    if of_inputs:
        rows *= weights.reshape(-1)[order][:, None].astype(x.dtype)
    inner = gated(gate(rows, *by_expert), up(rows, *by_expert))
    found = down(inner, *by_expert)
    back = jnp.argsort(order)
    found = found[back].reshape(*x.shape[:-1], chosen, x.shape[-1])
    if of_inputs:
        return jnp.sum(found, axis=-2)
    return jnp.einsum("btk,btkd->btd", weights.astype(x.dtype), found)
