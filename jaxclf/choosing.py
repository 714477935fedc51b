"""How a decoder goes on from prompts where only labels may follow: functions to be jitted.

A `Read` is what a model keeps of the prompts (and of the answers so far). All that is fed after the
prompts goes through `_feed`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.data.pack import PromptBatch
from jaxclf.models import layers
from jaxclf.models.attention import Cache
from jaxclf.shapes import AnyArray, Array, Bool, Float, Int
from jaxclf.trie import Radix, Trie

# Logits computed at once when all nodes of a trie are scored: 128 MiB of float32.
_LOGITS = 2**25


class Read(NamedTuple):
    """Prompts, and what was fed after them.

    hidden: after each row's last token. seen: which slots of the cache hold a row's tokens. slot:
    the next free one. position: of each row's next token.
    """

    hidden: Float[Array, "B 1 D"]
    cache: Cache
    seen: Bool[Array, "B S"]
    slot: Int[Array, ""]
    position: Int[Array, "B"]


def begin(module: Any, prompt: PromptBatch, spare: int) -> Read:
    """Read prompts into a cache that has room for `spare` more tokens a row."""
    width = prompt.tokens.shape[1]
    hidden, cache = module.begin(prompt.tokens, prompt.positions, prompt.segment_ids, width + spare)
    seen = jnp.pad(jnp.asarray(prompt.segment_ids) > 0, ((0, 0), (0, spare)))
    position = jnp.asarray(prompt.positions)[:, -1] + 1
    return Read(hidden[:, -1:], cache, seen, jnp.int32(width), position)


def advance(
    module: Any, read: Read, tokens: Int[AnyArray, "B T"], count: Int[AnyArray, "B"]
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
    )


def likeliest(
    module: Any, read: Read, radix: Radix, plan: Int[AnyArray, "B choices"], go_on: bool = False
) -> tuple[Int[Array, "B choices"], Read]:
    """Choose greedily within tries: the likeliest allowed token at each decision, ties to the lower
    id, with the forced run after it fed in the same step.

    `plan`: the roots, in a forest, of each row's tries in their order; -1 after its last. Returns
    the chosen labels (-1 where the plan is), and `read` with them fed if `go_on`. The cache needs
    `room` for them.
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
        best = jnp.argmax(jnp.where(kids >= 0, scores, -jnp.inf), axis=1)
        kid = jnp.take_along_axis(kids, best[:, None], axis=1)[:, 0]
        is_leaf = label[kid] >= 0
        chosen = chosen.at[each, place].set(
            jnp.where(done | ~is_leaf, chosen[each, place], label[kid])
        )
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


def score_first(module: Any, read: Read, radix: Radix) -> Float[Array, "B most"]:
    """log p of the first token of each of the root's children."""
    tokens = radix.run[radix.children[0], 0]
    shape = (len(read.position), 1, len(tokens))
    return log_probabilities(module, read.hidden, jnp.broadcast_to(tokens, shape))[:, 0]


def score_all(module: Any, read: Read, trie: Trie) -> Float[Array, "B C"]:
    """log p of each label of a trie: the sum over its tokens.

    All inner nodes are fed as one tree, of which each sees the row's own tokens and its ancestors;
    in parts where there are too many.
    """
    rows, count = len(read.position), trie.inner - 1
    top = jnp.broadcast_to(trie.token[trie.children[0]], (rows, 1, trie.children.shape[1]))
    found = [log_probabilities(module, read.hidden, top)[:, 0]]
    if count:
        found.append(_score_inner(module, read, trie).reshape(rows, -1))
    # Where each node's log p stands in the rows so far; the root adds the 0 after the last.
    flat = jnp.pad(jnp.concatenate(found, axis=1), ((0, 0), (0, 1)))
    place = np.full(len(trie.token), flat.shape[1] - 1)
    place[trie.children[trie.children >= 0]] = np.flatnonzero(trie.children >= 0)
    deepest = int(trie.depth.max())
    paths = np.empty((len(trie.leaf), deepest), np.int32)
    node = trie.leaf
    for step in range(deepest):
        paths[:, step] = place[node]
        node = np.maximum(trie.parent[node], 0)
    return flat[:, paths].sum(axis=-1)


