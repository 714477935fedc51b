"""Adam's moments in 8 bits: blocks of numbers with a scale each, rounded by chance.

Source: Dettmers et al. 2022 (8-bit optimizers via block-wise quantization). Instead of their table
of codes a power of the code: near 0, where most of a block's numbers are, codes lie closer, and it
takes no look-up. Rounding by chance, which is right in the mean: a second moment that decays by a
thousandth a step would stay where it is if it were rounded to the nearest code.
"""

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclf.adapters.partition import is_stacked
from jaxclf.core.types import Array, Float, Key, Shaped, Tree, path_name

BLOCK = 128  # numbers of one scale at most, neighbours along the last dimension
_SMALLEST = 4096  # numbers of a leaf (of one layer) that is worth it


class Moment(NamedTuple):
    """A leaf of an optimizer's state in 8 bits."""

    codes: Shaped[Array, "..."]  # int8 of a first moment, uint8 of a second
    scale: Float[Array, "..."]  # the largest absolute value of each block, float32


def eight_bit(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` with its first and second moments (`mu` and `nu`, as optax names them) in 8 bits.

    Vectors, small leaves, and those whose last dimension has no blocks, stay float32. `update`
    takes a random `key` beside what optax gives, of which the same bits come on every mesh.
    """

    def init(params: Tree) -> Any:
        return encoded(inner.init(params), jax.random.key(0))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any):
        key: Key[Array, ""] = extra["key"]
        updates, state = inner.update(updates, decoded(state), params)
        return updates, encoded(state, key)

    return optax.GradientTransformationExtraArgs(init, update)


def encoded(state: Any, key: Key[Array, ""]) -> Any:
    """The state with each moment that is worth it as a `Moment`."""

    def one(path, leaf):
        name = path_name(path)
        signed = _is_signed(name)
        if signed is None or not (block := _block(name, leaf)):
            return leaf
        return encode(leaf, block, signed, chances(key, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(one, state)


def chances(key: Key[Array, ""], path: str, shape: tuple[int, ...]) -> Shaped[Array, "..."]:
    """Random uint16 to round the leaf at `path` with: of its own, and the same on every mesh."""
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return jax.random.bits(own, shape, jnp.uint16)


def decoded(state: Any) -> Any:
    """The state in float32."""
    return jax.tree.map(
        lambda leaf: decode(leaf) if is_moment(leaf) else leaf, state, is_leaf=is_moment
    )


def is_moment(node: Any) -> bool:
    return isinstance(node, Moment)


def encode(x: Float[Array, "..."], block: int, signed: bool, bits: Shaped[Array, "..."]) -> Moment:
    """Codes c of which sign(c)·(|c|/127)² times the block's scale is `x` in the mean.

    Of a second moment, which is never negative, (c/255)⁴: so its root has the precision of a first
    moment and a bit more. No positive number becomes 0, by which an update would be divided.
    """
    parts = x.reshape(*x.shape[:-1], -1, block)
    scale = jnp.max(jnp.abs(parts), axis=-1)
    share = jnp.abs(parts) / jnp.where(scale > 0, scale, 1)[..., None]
    exact = _ROOTS[signed](share) * _LARGEST[signed]
    chance = bits.astype(jnp.float32).reshape(parts.shape) / 2**16
    codes = jnp.floor(exact + chance).astype(jnp.int32)
    codes = jnp.clip(codes, jnp.where((share > 0) & (not signed), 1, 0), _LARGEST[signed])
    if signed:
        codes = jnp.where(parts < 0, -codes, codes)
    return Moment(codes.astype(jnp.int8 if signed else jnp.uint8).reshape(x.shape), scale)


def decode(moment: Moment) -> Float[Array, "..."]:
    """The numbers of a moment, float32."""
    codes, scale = moment
    signed = codes.dtype == jnp.int8
    share = codes.astype(jnp.float32).reshape(*scale.shape, -1) / _LARGEST[signed]
    share = share * jnp.abs(share) if signed else jnp.square(jnp.square(share))
    return (share * scale[..., None]).reshape(codes.shape)


_LARGEST = {True: 127, False: 255}
_ROOTS = {True: jnp.sqrt, False: lambda share: jnp.sqrt(jnp.sqrt(share))}


def _is_signed(name: str) -> bool | None:
    """Of the state's leaf: whether it is a first moment; None where it is no moment."""
    parts = name.split("/")
    return True if "mu" in parts else False if "nu" in parts else None


def _block(name: str, leaf: Float[Array, "..."]) -> int:
    """Numbers of a block; 0 where the leaf stays as it is. The same on every mesh."""
    shape = leaf.shape[1:] if is_stacked(name) else leaf.shape
    if len(shape) < 2 or math.prod(shape) < _SMALLEST:
        return 0
    block = math.gcd(shape[-1], BLOCK)
    return block if block >= 32 else 0
