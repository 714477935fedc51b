"""Probabilities of all labels of a trie: exact, or up to a bound on what was left unread.

A node's probability bounds those of all labels below it, so a trie need be read only where
probability goes: for a sure model that is little more than one label.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxclf import choosing, sharding, trie
from jaxclf.choosing import Read
from jaxclf.models.zoo import Model
from jaxclf.shapes import Bool, Float, Int, Params
from jaxclf.trie import Ids

Normalise = Literal["none", "length", "pmi", "contextual"]
# What stands in the text's place to measure how likely labels are without one.
CONTENT_FREE = {"pmi": "", "contextual": "N/A"}
# The share of a trie's nodes that are read one by one; where more are wanted, all are, at once.
_ONE_BY_ONE = 0.5


class Ranked(NamedTuple):
    """log p of each label of each row, and the share of probability that was left unread.

    That share is of the labels' probability; labels that were not told apart have equal parts.
    """

    log_p: Float[np.ndarray, "B C"]
    unread: Float[np.ndarray, "B"]


class Ranker:
    """Scores one set of labels. Compiled programs are kept, one per prompt shape."""

    def __init__(self, model: Model, labels: tuple[Ids, ...], end: int):
        self.trie = trie.make(labels, end)
        self.radix = radix = trie.join(self.trie)
        self.tokens = np.array(self.trie.depth[self.trie.leaf])
        bind = model.bind

        def first(params: Params, read: Read):
            return sharding.everywhere(choosing.score_first(bind(params), read, radix))

        def whole(params: Params, read: Read, rows):
            read = read if rows is None else choosing.take_rows(read, rows)
            return sharding.everywhere(choosing.score_all(bind(params), read, self.trie))

        def pairs(params: Params, read: Read, rows, nodes, width: int):
            found = choosing.score_pairs(bind(params), read, radix, rows, nodes, width)
            return sharding.everywhere(found)

        self._first, self._whole = jax.jit(first), jax.jit(whole)
        self._pairs = jax.jit(pairs, static_argnames="width")

    @property
    def room(self) -> int:
        """Slots that a cache needs to spare."""
        return _width(int(self.fed.max()))

    @property
    def fed(self) -> Int[np.ndarray, "M"]:
        """How many tokens are fed to read a node: a leaf's last one is not."""
        return self.radix.depth - (self.radix.label >= 0)

    def __call__(self, params: Params, read: Read, count: int, bound: float = 0.0) -> Ranked:
        """The first `count` rows' labels; at most a share `bound` of their probability is unread.

        The likeliest label is the exact one in any case. What a row gets depends on no other row.
        """
        if not bound:
            log_p = np.asarray(self._whole(params, read, None))[:count]
            return Ranked(log_p, np.zeros(count, np.float32))
        search = _Search(self, np.asarray(self._first(params, read))[:count], bound)
        while len(pairs := search.wanted()):
            search.read(pairs, *self.read(params, read, pairs))
        log_p, unread = search.result()
        unsure = np.flatnonzero(search.unsure)
        if len(unsure):
            # Two compiled shapes: few rows, or as many as the batch has.
            few = -(-len(read.position) // 4)
            rows = np.resize(unsure, few if len(unsure) <= few else len(read.position))
            log_p[unsure] = np.asarray(self._whole(params, read, rows))[: len(unsure)]
            unread[unsure] = 0
        return Ranked(log_p, unread)

    def read(
        self, params: Params, read: Read, pairs: Int[np.ndarray, "pairs 2"]
    ) -> tuple[Float[np.ndarray, "pairs"], Float[np.ndarray, "pairs most"]]:
        """What `score_pairs` says of (row, node) pairs, as many a call as the batch has rows."""
        size = len(read.position)
        fed = self.fed[pairs[:, 1]]
        order = np.argsort(fed, kind="stable")
        calls = []
        for start in range(0, len(pairs), size):
            chosen = order[start : start + size]
            filled = np.resize(pairs[chosen], (size, 2))
            width = _width(int(fed[chosen].max()))
            calls.append(self._pairs(params, read, filled[:, 0], filled[:, 1], width=width))
        runs, children = map(np.concatenate, zip(*jax.device_get(calls), strict=True))
        inverse = np.argsort(order)
        return runs[: len(pairs)][inverse], children[: len(pairs)][inverse]


class _Search:
    """Which nodes were read for each row, and how likely each is."""

    def __init__(self, ranker: Ranker, first: Float[np.ndarray, "B most"], bound: float):
        self.radix, self.bound = ranker.radix, bound
        shape = len(first), len(self.radix.label)
        self.most = _ONE_BY_ONE * ranker.trie.inner
        self.log_p = np.full(shape, -np.inf)
        self.open = np.zeros(shape, bool)  # reached, but not read
        self.leaf = self.radix.label >= 0
        self.pairs = np.zeros(len(first), int)
        self.unsure = np.zeros(len(first), bool)  # rows that want more than that share
        rows = np.arange(len(first))
        self.reach(rows, np.zeros(len(first), int), first)

    def reach(self, rows, nodes, children: Float[np.ndarray, "pairs most"]) -> None:
        """Note the children of nodes; a leaf of one token needs no reading."""
        kids = self.radix.children[nodes]
        pair, which = np.nonzero(kids >= 0)
        kid = kids[pair, which]
        self.log_p[rows[pair], kid] = children[pair, which]
        self.open[rows[pair], kid] = ~(self.leaf[kid] & (self.radix.length[kid] == 1))

    def wanted(self) -> Int[np.ndarray, "pairs 2"]:
        """The likeliest open nodes, up to where the rest is within the bound.

        And those that could still hold the likeliest label; none of rows that are unsure.
        """
        p = np.exp(self.log_p)
        unread = np.where(self.open, p, 0)
        found = np.where(self.leaf & ~self.open, p, 0)
        total = unread.sum(axis=1) + found.sum(axis=1)
        order = np.argsort(unread, axis=1)
        left = np.cumsum(np.take_along_axis(unread, order, axis=1), axis=1)
        beyond = np.empty_like(self.open)
        np.put_along_axis(beyond, order, left > self.bound * total[:, None], axis=1)
        wanted = self.open & (beyond | (unread > found.max(axis=1, keepdims=True)))
        self.pairs += wanted.sum(axis=1)
        self.unsure |= self.pairs > np.maximum(1, self.most)
        return np.argwhere(wanted & ~self.unsure[:, None])

    def read(self, pairs, runs: Float[np.ndarray, "pairs"], children) -> None:
        """Take in what `score_pairs` says of these pairs."""
        rows, nodes = pairs.T
        self.log_p[rows, nodes] += runs
        self.open[rows, nodes] = False
        self.reach(rows, nodes, self.log_p[rows, nodes][:, None] + children)

    def result(self) -> Ranked:
        below: Bool[np.ndarray, "M C"] = self.radix.above
        p = np.exp(self.log_p)
        unread = np.where(self.open, p, 0)
        parts = unread / np.maximum(1, below.sum(axis=1)) + np.where(self.leaf & ~self.open, p, 0)
        labels = parts @ below
        with np.errstate(divide="ignore"):
            log_p = np.log(labels).astype(np.float32)
        total = np.maximum(labels.sum(axis=1), np.finfo(float).tiny)
        return Ranked(log_p, (unread.sum(axis=1) / total).astype(np.float32))


def probabilities(
    log_p: Float[np.ndarray, "B C"],
    normalise: Normalise,
    tokens: Int[np.ndarray, "C"],
    prior: Float[np.ndarray, "B C"] | None = None,
) -> Float[np.ndarray, "B C"]:
    """Probabilities of labels that sum to 1, from their log p and how many `tokens` they have.

    "none": as the model has them, among the labels alone. "length": of the mean over a label's
    tokens. "pmi" (log p minus log p after an empty text; Holtzman et al. 2021, domain conditional)
    and "contextual" (p divided by p after the text "N/A"; Zhao et al. 2021, W = diag(p)^-1) both
    take `prior`, the log p after that text.
    """
    scores = log_p.astype(np.float64)
    if normalise == "length":
        scores = scores / tokens
    elif normalise != "none":
        assert prior is not None
        scores = scores - prior
    best = scores.max(axis=1, keepdims=True)
    odds = np.exp(scores - np.where(np.isfinite(best), best, 0))
    total = odds.sum(axis=1, keepdims=True)
    # Where no label has any probability left in float32, all are alike.
    return np.where(total > 0, odds / np.where(total > 0, total, 1), 1 / odds.shape[1])


def _width(count: int) -> int:
    """The next power of two: few compiled shapes."""
    return 1 << max(0, count - 1).bit_length()
