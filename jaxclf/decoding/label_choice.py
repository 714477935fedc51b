"""How a decoder goes on from prompts where only labels may follow: functions to be jitted.

A `Read` is what a model keeps of the prompts (and of the answers so far). All that is fed after the
prompts goes through `_feed`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.types import AnyArray, Array, Bool, Float, Int
from jaxclf.data.batching import PromptBatch
from jaxclf.decoding.decode import ComputedPrefix
from jaxclf.decoding.trie import Radix, Trie
from jaxclf.models import layers
from jaxclf.models.kv_cache import Before, Cache

# Logits computed at once when nodes of a trie are scored: 128 MiB of float32.
_LOGITS = 2**25
NOT_FINITE = -2


class Read(NamedTuple):
    """Prompts, and what was fed after them.

    hidden: after each row's last token. seen: which slots of the cache hold a row's tokens. slot:
    the next free one. position: of each row's next token. before: the prefixes that rows share.
    """

    hidden: Float[Array, "B 1 D"]
    cache: Cache
    seen: Bool[Array, "B S"]
    slot: Int[Array, ""]
    position: Int[Array, " B"]
    before: Before | None = None


def begin(
    module: Any, prompt: PromptBatch, spare: int, prefix: ComputedPrefix | None = None
) -> Read:
    """Read prompts into a cache that has room for `spare` more tokens a row."""
    before = prefix.before(prompt) if prefix else None
    answer = prompt.answer
    spare += 0 if answer is None else answer.shape[1]
    hidden, cache = module.begin(
        prompt.tokens,
        prompt.positions,
        prompt.segment_ids,
        prompt.tokens.shape[1] + spare,
        before,
    )
    width = cache.key.shape[2] - spare  # of what an encoder read, one slot for the decoder's start
    seen = jnp.pad(jnp.asarray(prompt.segment_ids)[:, -width:] > 0, ((0, 0), (0, spare)))
    position = jnp.asarray(prompt.positions)[:, -1] + 1
    read = Read(hidden[:, -1:], cache, seen, jnp.int32(width), position, before)
    if answer is None:
        return read
    return advance(module, read, answer, np.full(len(answer), answer.shape[1], np.int32))


def advance(
    module: Any, read: Read, tokens: Int[AnyArray, "B T"], count: Int[AnyArray, " B"]
) -> Read:
    """Feed the first `count` of T tokens to each row; where it is 0, `hidden` means nothing."""
    rows, size = tokens.shape
    order = jnp.arange(size)
    earlier = jnp.broadcast_to(order <= order[:, None], (rows, size, size))
    hidden, cache = _feed(module, read, tokens, jnp.broadcast_to(order, tokens.shape), earlier)
    last = jnp.maximum(count - 1, 0)[:, None]
    filled = order < jnp.asarray(count)[:, None]
    return Read(
        layers.take_places(hidden, last),
        cache,
        jax.lax.dynamic_update_slice(read.seen, filled, (0, read.slot)),
        read.slot + jnp.max(count).astype(jnp.int32),
        read.position + count,
        read.before,
    )


def likeliest(
    module: Any, read: Read, radix: Radix, plan: Int[AnyArray, "B choices"], go_on: bool = False
) -> tuple[Int[Array, "B choices"], Read]:
    """Choose greedily within tries: the likeliest allowed token at each decision, ties to the lower
    id, with the forced run after it fed in the same step.

    `plan`: the roots, in a forest, of each row's tries in their order; -1 after its last. Returns
    the chosen labels (-1 where the plan is), and `read` with them fed if `go_on`. The cache needs
    `room` for them. A row whose best score is NaN or infinite ends with the label NOT_FINITE.
    """
    run, length, children, label = map(
        jnp.asarray, (radix.run, radix.length, radix.children, radix.label)
    )
    rows, most = plan.shape
    plan = jnp.pad(jnp.asarray(plan), ((0, 0), (0, 1)), constant_values=-1)
    each = jnp.arange(rows)

    def choose(hidden, node, place, last, chosen):
        """`last`: the node of the last run; where a row is done all stays as it is."""
        done = node < 0
        kids = children[jnp.maximum(node, 0)]
        scores = jnp.take_along_axis(module.logits(hidden)[:, 0], run[kids, 0], axis=1)
        scores = jnp.where(kids >= 0, scores, -jnp.inf)
        best = jnp.argmax(scores, axis=1)
        kid = jnp.take_along_axis(kids, best[:, None], axis=1)[:, 0]
        is_leaf = label[kid] >= 0
        fails = ~done & ~jnp.isfinite(jnp.max(scores, axis=1))
        found = jnp.where(done | ~is_leaf, chosen[each, place], label[kid])
        chosen = chosen.at[each, place].set(jnp.where(fails, NOT_FINITE, found))
        done |= fails
        place = jnp.where(done | ~is_leaf, place, place + 1)
        last = jnp.where(done, last, kid)
        return jnp.where(done, -1, jnp.where(is_leaf, plan[each, place], kid)), place, last, chosen

    def unfinished(carry):
        return jnp.any(carry[1] >= 0)

    def step(carry):
        read, node, place, last, chosen = carry
        read = advance(module, read, run[last], jnp.where(node < 0, 0, length[last]))
        return read, *choose(read.hidden, node, place, last, chosen)

    zeros = jnp.zeros(rows, jnp.int32)
    chosen = jnp.full((rows, most + 1), -1, jnp.int32)
    first = choose(read.hidden, plan[:, 0], zeros, zeros, chosen)
    read, _, _, last, chosen = jax.lax.while_loop(unfinished, step, (read, *first))
    if go_on:
        read = advance(module, read, run[last], length[last])
    return chosen[:, :most], read


def room(radix: Radix, plan: Int[np.ndarray, "B choices"]) -> int:
    """Slots that `likeliest` may need: each step takes as many as the longest run fed in it."""
    decisions = np.where(plan >= 0, radix.decisions[plan], 0)
    return int(decisions.max(axis=0, initial=0).sum()) * radix.run.shape[1]


def log_probabilities(
    module: Any, hidden: Float[Array, "B T D"], tokens: Int[AnyArray, "B T C"]
) -> Float[Array, "B T C"]:
    """log p of these tokens after each place, over the whole vocabulary, in float32."""
    logits = module.logits(hidden)
    found = jnp.take_along_axis(logits, jnp.asarray(tokens), axis=-1)
    return found - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def score_first(module: Any, read: Read, trie: Trie) -> Float[Array, "B first"]:
    """log p of `trie.first`, which needs nothing to be fed."""
    tokens = trie.token[trie.first]
    shape = (len(read.position), 1, len(tokens))
    return log_probabilities(module, read.hidden, jnp.broadcast_to(tokens, shape))[:, 0]


def score_nodes(
    module: Any, read: Read, trie: Trie, nodes: Int[AnyArray, "B nodes"]
) -> Float[Array, "B nodes most"]:
    """log p of the children of chosen inner nodes of each row, as many columns of `trie.children`
    as nodes other than the root need.

    The nodes of a row are fed as one tree: each sees what was read and its ancestors, which must
    be among the nodes and stand before it. 0, the root, which is never fed, fills up. Where there
    are too many logits, the nodes are fed in parts.
    """
    rows, count = nodes.shape
    parts = -(-count // max(1, _LOGITS // (rows * module.config.vocab_size)))
    size = -(-count // parts)
    nodes = jnp.pad(jnp.asarray(nodes), ((0, 0), (0, parts * size - count)))
    read = _with_room(read, parts * size)
    tokens, depths = jnp.maximum(jnp.asarray(trie.token), 0), jnp.asarray(trie.depth)
    most = (trie.children[1:] >= 0).sum(axis=1).max()
    children = tokens[jnp.asarray(trie.children[:, :most])]
    ancestors = jnp.asarray(trie.ancestors)

    def score(cache: Cache, start: Int[Array, ""]):
        part = jax.lax.dynamic_slice(nodes, (0, start), (rows, size))
        own = ancestors[part[:, :, None], nodes[:, None]] & (nodes > 0)[:, None]
        fed = read._replace(cache=cache)
        hidden, cache = _feed(module, fed, tokens[part], depths[part] - 1, own, start)
        return cache, log_probabilities(module, hidden, children[part])

    starts = jnp.arange(parts, dtype=jnp.int32) * size
    _, found = jax.lax.scan(score, read.cache, starts)
    return jnp.swapaxes(found, 0, 1).reshape(rows, parts * size, -1)[:, :count]


def take_rows(read: Read, rows: Int[AnyArray, " P"]) -> Read:
    """What was read of these rows."""
    cache, before = read.cache.rows(rows), read.before
    before = before and before._replace(seen=before.seen[rows])
    return Read(read.hidden[rows], cache, read.seen[rows], read.slot, read.position[rows], before)


def _with_room(read: Read, spare: int) -> Read:
    """The same with a longer cache."""
    seen = jnp.pad(read.seen, ((0, 0), (0, spare)))
    return read._replace(cache=read.cache.longer(spare), seen=seen)


def _feed(
    module: Any,
    read: Read,
    tokens: Int[AnyArray, "B T"],
    depths: Int[AnyArray, "B T"],
    own: Bool[AnyArray, "B T new"],
    start: Int[Array, ""] | int = 0,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Put T tokens into the slots from `start` after what was read.

    They stand `depths` after each row's last token, and see what was read and those of the `new`
    slots after it that `own` says.
    """
    size = read.seen.shape[1]
    mask = jnp.broadcast_to(read.seen[:, None], (*tokens.shape, size))
    mask = jax.lax.dynamic_update_slice(mask, jnp.asarray(own), (0, 0, read.slot))
    positions = read.position[:, None] + depths
    return module.extend(
        tokens, positions, mask[:, None], read.cache, read.slot + start, read.before
    )
