"""Tries of token ids: what may follow what where an answer is one of a set of labels.

    make([(5, 6), (5, 7, 8), (9,)], end=2)     join(the same)

    root ┬ 5 ┬ 6                               root ┬ 5 ┬ 6
         │   └ 7 ─ 8                                │   └ 7 8
         └ 9                                        └ 9

Both are arrays over nodes, of NumPy, made once for a set of labels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxclf.core.types import Bool, Int

Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Trie:
    """A node for every token. The root is node 0; parents stand before children, leaves last.

    token, parent: -1 at the root. depth: tokens from the root on. leaf: the node where each of the
    C sequences ends. inner: how many nodes have children; these are the first.
    """

    token: Int[np.ndarray, " M"]
    parent: Int[np.ndarray, " M"]
    depth: Int[np.ndarray, " M"]
    leaf: Int[np.ndarray, " C"]
    inner: int

    @functools.cached_property
    def ancestors(self) -> Bool[np.ndarray, "M M"]:
        """Row m: node m itself and all above it."""
        found = np.eye(len(self.token), dtype=bool)
        for node in range(1, len(found)):
            found[node] |= found[self.parent[node]]
        return found

    @functools.cached_property
    def children(self) -> Int[np.ndarray, "inner most"]:
        """The children of each inner node, filled with -1."""
        return table([np.flatnonzero(self.parent == node) for node in range(self.inner)], -1)

    @property
    def first(self) -> Int[np.ndarray, "first"]:
        """The root's children."""
        return self.children[0][self.children[0] >= 0]

    @functools.cached_property
    def forced(self) -> Bool[np.ndarray, "M M"]:
        """Row m: inner node m, those above it, and those below it as far as nothing is decided."""
        found = self.ancestors.copy()
        for node in range(self.inner - 1, -1, -1):
            only, *others = self.children[node][self.children[node] >= 0]
            if not others and only < self.inner:
                found[node] |= found[only]
        return found

    @functools.cached_property
    def levels(self) -> list[Int[np.ndarray, " nodes"]]:
        """The nodes of each depth, from 1 on."""
        return [np.flatnonzero(self.depth == depth) for depth in range(1, self.depth.max() + 1)]


@dataclass(frozen=True, eq=False)
class Radix:
    """A node for every run of tokens between two decisions; parents stand before children.

    run: its tokens, filled with 0, `length` of them (0 at a root). children: nodes by ascending
    first token, filled with -1. label: the sequence that ends here, or -1. parent: -1 at a root.
    """

    run: Int[np.ndarray, "M R"]
    length: Int[np.ndarray, " M"]
    children: Int[np.ndarray, "M most"]
    label: Int[np.ndarray, " M"]
    parent: Int[np.ndarray, " M"]

    @functools.cached_property
    def decisions(self) -> Int[np.ndarray, " M"]:
        """The most decisions that may follow a node."""
        found = np.zeros_like(self.length)
        for node in range(len(found) - 1, 0, -1):
            if (parent := self.parent[node]) >= 0:
                found[parent] = max(found[parent], found[node] + 1)
        return found


def make(sequences: Sequence[Ids], end: int) -> Trie:
    """The trie of different sequences; one that begins another gets `end` as a further token."""
    begun = {ids[:count] for ids in sequences for count in range(len(ids))}
    whole = [(*ids, end) if ids in begun else ids for ids in sequences]
    if len(set(whole)) < len(whole) or () in whole:
        raise ValueError("a trie needs sequences of one token or more that differ")
    begun = {ids[:count] for ids in whole for count in range(len(ids))}
    nodes = sorted({*begun, *whole}, key=lambda ids: (ids not in begun, len(ids), ids))
    number = {ids: index for index, ids in enumerate(nodes)}
    return Trie(
        token=np.array([-1, *(ids[-1] for ids in nodes[1:])], np.int32),
        parent=np.array([-1, *(number[ids[:-1]] for ids in nodes[1:])], np.int32),
        depth=np.array([len(ids) for ids in nodes], np.int32),
        leaf=np.array([number[ids] for ids in whole], np.int32),
        inner=len(begun),
    )


def join(trie: Trie, longest: int = 0) -> Radix:
    """The trie with chains of only children joined into runs, of at most `longest` tokens if > 0.

    A longer run becomes several nodes, of which all but the last have one child.
    """
    number = {0: 0}  # of the nodes where a run ends
    parents: list[int] = [-1]
    runs: list[Ids] = [()]
    above: dict[int, tuple[int, Ids]] = {0: (0, ())}  # run's parent, and its tokens so far
    # By depth, so that parents stand before children here too.
    for node in np.argsort(trie.depth, kind="stable")[1:].tolist():
        parent, run = above[int(trie.parent[node])]
        run = (*run, int(trie.token[node]))
        is_inner = node < trie.inner
        only = is_inner and np.count_nonzero(trie.children[node] >= 0) == 1
        if only and len(run) != longest:
            above[node] = parent, run
            continue
        number[node] = len(runs)
        parents.append(parent)
        runs.append(run)
        above[node] = number[node], ()
    label = np.full(len(runs), -1, np.int32)
    label[[number[int(leaf)] for leaf in trie.leaf]] = np.arange(len(trie.leaf))
    parent = np.array(parents, np.int32)
    children = [
        sorted(np.flatnonzero(parent == node).tolist(), key=lambda child: runs[child][0])
        for node in range(len(runs))
    ]
    return Radix(
        run=table(runs, 0),
        length=np.array([len(run) for run in runs], np.int32),
        children=table(children, -1),
        label=label,
        parent=parent,
    )


def forest(parts: Sequence[Radix]) -> tuple[Radix, list[int]]:
    """Several as one, and where the root of each is; labels keep their numbers."""
    starts = np.cumsum([0, *(len(part.label) for part in parts[:-1])])

    def moved(nodes: np.ndarray, start: int) -> np.ndarray:
        return np.where(nodes >= 0, nodes + start, -1)

    def rows(tables: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [row for table in tables for row in table]

    pairs = list(zip(parts, starts.tolist(), strict=True))
    whole = Radix(
        run=table(rows([part.run for part in parts]), 0),
        length=np.concatenate([part.length for part in parts]),
        children=table(rows([moved(part.children, start) for part, start in pairs]), -1),
        label=np.concatenate([part.label for part in parts]),
        parent=np.concatenate([moved(part.parent, start) for part, start in pairs]),
    )
    return whole, starts.tolist()


def table(
    rows: Sequence[Sequence[int] | np.ndarray], fill: int, width: int = 1
) -> Int[np.ndarray, "rows most"]:
    """Rows of different lengths as one array of `width` or more, filled at their ends."""
    found = np.full((len(rows), max(width, *map(len, rows))), fill, np.int32)
    for index, row in enumerate(rows):
        found[index, : len(row)] = row
    return found
