"""Keys and values of tokens that were read before: of a prompt, of a prefix, of an encoder."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Bool, Float, Int
from jaxclf.distributed.sharding import constrain
from jaxclf.models.masks import EVERYTHING, Outer, Segments, Sight, Visible
from jaxclf.models.shared_prefix_attention import SharedMask


class Source(NamedTuple):
    """An encoder's outputs as keys and values of every layer of its decoder, and which are seen."""

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    seen: Bool[Array, "B S"]


class Cache(NamedTuple):
    """Keys and values of every layer for S slots.

    `positions`: of the slots' tokens, where keys do not hold theirs or layers see some of them
    alone. `source`: what the rows of a
    decoder with an encoder see beside the slots.
    """

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"] | None = None
    source: Source | None = None

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], dtype) -> "Cache":
        """All zeros, of shape [L, B, S, K, H]."""
        return cls(_cut_cache(jnp.zeros(shape, dtype)), _cut_cache(jnp.zeros(shape, dtype)))

    def write(
        self,
        layer: Int[Array, ""],
        slot: Int[Array, ""] | int,
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
    ) -> "Cache":
        """Put the keys and values of T tokens at `slot` and on, for one layer."""
        at = (layer, 0, slot, 0, 0)

        def written(whole, new):
            new = constrain(new, "batch", None, "heads", None)[None].astype(whole.dtype)
            return _cut_cache(jax.lax.dynamic_update_slice(whole, new, at))

        return self._replace(key=written(self.key, key), value=written(self.value, value))

    def rows(self, rows: Int[AnyArray, " P"]) -> "Cache":
        """What is kept of these rows."""
        positions, source = self.positions, self.source
        if positions is not None:
            positions = positions[rows]
        if source is not None:
            source = Source(source.key[:, rows], source.value[:, rows], source.seen[rows])
        return Cache(self.key[:, rows], self.value[:, rows], positions, source)

    def longer(self, spare: int) -> "Cache":
        """The same with `spare` more slots."""

        def padded(x, axis: int):
            return jnp.pad(x, [(0, spare if each == axis else 0) for each in range(x.ndim)])

        positions = None if self.positions is None else padded(self.positions, 1)
        return Cache(padded(self.key, 2), padded(self.value, 2), positions, self.source)


def _cut_cache(x: Float[Array, "L B S K H"]) -> Float[Array, "L B S K H"]:
    return constrain(x, None, "batch", None, "heads", None)


class Before(NamedTuple):
    """Shared prefixes computed before: keys and values of one row, the number of the prefix that
    each of its P tokens is of, and of the one that each row continues (0: none)."""

    cache: Cache
    numbers: Int[Array, " P"]
    seen: Int[Array, " B"]

    def mask(
        self,
        own: Visible,
        layer: Int[Array, ""],
        positions: Int[AnyArray, "B T"],
        sight: Sight = EVERYTHING,
    ) -> SharedMask | Segments:
        """What tokens see of one layer: `own` places of their row after the prefixes."""
        key, value = self.cache.key[layer, 0], self.cache.value[layer, 0]
        if isinstance(own, Segments):
            assert sight == EVERYTHING, "kernels see all of a shared prefix"
            seen = jnp.broadcast_to(self.seen[:, None], own.ids.shape)
            outer = Outer(key, value, self.numbers, seen)
            return dataclasses.replace(own, outer=(*own.outer, outer))
        assert isinstance(own, jax.Array)
        rows, _, count, _ = own.shape
        seen = (self.seen[:, None] == self.numbers) & (self.numbers > 0)
        seen = jnp.broadcast_to(seen[:, None], (rows, count, seen.shape[1]))
        if sight != EVERYTHING:
            assert self.cache.positions is not None
            seen &= sight.reaches(positions, self.cache.positions[0])
        return SharedMask(seen, own, key=key, value=value)
