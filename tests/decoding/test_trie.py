"""Tries of labels: every label is a path, every path ends in a label, runs hold no decision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclf.decoding import trie

END = 2
LABELS = ((5, 6), (5, 7, 8), (5, 7, 8, 9, 9), (9,), (5, 7, 4, 4, 4, 4, 4))

label_sets = st.lists(
    st.lists(st.integers(3, 6), min_size=1, max_size=6).map(tuple), min_size=1, unique=True
)


def ended(labels):
    """The labels as a trie has them."""
    return [
        (*ids, END) if any(other != ids and other[: len(ids)] == ids for other in labels) else ids
        for ids in labels
    ]


def path(tree: trie.Trie, node: int) -> tuple[int, ...]:
    return () if node == 0 else (*path(tree, tree.parent[node]), int(tree.token[node]))


@given(label_sets)
def test_every_label_is_the_path_to_its_leaf(labels):
    tree = trie.make(labels, END)
    assert [path(tree, leaf) for leaf in tree.leaf] == ended(labels)
    assert (tree.parent[1:] < np.arange(1, len(tree.token))).all()
    assert set(range(tree.inner, len(tree.token))) == set(tree.leaf.tolist())
    for node, above in enumerate(tree.ancestors):
        assert above.sum() == tree.depth[node] + 1
        assert {path(tree, each) for each in np.flatnonzero(above)} == {
            path(tree, node)[:count] for count in range(tree.depth[node] + 1)
        }


@given(label_sets)
def test_what_must_follow_a_node_goes_to_the_next_decision(labels):
    tree = trie.make(labels, END)
    for node in range(tree.inner):
        below = {
            other
            for other in np.flatnonzero(tree.forced[node]).tolist()
            if tree.depth[other] > tree.depth[node]
        }
        expected, last = set(), node
        while (kids := np.flatnonzero(tree.parent == last)).size == 1 and kids[0] < tree.inner:
            last = int(kids[0])
            expected.add(last)
        assert below == expected
        assert (tree.forced[node] >= tree.ancestors[node]).all()


@given(label_sets, st.integers(0, 3))
def test_joined_runs_spell_the_same_labels(labels, longest):
    joined = trie.join(trie.make(labels, END), longest)
    for label, ids in enumerate(ended(labels)):
        (node,) = np.flatnonzero(joined.label == label)
        spelled, runs = [], 0
        while node:
            spelled = [*joined.run[node, : joined.length[node]], *spelled]
            node, runs = joined.parent[node], runs + 1
        assert tuple(spelled) == ids
        assert runs <= joined.decisions[0]
    kids = joined.children >= 0
    firsts = np.where(kids, joined.run[joined.children, 0], 1_000)
    assert (np.diff(firsts, axis=1)[kids[:, 1:]] > 0).all()
    lonely = kids.sum(axis=1) == 1
    if longest:
        assert joined.length.max() <= longest
        assert (joined.length[1:][lonely[1:]] == longest).all()
    else:
        assert not lonely[1:].any()


def test_a_forest_keeps_its_trees():
    parts = [trie.join(trie.make(labels, END), 2) for labels in (LABELS, LABELS[:2])]
    whole, roots = trie.forest(parts)
    assert roots == [0, len(parts[0].label)]
    for part, root in zip(parts, roots, strict=True):
        for name in ("length", "label", "decisions"):
            own = getattr(part, name)
            np.testing.assert_array_equal(getattr(whole, name)[root : root + len(own)], own)
        pairs = zip(part.children, whole.children[root:], strict=False)
        for own, moved in pairs:
            assert (own[own >= 0] + root).tolist() == moved[moved >= 0].tolist()
    # 5 | 7 | 4 4 | 4 4 | 4, and 5 | 6
    assert whole.decisions[roots].tolist() == [5, 2]


def test_labels_that_cannot_be_told_apart_are_refused():
    for labels in ([(5,), (5,)], [()]):
        with pytest.raises(ValueError, match="that differ"):
            trie.make(labels, END)
