"""Attention where rows see, before their own tokens, prefixes that they share: without a copy.

Scores against the prefixes and against the row's own tokens are computed apart and meet in one
softmax, so the result is that of rows which begin with the whole prefix each.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxclf.models import layers
from jaxclf.shapes import AnyArray, Array, Bool, Float, Int
from jaxclf.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
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

    def at(self, places: Int[AnyArray, "B J"]) -> "Shared":
        """What these places may see, none of which belongs to a prefix."""
        own = layers.take_places(self.own[:, 0], places - self.lead)[:, None]
        return dataclasses.replace(self, seen=layers.take_places(self.seen, places), own=own)

    def after(self, key: Float[Array, "E K H"], value: Float[Array, "E K H"]) -> "Shared":
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
) -> Shared:
    """What rows may see that begin with C tokens of the prefixes `numbers` (0: padding).

    `seen`: the number of the prefix that each own token continues (0: none). Tokens of a prefix see
    its earlier ones; `positions` go on from its end.
    """
    lead = numbers.shape[1]
    prefixes, places = jnp.ravel(jnp.asarray(numbers)), jnp.ravel(positions[:, :lead])
    continued = jnp.concatenate([numbers, seen], axis=1)[..., None]
    visible = (continued == prefixes) & (prefixes > 0) & (places <= positions[..., None])
    return Shared(visible, own, lead)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Shared,
) -> Float[Array, "B T N H"]:
    """Softmax attention over prefixes and own tokens; scores and softmax are float32."""
    prefix_key, prefix_value = _prefixes(key, mask.key, mask), _prefixes(value, mask.value, mask)
    key, value = key[:, mask.lead :], value[:, mask.lead :]
    count = query.shape[1] - mask.own.shape[2]  # queries that belong to the prefixes
    rest = _both(
        query[:, count:], prefix_key, prefix_value, mask.seen[:, count:], (key, value, mask.own)
    )
    if not count:
        return rest
    first = _both(query[:, :count], prefix_key, prefix_value, mask.seen[:, :count], None)
    return jnp.concatenate([first, rest], axis=1)


def _prefixes(
    rows: Float[Array, "B S K H"], before: Float[Array, "E K H"] | None, mask: Shared
) -> Float[Array, "P K H"]:
    """Keys or values of all prefixes: what was computed before, then each row's part."""
    found = laid(rows[:, : mask.lead])
    if before is not None:
        found = jnp.concatenate([before.astype(found.dtype), found])
    return constrain(found, None, "heads", None)


def laid(parts: Float[Array, "B C K H"]) -> Float[Array, "P K H"]:
    """Every row's part of the prefixes, one row after the other, whole on each device."""
    return constrain(parts.reshape(-1, *parts.shape[2:]), None, "heads", None)


def _both(
    query: Float[Array, "B T N H"],
    prefix_key: Float[Array, "P K H"],
    prefix_value: Float[Array, "P K H"],
    seen: Bool[Array, "B T P"],
    own: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"], Bool[Array, "B 1 T S"]] | None,
) -> Float[Array, "B T N H"]:
    rows, count, heads, size = query.shape
    # Key heads first: all rows' queries against a prefix are then one matmul each.
    query = query.reshape(rows, count, prefix_key.shape[1], -1, size).transpose(2, 0, 3, 1, 4)
    query = query * size**-0.5
    scores = [_masked(_product("kbgth,pkh->kbgtp", query, prefix_key), seen[:, None])]
    values = [("kbgtp,pkh->kbgth", prefix_value)]
    if own is not None:
        key, value, mask = own
        scores.append(_masked(_product("kbgth,bskh->kbgts", query, key), mask))
        values.append(("kbgts,bskh->kbgth", value))
    tops = [jnp.max(block, axis=-1, keepdims=True) for block in scores]
    top = jax.lax.stop_gradient(jnp.max(jnp.concatenate(tops, axis=-1), axis=-1, keepdims=True))
    weights = [jnp.exp(block - top) for block in scores]
    total, found = jnp.zeros(()), jnp.zeros(())
    for block, (equation, each) in zip(weights, values, strict=True):
        total += jnp.sum(block, axis=-1, keepdims=True)
        found += _product(equation, block.astype(each.dtype), each)
    found = (found / total).astype(prefix_value.dtype)
    return found.transpose(1, 3, 0, 2, 4).reshape(rows, count, heads, size)


def _product(equation: str, first: Float[Array, "..."], second: Float[Array, "..."]):
    return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32)


def _masked(scores: Float[Array, "K B G T S"], mask: Bool[Array, "B 1 T S"]):
    return jnp.where(mask[None], scores, jnp.finfo(jnp.float32).min)
