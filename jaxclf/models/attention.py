"""Masks, grouped-query attention, the kernels of each backend, and the key/value cache."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf import sharding
from jaxclf.models import shared
from jaxclf.models.layers import dropout, take_places
from jaxclf.models.shared import Shared
from jaxclf.shapes import AnyArray, Array, Bool, Float, Int, Key, Prefixes, Shaped
from jaxclf.sharding import constrain


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


Implementation = Literal["plain", "cudnn", "splash"]
BY_BACKEND: dict[str, Implementation] = {"tpu": "splash", "gpu": "cudnn"}  # else plain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """What queries may see, for kernels that make no mask: tokens of their own segment `ids`."""

    ids: Int[AnyArray, "B T"]
    causal: bool = dataclasses.field(metadata={"static": True})
    implementation: Implementation = dataclasses.field(metadata={"static": True})


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


Visible = Bool[Array, "B 1 T S"] | Segments | Shared | SharedSegments


def visible(
    segment_ids: Int[AnyArray, "B T"], causal: bool, implementation: Implementation
) -> Visible:
    """What tokens may see of their own row, in the form that the implementation reads."""
    if implementation == "plain":
        return causal_mask(segment_ids) if causal else full_mask(segment_ids)
    return Segments(segment_ids, causal, implementation)


def visible_after(
    prefixes: Prefixes,
    positions: Int[AnyArray, "B CT"],
    segment_ids: Int[AnyArray, "B T"],
    implementation: Implementation,
) -> Shared | SharedSegments:
    """The same, of earlier tokens, for rows that begin with their part of the prefixes.

    `positions`: of all tokens of a row; its own go on from the end of the prefix that they see.
    """
    _, _, numbers, seen = prefixes
    if implementation == "plain":
        return shared.training_mask(numbers, seen, positions, causal_mask(segment_ids))
    return SharedSegments(numbers, seen, Segments(segment_ids, True, implementation))


def at_places(mask: Visible, places: Int[AnyArray, "B J"]) -> Bool[Array, "B 1 J S"] | Shared:
    """What these places alone may see; kernels that make no mask compute all places."""
    assert not isinstance(mask, Segments | SharedSegments)
    if isinstance(mask, Shared):
        return mask.at(places)
    return take_places(mask[:, 0], places)[:, None]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Visible,
    rate: float = 0.0,
    random_key: Key[Array, ""] | None = None,
    *,
    bias: Float[Array, "_ N T S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention scaled by 1/sqrt(H), or by `scale`; each key head serves N/K query heads.

    Scores and softmax are float32; a key turns dropout of the weights on. `bias` is added to scores
    after scaling. These three take a mask. A query that may see nothing gets a finite value that
    means nothing.
    """
    query = constrain(query, "batch", "length", "heads", None)
    key, value = (constrain(each, "batch", None, "heads", None) for each in (key, value))
    if isinstance(mask, Segments):
        found = _within(query, key, value, mask)
    elif isinstance(mask, SharedSegments):
        found = _within_shared(query, key, value, mask)
    elif isinstance(mask, Shared):
        found = shared.attend(query, key, value, mask)
    else:
        found = _plain(query, key, value, mask, rate, random_key, bias, scale)
    return sharding.heads(found)


def _plain(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"],
    rate: float,
    random_key: Key[Array, ""] | None,
    bias: Float[Array, "_ N T S"] | None,
    scale: float | None,
) -> Float[Array, "B T N H"]:
    rows, count, heads, size = query.shape
    group = heads // key.shape[2]
    # Heads before tokens, and the queries of a group below each other: matmuls of whole blocks.
    # XLA on a CPU takes a seventh longer for a step with heads or groups between them.
    query, key, value = (jnp.swapaxes(each, 1, 2) for each in (query, key, value))
    query = query.reshape(rows, -1, group * count, size)
    scores = jnp.einsum("bkth,bksh->bkts", query, key, preferred_element_type=jnp.float32)
    mask = jnp.tile(mask, (1, 1, group, 1))
    scores = scores * (size**-0.5 if scale is None else scale)
    if bias is not None:
        scores += bias.reshape(len(bias), -1, group * count, bias.shape[-1])
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, random_key)
    found = jnp.einsum("bkts,bksh->bkth", weights.astype(value.dtype), value)
    return jnp.swapaxes(found.reshape(rows, heads, count, size), 1, 2)


