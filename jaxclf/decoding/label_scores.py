"""Probabilities of all labels of a trie: exact, or up to a bound on what was left unread.

A node's probability bounds those of all labels below it, so a trie need be read only where
probability goes: for a sure model that is little more than one label.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxclf.core.finite import check_scores
from jaxclf.core.types import Bool, Float, Int, Params
from jaxclf.decoding import label_choice, trie
from jaxclf.decoding.label_choice import Read
from jaxclf.decoding.trie import Ids, Trie
from jaxclf.distributed import sharding
from jaxclf.models.registry import Model

Normalise = Literal["none", "length", "pmi", "contextual"]
# What stands in the text's place to measure how likely labels are without one.
CONTENT_FREE = {"pmi": "", "contextual": "N/A"}
# The share of a trie's inner nodes (and no less than one label's) above which all are read at once.
_MANY = 0.25


class Ranked(NamedTuple):
    """log p of each label of each row, and the share of probability that was left unread.

    That share is of the labels' probability; labels that were not told apart have equal parts.
    """

    log_p: Float[np.ndarray, "B C"]
    unread: Float[np.ndarray, " B"]


class Ranker:
    """Scores one set of labels. Compiled programs are kept, one per prompt shape and width."""

    def __init__(self, model: Model, labels: tuple[Ids, ...], end: int):
        self.trie = trie.make(labels, end)
        self.tokens = np.array(self.trie.depth[self.trie.leaf])  # of each label

        def first(params: Params, read: Read):
            found = label_choice.score_first(model.bind(params), read, self.trie)
            return sharding.everywhere(found)

        def some(params: Params, read: Read, rows, nodes):
            read = read if rows is None else label_choice.take_rows(read, rows)
            found = label_choice.score_nodes(model.bind(params), read, self.trie, nodes)
            return sharding.everywhere(found)

        self._first, self._some = jax.jit(first), jax.jit(some)

    def __call__(self, params: Params, read: Read, count: int, bound: float = 0.0) -> Ranked:
        """The first `count` rows' labels; at most a share `bound` of their probability is unread.

        The likeliest label is the exact one in any case. What a row gets depends on no other row.
        Raises NonFiniteError where the model's scores are NaN or infinite.
        """
        search = _Search(self.trie, np.asarray(self._first(params, read))[:count], bound)
        if not bound and self.trie.inner > 1:
            nodes = np.arange(1, self.trie.inner, dtype=np.int32)
            nodes = np.tile(nodes, (len(read.position), 1))
            found = np.asarray(self._some(params, read, None, nodes))
            search.take(np.arange(count), nodes[:count], found[:count])
        while (wanted := search.wanted()).any():
            for rows, nodes, found in self.read(params, read, wanted):
                search.take(rows, nodes, found)
        return search.result()

    def read(
        self, params: Params, read: Read, wanted: Bool[np.ndarray, "rows M"]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All wanted nodes, as (rows, their nodes, what `score_nodes` says of these).

        Each call has four nodes for every row of the batch: few of many rows, or many of few.
        """
        sizes = wanted.sum(axis=1)
        order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        calls = []
        while len(order):
            width = min(_width(int(sizes[order[0]])), self.trie.inner - 1)
            together = min(len(read.position), max(1, 4 * len(read.position) // width))
            rows = np.resize(order[:together], together)  # filled up with the same ones again
            nodes = trie.table([np.flatnonzero(wanted[row]) for row in rows], 0, width)
            calls.append((rows, nodes, self._some(params, read, rows, nodes)))
            order = order[together:]
        return jax.device_get(calls)


class _Search:
    """Which nodes of a trie were read for each row, and how likely each node is."""

    def __init__(self, tree: Trie, first: Float[np.ndarray, "B first"], bound: float):
        check_scores(first, "a prompt")
        self.trie, self.bound = tree, bound
        shape = len(first), len(tree.token)
        self.inner = np.arange(len(tree.token)) < tree.inner
        self.step = np.full(shape, -np.inf)  # log p of each node after its parent
        self.step[:, 0] = 0
        self.step[:, tree.first] = first
        self.was_read = np.zeros(shape, bool)
        self.was_read[:, 0] = True

    def take(
        self,
        rows: Int[np.ndarray, " B"],
        nodes: Int[np.ndarray, "B nodes"],
        found: Float[np.ndarray, "B nodes most"],
    ) -> None:
        """Note log p of the children of nodes; the root fills up."""
        row, place = np.nonzero(nodes)
        node, values, row = nodes[row, place], found[row, place], rows[row]
        self.was_read[row, node] = True
        children = self.trie.children[node, : found.shape[-1]]
        pair, which = np.nonzero(children >= 0)
        check_scores(values[pair, which], "a prompt")
        self.step[row[pair], children[pair, which]] = values[pair, which]

    def log_p(self) -> Float[np.ndarray, "B M"]:
        """log p of every node: minus infinity where its parent was not read."""
        found = self.step.copy()
        for nodes in self.trie.levels:
            found[:, nodes] += found[:, self.trie.parent[nodes]]
        return found

    def unread(self, p: Float[np.ndarray, "B M"]) -> Float[np.ndarray, "B M"]:
        """The probability of the nodes that were reached, but not read."""
        return np.where(self.inner & ~self.was_read, p, 0)

    def wanted(self) -> Bool[np.ndarray, "B M"]:
        """The nodes to feed next: the likeliest unread ones, until the rest is within the bound.

        And those that could still hold the likeliest label; with their ancestors, and with what
        must follow them. A row that wants many wants all: it would be back for most of them.
        """
        p = np.exp(self.log_p())
        unread, found = self.unread(p), np.where(self.inner, 0, p)
        total = unread.sum(axis=1) + found.sum(axis=1)
        order = np.argsort(unread, axis=1)
        rest = np.cumsum(np.take_along_axis(unread, order, axis=1), axis=1)
        beyond = np.empty(rest.shape, bool)
        np.put_along_axis(beyond, order, rest > self.bound * total[:, None], axis=1)
        best = found.max(axis=1, keepdims=True)
        chosen = (unread > 0) & (beyond | (unread > best))
        wanted = (chosen.astype(np.float32) @ self.trie.forced.astype(np.float32)) > 0
        wanted[wanted.sum(axis=1) > max(_MANY * self.trie.inner, self.trie.depth.max())] = (
            self.inner
        )
        wanted[:, 0] = False
        return wanted

    def result(self) -> Ranked:
        log_p = self.log_p()
        unread = self.unread(np.exp(log_p))
        below = self.trie.ancestors[self.trie.leaf].astype(float)  # C M
        shares = (unread / np.maximum(1, below.sum(axis=0))) @ below.T
        labels = log_p[:, self.trie.leaf]
        with np.errstate(divide="ignore"):
            labels = np.where(np.isfinite(labels), labels, np.log(shares))
        total = np.maximum(np.exp(labels).sum(axis=1), np.finfo(float).tiny)
        return Ranked(labels.astype(np.float32), (unread.sum(axis=1) / total).astype(np.float32))


def probabilities(
    log_p: Float[np.ndarray, "B C"],
    normalise: Normalise,
    tokens: Int[np.ndarray, " C"],
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
    """The next of 2, 8, 32 …: few compiled shapes."""
    width = 2
    while width < count:
        width *= 4
    return width
