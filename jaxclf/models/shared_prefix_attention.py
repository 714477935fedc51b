"""Attention where rows see, before their own tokens, prefixes that they share: without a copy.

Scores against the prefixes and against the row's own tokens are computed apart and meet in one
softmax, so the result is that of rows which begin with the whole prefix each.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Bool, Float, Int
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import constrain
from jaxclf.models import layers

# Of one head; a few times that many are in use at once.
_SCORES_AT_ONCE = 1 << 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedMask:
    """What tokens may see where prefixes are shared.

    seen: of all P prefix tokens. own: of the row's own S tokens, which the last O places see. lead:
    the first places of each row that hold a part of the prefixes: laid row after row they are the
    last of the P. key, value: of the others, computed before.
    """

    seen: Bool[Array, "B T P"]
    own: Bool[Array, "B 1 O S"]
    lead: int = dataclasses.field(default=0, metadata={"static": True})
    key: Float[Array, "E K H"] | None = None
    value: Float[Array, "E K H"] | None = None

    def at(self, places: Int[AnyArray, "B J"]) -> "SharedMask":
        """What these places may see, none of which belongs to a prefix."""
        own = layers.take_places(self.own[:, 0], places - self.lead)[:, None]
        return dataclasses.replace(self, seen=layers.take_places(self.seen, places), own=own)

    def after(self, key: Float[Array, "E K H"], value: Float[Array, "E K H"]) -> "SharedMask":
        """The same with keys and values before all others, which every token sees."""
        seen = jnp.pad(self.seen, ((0, 0), (0, 0), (len(key), 0)), constant_values=True)
        if self.key is not None and self.value is not None:
            key = jnp.concatenate([key.astype(self.key.dtype), self.key])
            value = jnp.concatenate([value.astype(self.value.dtype), self.value])
        return dataclasses.replace(self, seen=seen, key=key, value=value)


def training_mask(
    numbers: Int[AnyArray, "B C"],
    seen: Int[AnyArray, "B T"],
    positions: Int[AnyArray, "B CT"],
    own: Bool[Array, "B 1 T T"],
) -> SharedMask:
    """What rows may see that begin with C tokens of the prefixes `numbers` (0: padding).

    `seen`: the number of the prefix that each own token continues (0: none). Tokens of a prefix see
    its earlier ones; `positions` go on from its end.
    """
    lead = numbers.shape[1]
    prefixes, places = jnp.ravel(jnp.asarray(numbers)), jnp.ravel(positions[:, :lead])
    continued = jnp.concatenate([numbers, seen], axis=1)[..., None]
    visible = (continued == prefixes) & (prefixes > 0) & (places <= positions[..., None])
    return SharedMask(visible, own, lead)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: SharedMask,
    cap: float = 0.0,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention over prefixes and own tokens; scores and softmax are float32.

    `cap`, `sinks`: as of `attention.attend`.
    """
    before = _prefixes(key, mask.key, mask), _prefixes(value, mask.value, mask)
    own_key, own_value = key[:, mask.lead :], value[:, mask.lead :]
    rows, places, total = mask.seen.shape
    count = places - mask.own.shape[2]  # of each row's queries that belong to the prefixes
    softmax = functools.partial(_softmax, cap=cap, sinks=sinks)
    whole = sharding.rows() > 1  # on a mesh every device has its rows, and all at once
    found = [
        softmax(
            query[part, count:],
            (*before, mask.seen[part, count:]),
            (own_key[part], own_value[part], mask.own[part]),
        )
        for part in _parts(rows, 1 if whole else _count(rows * (places - count), total))
    ]
    found = jnp.concatenate(found)
    if not count:
        return found
    first, seen = query[:, :count], mask.seen[:, :count]
    if whole:
        first = softmax(first, (*before, seen))
    else:
        first, seen = laid(first)[None], seen.reshape(1, rows * count, total)
        start = total - rows * count
        pieces = []
        for part in _parts(rows * count, _count(rows * count, total)):
            end = start + part.stop  # no token of a prefix sees what lies after it
            visible = before[0][:end], before[1][:end], seen[:, part, :end]
            pieces.append(softmax(first[:, part], visible))
        first = jnp.concatenate(pieces, axis=1).reshape(rows, count, *first.shape[2:])
    return jnp.concatenate([first, found], axis=1)