def _within(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """By a kernel, tokens of each segment alone."""
    if segments.implementation == "splash":
        from jaxclf.models import splash  # Pallas takes a second to import

        return splash.attend(query, key, value, jnp.asarray(segments.ids), segments.causal)
    mask = causal_mask(segments.ids) if segments.causal else full_mask(segments.ids)
    return _cudnn(query, key, value, mask)


def _within_shared(
    query: Float[Array, "B CT N H"],
    key: Float[Array, "B CT K H"],
    value: Float[Array, "B CT K H"],
    mask: SharedSegments,
) -> Float[Array, "B CT N H"]:
    """By a kernel, prefixes alone and then what continues them."""
    rows, lead = mask.numbers.shape
    numbers, seen = jnp.ravel(jnp.asarray(mask.numbers)), jnp.asarray(mask.seen)
    first, prefix_key, prefix_value = (shared.laid(each[:, :lead]) for each in (query, key, value))
    query, key, value = (each[:, lead:] for each in (query, key, value))
    of_prefix = Segments(numbers[None], True, mask.own.implementation)
    first = _within(first[None], prefix_key[None], prefix_value[None], of_prefix)
    first = constrain(first.reshape(rows, lead, *first.shape[2:]), "batch", None, "heads", None)
    if mask.own.implementation == "splash":
        from jaxclf.models import splash

        prefix, ids = (prefix_key, prefix_value, numbers), jnp.asarray(mask.own.ids)
        rest = splash.attend_after(query, key, value, ids, prefix, seen)
    else:
        # jax rounds cuDNN's log-sum-exps to bfloat16, too coarse to merge by: each row has a copy.
        def after(prefix, own):
            prefix = jnp.broadcast_to(prefix, (rows, *prefix.shape))
            return constrain(jnp.concatenate([prefix, own], axis=1), "batch", None, "heads", None)

        sees_prefix = (seen[..., None] == numbers) & (numbers > 0)
        sees = jnp.concatenate([sees_prefix[:, None], causal_mask(mask.own.ids)], axis=-1)
        rest = _cudnn(query, after(prefix_key, key), after(prefix_value, value), sees)
    return jnp.concatenate([first, rest], axis=1)


def _cudnn(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"],
) -> Float[Array, "B T N H"]:
    """cuDNN's flash attention; XLA's own where it has none for these numbers (float32)."""
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] % 8 == 0
    count = query.shape[1]
    query, key, value = (_even(each, 1) for each in (query, key, value))
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=_even(_even(mask, 2), 3),
        implementation="cudnn" if fits else "xla",
    )[:, :count]


def _even(x: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
    """`x` with a zero more where an axis is odd, of which cuDNN has no gradients."""
    if x.shape[axis] % 2 == 0:
        return x
    return jnp.pad(x, [(0, 1 if each == axis else 0) for each in range(x.ndim)])


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
        mask: Visible,
    ) -> tuple[Float[Array, "B _ K H"], Float[Array, "B _ K H"], Bool[Array, "B 1 T _"] | Shared]:
        """Keys, values and mask with the prefix in front; models that have one make masks."""
        assert not isinstance(mask, Segments | SharedSegments)
        if isinstance(mask, Shared):
            own = self.key.get_value(), self.value.get_value()
            return key, value, mask.after(*(each.astype(key.dtype) for each in own))

        def extended(param, rest):
            own = param.get_value().astype(rest.dtype)
            return jnp.concatenate([jnp.broadcast_to(own, (len(rest), *own.shape)), rest], axis=1)

        count = self.key.get_value().shape[0]
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (count, 0)), constant_values=True)
        return extended(self.key, key), extended(self.value, value), mask


def prefix(count: int, heads: int, head_dim: int, **options) -> Prefix | None:
    """A layer's prefix, or None where the model has none."""
    return Prefix(count, heads, head_dim, **options) if count else None


class Source(NamedTuple):
    """An encoder's outputs as keys and values of every layer of its decoder, and which are seen."""

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    seen: Bool[Array, "B S"]


class Cache(NamedTuple):
    """Keys and values of every layer for S slots.

    `positions`: of the slots' tokens, where keys do not hold theirs. `source`: what the rows of a
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

    def rows(self, rows: Int[AnyArray, "P"]) -> "Cache":
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
    """Shared prefixes computed before: their keys and values, and which of P tokens a row sees."""

    cache: Cache  # of one row
    seen: Bool[Array, "B P"]

    def mask(self, own: Visible, layer: Int[Array, ""]) -> Shared:
        """What tokens see of one layer: `own` places of their row (a mask) after the prefixes."""
        assert isinstance(own, jax.Array)
        rows, _, count, _ = own.shape
        seen = jnp.broadcast_to(self.seen[:, None], (rows, count, self.seen.shape[1]))
        return Shared(seen, own, key=self.cache.key[layer, 0], value=self.cache.value[layer, 0])