def _score_inner(module: Any, read: Read, trie: Trie) -> Float[Array, "B nodes most"]:
    """log p of the children of every inner node but the root."""
    rows, count = len(read.position), trie.inner - 1
    parts = -(-count // max(1, _LOGITS // (rows * module.config.vocab_size)))
    size = -(-count // parts)
    nodes = np.arange(1, parts * size + 1).reshape(parts, size)
    nodes = np.minimum(nodes, count)  # the last part is filled up with the last node
    read = _with_room(read, parts * size)
    sees = trie.ancestors[:, 1 : trie.inner]  # of all nodes fed; the root is in the prompt

    def score(cache: Cache, part):
        nodes, start = part
        own = jnp.pad(sees, ((0, 0), (0, parts * size - count)))[nodes]
        tokens = jnp.broadcast_to(jnp.asarray(trie.token)[nodes], (rows, size))
        depths = jnp.broadcast_to(jnp.asarray(trie.depth)[nodes] - 1, (rows, size))
        own = jnp.broadcast_to(own, (rows, *own.shape))
        hidden, cache = _feed(module, read._replace(cache=cache), tokens, depths, own, start)
        children = jnp.asarray(trie.token)[jnp.asarray(trie.children)[nodes]]
        targets = jnp.broadcast_to(children, (rows, *children.shape))
        return cache, log_probabilities(module, hidden, targets)

    starts = np.arange(parts, dtype=np.int32) * size
    _, found = jax.lax.scan(score, read.cache, (jnp.asarray(nodes), jnp.asarray(starts)))
    return jnp.swapaxes(found, 0, 1).reshape(rows, parts * size, -1)[:, :count]


def score_pairs(
    module: Any,
    read: Read,
    radix: Radix,
    rows: Int[AnyArray, "P"],
    nodes: Int[AnyArray, "P"],
    width: int,
) -> tuple[Float[Array, "P"], Float[Array, "P most"]]:
    """For pairs of a row and a node: log p of the node's run after its first token, and of the
    first tokens of its children.

    Nothing of the row is read again; the tokens from the root on are, at most `width`, so that a
    pair depends on no other. A leaf's own last token need not be fed.
    """
    path, depth, length = map(jnp.asarray, (radix.path, radix.depth, radix.length))
    depth, length = depth[nodes], length[nodes]
    path = jnp.pad(path, ((0, 0), (0, max(0, width + 1 - path.shape[1]))))[nodes, : width + 1]
    order = jnp.arange(width)
    earlier = jnp.broadcast_to(order <= order[:, None], (len(depth), width, width))
    depths = jnp.broadcast_to(order, (len(depth), width))
    hidden, _ = _feed(module, take_rows(read, rows), path[:, :-1], depths, earlier)
    following = log_probabilities(module, hidden, path[:, 1:, None])[..., 0]
    in_run = (order >= (depth - length)[:, None]) & (order < depth[:, None] - 1)
    ends = layers.take_places(hidden, jnp.minimum(depth - 1, width - 1)[:, None])
    firsts = jnp.asarray(radix.run[:, 0])[jnp.asarray(radix.children)[nodes]]
    return (
        jnp.sum(jnp.where(in_run, following, 0), axis=1),
        log_probabilities(module, ends, firsts[:, None])[:, 0],
    )


def take_rows(read: Read, rows: Int[AnyArray, "P"]) -> Read:
    """What was read of these rows."""
    cache = Cache(read.cache.key[:, rows], read.cache.value[:, rows])
    return Read(read.hidden[rows], cache, read.seen[rows], read.slot, read.position[rows])


def _with_room(read: Read, spare: int) -> Read:
    """The same with a longer cache."""

    def longer(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0), (0, 0)))

    cache = Cache(longer(read.cache.key), longer(read.cache.value))
    return read._replace(cache=cache, seen=jnp.pad(read.seen, ((0, 0), (0, spare))))


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
    return module.extend(tokens, positions, mask[:, None], read.cache, read.slot + start)
