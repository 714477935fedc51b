"""Building blocks that all models share: matmul, linear, embedding, norms, rotary positions, scan.

Modules are Flax NNX for their definition only: what trains, shards and is stored is the plain
nested dict of arrays that `pure_params` returns.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int, Key, Params, Shaped
from jaxclf.distributed import sharding
from jaxclf.models import kernels
from jaxclf.models.kernels import Kernel, LoraKernel


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
    """`x / sqrt(mean(x²) + eps) * scale`, reduced in float32.

    Source: Zhang & Sennrich 2019, equation 4; the cast before the scale follows Llama's release.
    """

    def __init__(self, size: int, *, eps: float, dtype: Any):
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return self.scale.get_value().astype(x.dtype) * x32.astype(x.dtype)


class LayerNorm(nnx.Module):
    """See `layer_norm`."""

    def __init__(self, size: int, *, eps: float, dtype: Any):
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.bias = nnx.Param(jnp.zeros(size, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return layer_norm(x, self.scale.get_value(), self.bias.get_value(), self.eps)


def layer_norm(
    x: Float[AnyArray, "*batch D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*batch D"]:
    """`(x - mean) / sqrt(variance + eps) * scale + bias`, reduced in float32.

    Source: Ba et al. 2016.
    """
    x = jnp.asarray(x)
    x32 = x.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normal = (centered * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
    return normal * scale.astype(x.dtype) + bias.astype(x.dtype)


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
    """Llama 3.1's stretching of rotary wavelengths past the length seen in pretraining."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[Array, " half_H"]:
    """Radians per position for each of the H/2 rotated pairs, float32.

    Source: Su et al. 2021; with `scaling`, Llama 3.1: wavelengths beyond
    original_max_position / low_freq_factor are divided by `factor`, those below
    original_max_position / high_freq_factor stay, between them both are blended.
    """
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rope_angles(
    positions: Int[AnyArray, "B T"], frequencies: Float[Array, " half_H"], dtype: Any = jnp.float32
) -> tuple[Float[Array, "B T 1 H"], Float[Array, "B T 1 H"]]:
    """Cosine and sine for every position, computed in float32, for `rotate`."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(
    x: Float[Array, "B T heads H"],
    cos: Float[Array, "B T 1 H"],
    sin: Float[Array, "B T 1 H"],
) -> Float[Array, "B T heads H"]:
    """Turn each pair (i, i + H/2) by its angle (the rotate-half layout of transformers)."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = (jnp.split(each.astype(x.dtype), 2, axis=-1)[0] for each in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules as one whose parameters have a leading L axis, each from its own key."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), count)
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys))


Places = Int[AnyArray, "B J"]
Body = Callable[[Any, Any, Int[Array, ""], Places | None], Any]


def scan_layers(
    layers: nnx.Module,
    body: Body,
    carry: Any,
    remat: bool,
    unroll: int = 1,
    at: Places | None = None,
    alone: bool = True,
) -> Any:
    """Thread `carry` through `body(layer, carry, index, at)` for every stacked layer.

    One compiled body serves all layers. With `remat` a layer's activations are computed again in
    the backward pass, so that only each layer's input is kept; without, what kernels and matrix
    products with parameters gave is kept too, and on a CPU, where memory is cheap and norms and
    activations are not, everything. `unroll` layers are compiled one by
    one and looped over: it saves copies into and out of the stack, and costs time to compile. `at`:
    the places that alone are wanted of the last layer; where all layers are compiled one by one,
    there are fewer than tokens and `alone` allows it, that layer computes no others. In all other
    calls of `body` it is None.
    """
    graphdef, params = nnx.split(layers)
    count = jax.tree.leaves(params)[0].shape[0]

    def step(carry, item, at=None):
        layer_params, index = item
        return body(nnx.merge(graphdef, layer_params), carry, index, at), None

    def checkpointed(step, prevent_cse: bool):
        if not remat and sharding.platform() == "cpu":
            return step
        return jax.checkpoint(step, prevent_cse=prevent_cse, policy=None if remat else _is_dear)

    if unroll >= count:
        step = checkpointed(step, prevent_cse=True)
        apart = [_parts(leaf) for leaf in jax.tree.leaves(params)]
        *first, last = (
            (jax.tree.unflatten(jax.tree.structure(params), parts), jnp.int32(index))
            for index, parts in enumerate(zip(*apart, strict=True))
        )
        for item in first:
            carry, _ = step(carry, item)
        if alone and at is not None and at.shape[1] < carry.shape[1]:
            return step(carry, last, at)[0]
        carry, _ = step(carry, last)
    else:
        # Inside a scan no common-subexpression elimination crosses iterations.
        step = checkpointed(step, prevent_cse=False)
        carry, _ = jax.lax.scan(step, carry, (params, jnp.arange(count)), unroll=unroll)
    return carry if at is None else take_places(carry, at)


def _is_dear(primitive: Any, *arguments: Any, **params: Any) -> bool:
    """Whether an operation's result is kept where all else is computed again.

    Source: Korthikanti et al. 2022, section 5 (selective activation recomputation).
    """
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    is_kernel = primitive.name == "pallas_call" or "attention" in primitive.name
    return is_kernel or products(primitive, *arguments, **params)


def _parts(stack: Shaped[Array, "L ..."]) -> list[Array]:
    """Each layer's part; unlike indexing, its gradient is one concatenation."""
    return [jnp.squeeze(part, 0) for part in jax.lax.split(stack, (1,) * len(stack))]


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
