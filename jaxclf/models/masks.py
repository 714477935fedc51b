"""Who sees whom: masks as arrays, and what kernels need to know instead of them."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Bool, Float, Int, Prefixes
from jaxclf.models import shared_prefix_attention
from jaxclf.models.layers import take_places
from jaxclf.models.shared_prefix_attention import SharedMask

Implementation = Literal["plain", "cudnn", "splash"]

BY_BACKEND: dict[str, Implementation] = {"tpu": "splash", "gpu": "cudnn"}  # else plain


def causal_mask(
    segment_ids: Int[AnyArray, "B T"], window: int | None = None
) -> Bool[Array, "B 1 T T"]:
    """True where a query may look: its own segment, itself and earlier; segment 0 is padding.

    window: the most tokens that it sees, itself among them.
    """
    count = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    earlier = jnp.tril(jnp.ones((count, count), bool))
    if window is not None:
        earlier &= ~jnp.tril(earlier, -window)
    return (same & earlier & (segment_ids[:, None, :] > 0))[:, None]


def full_mask(
    segment_ids: Int[AnyArray, "B T"], window: int | None = None
) -> Bool[Array, "B 1 T T"]:
    """True where a query may look: anywhere in its own segment; segment 0 is padding.

    Padding looks at all texts of its row, as in transformers; nothing looks at padding. window: it
    sees tokens fewer than so many places away.
    """
    query = segment_ids[:, :, None]
    same = (query == segment_ids[:, None, :]) | (query == 0)
    seen = jnp.asarray(same & (segment_ids[:, None, :] > 0))
    if window is not None:
        seen &= near(jnp.arange(segment_ids.shape[1]), segment_ids.shape[1], window, False)
    return seen[:, None]


def near(places: Int[Array, " Q"], count: int, window: int, causal: bool) -> Bool[Array, "Q T"]:
    """Which of `count` places are fewer than `window` before these, or, not causal, after them."""
    apart = places[:, None] - jnp.arange(count)
    return (apart if causal else jnp.abs(apart)) < window


class Sight(NamedTuple):
    """How far a layer's queries see among what they may see; None: all of it.

    window: so many tokens, the query's own among them. chunk: the tokens whose positions divided by
    it give what the query's does.
    """

    window: int | None = None
    chunk: int | None = None

    def reaches(
        self, query: Int[AnyArray, "B T"], key: Int[AnyArray, "*rows S"]
    ) -> Bool[Array, "B T S"]:
        """Which positions are near enough; keys may be those of one row that all share."""
        query, key = jnp.asarray(query)[:, :, None], jnp.atleast_2d(jnp.asarray(key))[:, None]
        near = jnp.ones(jnp.broadcast_shapes(query.shape, key.shape), bool)
        if self.window is not None:
            near &= query - key < self.window
        if self.chunk is not None:
            near &= query // self.chunk == key // self.chunk
        return near


EVERYTHING = Sight()


class Outer(NamedTuple):
    """Keys and values beside a row's own, the same for all rows: those of prefixes.

    numbers: which prefix each is of. seen: which prefix each of the row's tokens sees; 0: none.
    """

    key: Float[Array, "P K H"]
    value: Float[Array, "P K H"]
    numbers: Int[Array, " P"]
    seen: Int[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """What queries may see, for kernels that make no mask: tokens of their own segment `ids`.

    lengths: where every row holds one text, from its first place on, the tokens of that text.
    outer: what they see beside. window: see `visible`.
    """

    ids: Int[AnyArray, "B T"]
    causal: bool = dataclasses.field(metadata={"static": True})
    implementation: Implementation = dataclasses.field(metadata={"static": True})
    lengths: Int[AnyArray, "B 1"] | None = None
    outer: tuple[Outer, ...] = ()
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    def after(self, key: Float[Array, "P K H"], value: Float[Array, "P K H"]) -> "Segments":
        """The same with keys and values that every token sees."""
        everywhere = Outer(key, value, jnp.ones(len(key), jnp.int32), jnp.ones_like(self.ids))
        return dataclasses.replace(self, outer=(*self.outer, everywhere))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedSegments:
    """The same where rows begin with C tokens of prefixes that they share, see `Prefixes`.

    numbers: which prefix these tokens are of, laid row after row; they see its earlier ones. seen:
    which prefix each of the row's `own` tokens continues. 0: none.
    """

    numbers: Int[AnyArray, "B C"]
    seen: Int[AnyArray, "B T"]
    own: Segments

    def after(self, key: Float[Array, "P K H"], value: Float[Array, "P K H"]) -> "SharedSegments":
        """The same with keys and values that every token sees."""
        return dataclasses.replace(self, own=self.own.after(key, value))


Visible = Bool[Array, "B 1 T S"] | Segments | SharedMask | SharedSegments


def visible(
    segment_ids: Int[AnyArray, "B T"],
    causal: bool,
    implementation: Implementation,
    lengths: Int[AnyArray, "B 1"] | None = None,
    window: int | None = None,
) -> Bool[Array, "B 1 T T"] | Segments:
    """What tokens may see of their own row, in the form that the implementation reads.

    `window`: each sees tokens fewer than so many places before it, or, where the order is not
    causal, to both sides.
    """
    if implementation == "plain":
        return (causal_mask if causal else full_mask)(segment_ids, window)
    return Segments(segment_ids, causal, implementation, lengths, window=window)


def visible_after(
    prefixes: Prefixes,
    positions: Int[AnyArray, "B CT"],
    segment_ids: Int[AnyArray, "B T"],
    implementation: Implementation,
    sight: Sight = EVERYTHING,
) -> SharedMask | SharedSegments:
    """The same, of earlier tokens, for rows that begin with their part of the prefixes.

    `positions`: of all tokens of a row; its own go on from the end of the prefix that they see.
    Kernels see everything.
    """
    _, _, numbers, seen = prefixes
    if implementation != "plain":
        assert sight == EVERYTHING, "kernels see all of a shared prefix"
        return SharedSegments(numbers, seen, Segments(segment_ids, True, implementation))
    lead = numbers.shape[1]
    own = causal_mask(segment_ids)
    found = shared_prefix_attention.training_mask(numbers, seen, positions, own)
    if sight == EVERYTHING:
        return found
    places, own_places = jnp.ravel(positions[:, :lead]), positions[:, lead:]
    return dataclasses.replace(
        found,
        seen=found.seen & sight.reaches(positions, places),
        own=own & sight.reaches(own_places, own_places)[:, None],
    )


def at_places(mask: Visible, places: Int[AnyArray, "B J"]) -> Bool[Array, "B 1 J S"] | SharedMask:
    """What these places alone may see; kernels that make no mask compute all places."""
    assert not isinstance(mask, Segments | SharedSegments)
    if isinstance(mask, SharedMask):
        return mask.at(places)
    return take_places(mask[:, 0], places)[:, None]