def _count(queries: int, keys: int) -> int:
    """In how many parts queries attend, so that the scores of one are near a processor's cache."""
    return 1 << min(3, max(1, queries * keys // _SCORES_AT_ONCE).bit_length() - 1)


def _parts(size: int, count: int) -> list[slice]:
    """`size` places in about `count` parts of equal length, but for the last."""
    step = -(-size // count)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _prefixes(
    rows: Float[Array, "B S K H"], before: Float[Array, "E K H"] | None, mask: SharedMask
) -> Float[Array, "P K H"]:
    """Keys or values of all prefixes: what was computed before, then each row's part."""
    found = laid(rows[:, : mask.lead])
    if before is not None:
        found = jnp.concatenate([before.astype(found.dtype), found])
    return constrain(found, None, "heads", None)


def laid(parts: Float[Array, "B C K H"]) -> Float[Array, "P K H"]:
    """Every row's part of the prefixes, one row after the other, whole on each device."""
    return constrain(parts.reshape(-1, *parts.shape[2:]), None, "heads", None)


def _softmax(
    query: Float[Array, "B T N H"],
    prefixes: tuple[Float[Array, "P K H"], Float[Array, "P K H"], Bool[Array, "B T P"]],
    own: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"], Bool[Array, "B 1 T S"]]
    | None = None,
    *,
    cap: float,
    sinks: Float[Array, " N"] | None,
) -> Float[Array, "B T N H"]:
    """Attention over one or two blocks of keys, values and what is seen of them."""
    rows, count, heads, size = query.shape
    key, value, seen = prefixes
    # Key heads first: all rows' queries against a prefix are then one matmul each.
    query = query.reshape(rows, count, key.shape[1], -1, size).transpose(2, 0, 3, 1, 4)
    blocks = [(key.transpose(1, 0, 2), value.transpose(1, 0, 2), seen[:, None])]
    if own is not None:
        key, value, seen = own
        blocks.append((key.transpose(2, 0, 1, 3), value.transpose(2, 0, 1, 3), seen))
    query = query * size**-0.5
    if cap or sinks is not None:
        if sinks is not None:
            sinks = sinks.astype(jnp.float32).reshape(len(query), 1, -1, 1, 1)
        found, _ = _forward(query, blocks, cap, sinks)
    else:
        found = _attend(query, blocks)
    return found.transpose(1, 3, 0, 2, 4).reshape(rows, count, heads, size)


# Of the prefixes' keys and values, and of those of each row's own.
_SCORES = ("kbgth,kph->kbgtp", "kbgth,kbsh->kbgts")
_FOUND = ("kbgtp,kph->kbgth", "kbgts,kbsh->kbgth")
_GRADIENT = ("kbgth,kbgtp->khp", "kbgth,kbgts->kbhs")

_Block = tuple[Float[Array, "K ... H"], Float[Array, "K ... H"], Bool[Array, "..."]]


@jax.custom_vjp
def _attend(
    query: Float[Array, "K B G T H"], blocks: Sequence[_Block]
) -> Float[Array, "K B G T H"]:
    """One softmax over all blocks of keys, values and masks; the query is scaled already.

    With a gradient rule of its own, as the derived one transposes every array of scores.
    """
    return _forward(query, blocks)[0]


def _forward(
    query: Float[Array, "K B G T H"],
    blocks: Sequence[_Block],
    cap: float = 0.0,
    sinks: Float[Array, "K 1 G 1 1"] | None = None,
):
    def scored(equation: str, key: Float[Array, "K ... H"], seen: Bool[Array, "..."]):
        found = _product(equation, query, key)
        found = cap * jnp.tanh(found / cap) if cap else found
        return jnp.where(seen[None], found, jnp.finfo(jnp.float32).min)

    scores = [
        scored(equation, key, seen)
        for equation, (key, _, seen) in zip(_SCORES, blocks, strict=False)
    ]
    tops = [jnp.max(block, axis=-1, keepdims=True) for block in scores]
    top = functools.reduce(jnp.maximum, tops if sinks is None else [*tops, sinks])
    weights = [jnp.exp(block - top) for block in scores]
    total = jnp.zeros(()) if sinks is None else jnp.exp(sinks - top)
    found = jnp.zeros(())
    for equation, block, (_, value, _) in zip(_FOUND, weights, blocks, strict=False):
        total += jnp.sum(block, axis=-1, keepdims=True)
        found += _product(equation, block.astype(value.dtype), value)
    found = (found / total).astype(query.dtype)
    return found, (query, blocks, weights, total, found)


def _backward(kept, gradient: Float[Array, "K B G T H"]):
    """Source: Dao et al. 2022, algorithm 4, with weights that are not divided by their total."""
    query, blocks, weights, total, found = kept
    inner = jnp.sum(gradient * found, axis=-1, keepdims=True, dtype=jnp.float32) / total
    gradient = (gradient / total).astype(query.dtype)
    of_query, of_blocks = jnp.zeros(()), []
    for place, (block, (key, value, _)) in enumerate(zip(weights, blocks, strict=True)):
        of_value = _product(_GRADIENT[place], gradient, block.astype(query.dtype))
        of_scores = block * (_product(_SCORES[place], gradient, value) - inner)
        of_scores = of_scores.astype(query.dtype)
        of_query += _product(_FOUND[place], of_scores, key)
        of_key = _product(_GRADIENT[place], query, of_scores)
        pair = ((of_key, key), (of_value, value))
        of_blocks.append((*(new.swapaxes(-1, -2).astype(old.dtype) for new, old in pair), None))
    return of_query.astype(query.dtype), of_blocks


_attend.defvjp(_forward, _backward)


def _product(equation: str, first: Float[Array, "..."], second: Float[Array, "..."]):
    return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32)
