"""Building blocks that all models share: matmul, linear, embedding, norms, rotary positions, scan.

Modules are Flax NNX for their definition only: what trains, shards and is stored is the plain
nested dict of arrays that `pure_params` returns.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int, Key, Params, Shaped
from jaxclf.distributed import sharding
from jaxclf.models import kernels
from jaxclf.models.kernels import Kernel, LoraKernel

ACTIVATIONS: dict[str, Callable[[Any], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """What feed-forward makes of its two projections: `activation(gate) * up`.

    limit: above 0 it is `(up + 1) * gate * sigmoid(alpha * gate)` instead, of gates that are at
    most that and of `up` between it and its negative. Source: OpenAI 2025 (gpt-oss).
    """

    activation: str
    limit: float = 0.0
    alpha: float = 0.0

    def __call__(
        self, gate: Float[Array, "*batch F"], up: Float[Array, "*batch F"]
    ) -> Float[Array, "*batch F"]:
        if not self.limit:
            return ACTIVATIONS[self.activation](gate) * up
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * gate * jax.nn.sigmoid(self.alpha * gate)


def matmul(x: Float[Array, "*batch D"], kernel: Kernel) -> Float[Array, "*batch F"]:
    """`x @ kernel` in the dtype of `x`: the one place where a kernel's kind is chosen."""
    if sharding.is_cut():  # rows and tokens, cut apart, could not be cut as one dimension
        return _multiply(x, kernel)
    # Two dimensions: XLA's CPU backend takes up to twice as long for the gradients of three.
    y = _multiply(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _multiply(x: Float[Array, "*batch D"], kernel: Kernel) -> Float[Array, "*batch F"]:
    if not isinstance(kernel, LoraKernel):
        return jnp.matmul(x, kernels.plain(kernel, x.dtype))
    low = dropout(x, kernel.dropout, kernel.key) @ kernel.a.astype(x.dtype)
    y = _multiply(x, kernel.base) + low @ kernel.b.astype(x.dtype) * kernel.scale.astype(x.dtype)
    if kernel.magnitude is None:
        return y
    # Norms count as constants in the gradient. Source: Liu et al. 2024, section 4.3.
    norms = jax.lax.stop_gradient(kernels.column_norms(kernel))
    return y * (kernel.magnitude / norms).astype(x.dtype)


class Linear(nnx.Module):
    """A kernel `[in, out]`, started from a normal of deviation `std`, and a bias if asked for."""

    def __init__(
        self,
        size_in: int,
        size_out: int,
        *,
        std: float,
        dtype: Any,
        rngs: nnx.Rngs,
        bias: bool = False,
    ):
        kernel = jax.random.normal(rngs.params(), (size_in, size_out), jnp.float32) * std
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.Param(jnp.zeros(size_out, dtype)) if bias else None

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        y = matmul(x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias.get_value().astype(x.dtype)


class Embed(nnx.Module):
    """A table `[V, D]`; `attend` uses its transpose as unembedding (tied weights)."""

    def __init__(self, vocab_size: int, size: int, *, std: float, dtype: Any, rngs: nnx.Rngs):
        table = jax.random.normal(rngs.params(), (vocab_size, size), jnp.float32) * std
        self.embedding = nnx.Param(table.astype(dtype))

    def __call__(self, tokens: Int[AnyArray, "B T"]) -> Float[Array, "B T D"]:
        return sharding.looked_up(kernels.take(self.embedding.get_value(), tokens))

    def attend(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        return matmul(x, kernels.plain(self.embedding.get_value(), x.dtype).T)


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x²) + eps) * scale`, reduced in float32; with `offset` times 1 + scale.

    Source: Zhang & Sennrich 2019, equation 4; the cast before the scale follows Llama's release,
    the one after it Gemma's, whose stored scales are those around 0.
    """

    def __init__(self, size: int, *, eps: float, dtype: Any, offset: bool = False):
        self.scale = nnx.Param((jnp.zeros if offset else jnp.ones)(size, dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        x32, scale = rms_normalised(x, self.eps), self.scale.get_value()
        if self.offset:
            return (x32 * (1 + scale.astype(jnp.float32))).astype(x.dtype)
        return scale.astype(x.dtype) * x32.astype(x.dtype)


def rms_normalised(x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """`x / sqrt(mean(x²) + eps)` in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


class LayerNorm(nnx.Module):
    """See `layer_norm`."""

    def __init__(self, size: int, *, eps: float, dtype: Any, bias: bool = True):
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.bias = nnx.Param(jnp.zeros(size, dtype)) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        bias = None if self.bias is None else self.bias.get_value()
        return layer_norm(x, self.scale.get_value(), bias, self.eps)


def layer_norm(
    x: Float[AnyArray, "*batch D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    eps: float,
) -> Float[Array, "*batch D"]:
    """`(x - mean) / sqrt(variance + eps) * scale + bias`, reduced in float32.

    Source: Ba et al. 2016.
    """
    x = jnp.asarray(x)
    x32 = x.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normal = (centered * jax.lax.rsqrt(variance + eps)).astype(x.dtype) * scale.astype(x.dtype)
    return normal if bias is None else normal + bias.astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """`x` with a share `rate` of its elements zeroed and the rest raised to keep the mean.

    Without a key, or at rate 0, `x` itself: what evaluation computes. Source: Srivastava et al.
    2014. The rate is met to 1/65,536, so that one random word serves two elements.
    """
    if key is None or rate == 0:
        return x
    *rest, size = x.shape
    words = jax.random.bits(key, (*rest, (size + 1) // 2), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*rest, -1)[..., :size]
    kept = bits >= round(rate * 2**16)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: Key[Array, ""] | None, count: int) -> Sequence[Key[Array, ""] | None]:
    """`count` keys of one; None stays None, and dropout off."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def fold_key(key: Key[Array, ""] | None, index: Int[Array, ""]) -> Key[Array, ""] | None:
    """The key of a layer; None stays None."""
    return None if key is None else jax.random.fold_in(key, index)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary wavelengths are stretched past the length seen in pretraining, by `kind`.

    llama3    those beyond original_max_position / low_freq_factor are divided by `factor`, those
              below original_max_position / high_freq_factor stay, between them both are blended
    linear    all are divided by `factor`
    yarn      the same blend between the pairs that turn beta_slow and beta_fast times within
              original_max_position (whole pairs, if `truncate`). Source: Peng et al. 2023
    longrope  each pair has a divisor of its own: of `short_factor`, or of `long_factor` where a
              row goes past original_max_position. Source: Ding et al. 2024

    `attention_factor`: what cosines and sines are multiplied by.
    """

    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    kind: Literal["llama3", "linear", "yarn", "longrope"] = "llama3"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


def rope_frequencies(
    rotated: int,
    theta: float,
    scaling: RopeScaling | None = None,
    positions: Int[AnyArray, "B T"] | None = None,
) -> Float[Array, "*rows pairs"]:
    """Radians per position for each pair of the `rotated` first elements of a head, float32.

    `positions`: on those of a row longrope depends. Source: Su et al. 2021.
    """
    frequencies = 1.0 / theta ** (jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "longrope":
        assert positions is not None
        is_long = jnp.max(jnp.asarray(positions), axis=-1) >= scaling.original_max_position
        is_long = is_long[:, None, None]
        short, long = (jnp.asarray(each) for each in (scaling.short_factor, scaling.long_factor))
        return frequencies / jnp.where(is_long, long, short).astype(jnp.float32)
    if scaling.kind == "yarn":
        blend = 1 - _yarn_ramp(rotated, theta, scaling)
    else:
        turns = scaling.original_max_position * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        blend = jnp.clip((turns - low) / (high - low), 0.0, 1.0) if low < high else turns > low
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn_ramp(rotated: int, theta: float, scaling: RopeScaling) -> Float[Array, " pairs"]:
    """From 0 at the pair that turns beta_fast times to 1 at the one that turns beta_slow times."""

    def pair(turns: float) -> float:
        wavelength = scaling.original_max_position / (turns * 2 * math.pi)
        return rotated * math.log(wavelength) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    high += 0.001 if low == high else 0.0
    return jnp.clip((jnp.arange(rotated // 2, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)


def rope_angles(
    positions: Int[AnyArray, "B T"],
    frequencies: Float[Array, "*rows pairs"],
    dtype: Any = jnp.float32,
    factor: float = 1.0,
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    """Cosine and sine for every position times `factor`, computed in float32, for `rotate`."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
    return (factor * jnp.cos(angles)).astype(dtype), (factor * jnp.sin(angles)).astype(dtype)


Rope = tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]  # cosine and sine


class Temperature(NamedTuple):
    """What queries are multiplied by in layers that do not rotate."""

    factor: Float[Array, "B T 1 1"]


def temperature(
    positions: Int[AnyArray, "B T"], floor: float, scale: float, dtype: Any = jnp.float32
) -> Temperature:
    """`1 + scale · log(1 + ⌊(position + 1) / floor⌋)`, so that weights stay sharp far on.

    Source: Nakanishi 2025 (scalable softmax), as Llama 4 has it.
    """
    steps = jnp.floor((jnp.asarray(positions).astype(jnp.float32) + 1) / floor)
    return Temperature((1 + scale * jnp.log1p(steps)).astype(dtype)[..., None, None])


def rope(
    positions: Int[AnyArray, "B T"],
    rotated: int,
    theta: float,
    scaling: RopeScaling | None = None,
    dtype: Any = jnp.float32,
) -> Rope:
    """What `rotate` turns the `rotated` first elements of heads at these positions by."""
    frequencies = rope_frequencies(rotated, theta, scaling, positions)
    factor = 1.0 if scaling is None else scaling.attention_factor
    return rope_angles(positions, frequencies, dtype, factor)


def rotate(
    x: Float[Array, "B T heads H"],
    cos: Float[Array, "B T 1 R"],
    sin: Float[Array, "B T 1 R"],
    interleaved: bool = False,
) -> Float[Array, "B T heads H"]:
    """Turn each pair (i, i + R/2) of the first R elements by its angle; the others stay.

    interleaved: pairs are (2i, 2i + 1).
    """
    rotated = cos.shape[-1]
    rest = [x[..., rotated:]] if rotated < x.shape[-1] else []
    cos, sin = (jnp.split(each.astype(x.dtype), 2, axis=-1)[0] for each in (cos, sin))
    if interleaved:
        first, second = x[..., :rotated:2], x[..., 1:rotated:2]
    else:
        first, second = jnp.split(x[..., :rotated], 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        turned = [jnp.stack(turned, axis=-1).reshape(*x.shape[:-1], rotated)]
    return jnp.concatenate([*turned, *rest], axis=-1)


Places = Int[AnyArray, "B J"]


def take_places(x: Shaped[AnyArray, "B T *rest"], at: Places) -> Shaped[Array, "B J *rest"]:
    """What stands at these places of each row."""
    return jnp.take_along_axis(jnp.asarray(x), at[(..., *[None] * (x.ndim - 2))], axis=1)


def filled(x: Shaped[Array, "..."], axis: int, multiple: int) -> Shaped[Array, "..."]:
    """`x` with zeros at the end of an axis, of which kernels take whole blocks."""
    short = -x.shape[axis] % multiple
    if not short:
        return x
    return jnp.pad(x, [(0, short if each == axis else 0) for each in range(x.ndim)])


def pure_params(module: nnx.Module) -> Params:
    """The module's parameters as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))
