"""Every example comes exactly as often as it should, in an order that can be resumed."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import batching, loader
from jaxclf.data.batching import ANSWER, Batch
from jaxclf.data.examples import Tokens
from tests.tiny import examples as random_examples

ROW_LENGTH = 24


def numbered(count: int) -> list[Tokens]:
    """Examples that begin with their own number."""
    empty = np.zeros(0, np.int32)
    return [
        Tokens(str(i), empty, np.array([i, 7], np.int32), np.array([i, 1000 + i], np.int32), 0)
        for i in range(count)
    ]


def one_epoch(examples, **options) -> list[Batch]:
    """What `train_batches` yields when its endless order ends after one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grain.MapDataset, "repeat", lambda dataset: dataset)
        return list(loader.train_batches(examples, batch_size=3, seed=1, **options))


def segments(batch: Batch) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(tokens read, label tokens) of each example in a batch, checked for its layout."""
    for row in range(len(batch.tokens)):
        ids, mask = batch.segment_ids[row], batch.targets[ANSWER].mask[row]
        count = ids.max()
        filled = ids[ids > 0]
        assert filled.tolist() == sorted(filled), "segments are out of order"
        assert not ids[len(filled) :].any(), "padding inside a row"
        assert not batch.tokens[row][ids == 0].any()
        assert sorted(set(filled.tolist())) == list(range(1, count + 1))
        owners = ids[batch.targets[ANSWER].positions[row]]
        for segment in range(1, count + 1):
            tokens = batch.tokens[row][ids == segment]
            assert batch.positions[row][ids == segment].tolist() == list(range(len(tokens)))
            mine = mask & (owners == segment)
            places, labels = (
                batch.targets[ANSWER].positions[row][mine],
                batch.targets[ANSWER].labels[row][mine],
            )
            end = np.flatnonzero(ids == segment)[-1]
            assert places.tolist() == list(range(end - len(labels) + 1, end + 1))
            # Where a label is predicted, the next token read is that label; the last is not read.
            assert batch.tokens[row][places[:-1] + 1].tolist() == labels[:-1].tolist()
            yield tuple(tokens.tolist()), tuple(labels.tolist())


def wanted(example: Tokens) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(batching.row(example)["tokens"].tolist()), tuple(example.label.tolist())


sizes = st.tuples(st.integers(0, 3), st.integers(1, 14), st.integers(1, 8))


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=40), st.integers(0, 99))
def test_packing_keeps_every_example_once_and_whole(sizes, seed):
    examples = random_examples(sizes, seed, vocab_size=1000)
    batches = one_epoch(examples, row_length=ROW_LENGTH)
    found = [segment for batch in batches for segment in segments(batch)]
    assert Counter(found) == Counter(map(wanted, examples))
    assert len({batch.targets[ANSWER].labels.shape[1] for batch in batches}) == 1
    assert {batch.tokens.shape[1] for batch in batches} == {ROW_LENGTH}


@settings(max_examples=30, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=40), st.integers(0, 99))
def test_padded_rows_hold_every_example_once_and_whole(sizes, seed):
    examples = random_examples(sizes, seed, vocab_size=1000)
    found = [segment for batch in one_epoch(examples) for segment in segments(batch)]
    assert Counter(found) == Counter(map(wanted, examples))


def test_the_longest_label_has_room_however_short_the_others_are():
    examples = random_examples([(0, 20, 1)] * 30 + [(0, 1, 24)])
    assert loader.label_budget(examples, ANSWER, row_length=24) >= 24
    found = [
        segment
        for batch in one_epoch(examples, row_length=ROW_LENGTH)
        for segment in segments(batch)
    ]
    assert wanted(examples[-1]) in found
    assert len(found) == 31


def test_packing_fills_more_rows_than_its_bins_in_the_shuffled_order():
    """Blocks of bins are emitted whole, so no example waits longer than one block."""
    examples = numbered(2000)  # 3 tokens each, 8 a row: four blocks of 64 rows
    order = [
        int(tokens[0])
        for batch in one_epoch(examples, row_length=ROW_LENGTH)
        for tokens, _ in segments(batch)
    ]
    shuffled = [int(n) for batch in one_epoch(examples) for n in batch.tokens[:, 0]]
    block = 64 * 8
    for start in range(0, 2000, block):
        assert sorted(order[start : start + block]) == sorted(shuffled[start : start + block])


def test_used_tokens_are_those_of_the_batches():
    examples = random_examples([(2, 3, 2), (1, 2, 1)])
    held = {
        int(token)
        for batch in islice(loader.train_batches(examples, batch_size=1, seed=0), 2)
        for token in batch.tokens.flat
    }
    found = loader.used_tokens(examples)
    assert found.tolist() == sorted(held | {0})


def test_an_example_longer_than_a_row_is_refused_by_name():
    examples = random_examples([(0, 3, 2), (2, 20, 4), (0, 5, 2)])
    with pytest.raises(InputError, match=r"record 1 has 25 tokens.*24.*row_length"):
        loader.train_batches(examples, batch_size=2, seed=0, row_length=ROW_LENGTH)


def numbers(batches, count: int) -> list[int]:
    """The first `count` example numbers that an unpacked iterator yields."""
    found: list[int] = []
    while len(found) < count:
        found += next(batches).tokens[:, 0].tolist()
    return found[:count]


def stream(count: int, **options):
    return loader.train_batches(numbered(count), batch_size=2, **{"seed": 3, **options})


def test_order_is_the_seed_s_and_new_in_every_epoch():
    order = numbers(stream(11), 33)
    assert order == numbers(stream(11), 33)
    assert order != numbers(stream(11, seed=4), 33)
    epochs = [order[start : start + 11] for start in (0, 11, 22)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs[0] != sorted(epochs[0])


@pytest.mark.parametrize("options", [{}, {"row_length": ROW_LENGTH}, {"like_lengths": True}])
def test_resumed_iterator_yields_the_same_batches(options):
    examples = random_examples([(2, 1 + i % 9, 1 + i % 5) for i in range(90)])

    def start():
        return loader.train_batches(examples, batch_size=4, seed=5, **options)

    # With packing that is past the first block of 64 rows, and in the middle of one.
    iterator, states, batches = start(), [], []
    for _ in range(36):
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    for step in (0, 1, 15, 16, 17, 33):
        resumed = start()
        resumed.set_state(json.loads(states[step]))
        for expected, actual in zip(batches[step:], islice(resumed, 3), strict=False):
            jax.tree.map(np.testing.assert_array_equal, actual, expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), max_size=30), st.integers(1, 9))
def test_prompt_batches_cover_every_index_once(lengths, batch_size):
    examples = random_examples([(0, length, 0) for length in lengths])
    seen = []
    for indices, prompts in loader.prompt_batches(examples, batch_size):
        assert len(prompts.tokens) == batch_size
        for row, index in enumerate(indices):
            ids = prompts.tokens[row][prompts.segment_ids[row] > 0]
            assert ids.tolist() == examples[index].text.tolist()
        seen += indices
    assert sorted(seen) == list(range(len(examples)))
    assert [lengths[index] for index in seen] == sorted(lengths)


def test_batches_of_like_lengths_hold_each_example_once_and_pad_less():
    random = np.random.default_rng(0)
    examples = random_examples([(0, int(size), 1) for size in random.integers(1, 90, 64)])
    batches = loader.train_batches(examples, batch_size=2, seed=3, like_lengths=True)
    found = list(islice(batches, 32))  # one window, which is one epoch
    assert Counter(part for batch in found for part in segments(batch)) == Counter(
        map(wanted, examples)
    )
    plain = list(islice(loader.train_batches(examples, batch_size=2, seed=3), 32))
    cells = [sum(batch.tokens.size for batch in each) for each in (found, plain)]
    assert cells[0] < 0.85 * cells[1]
    widths = [batch.tokens.shape[1] for batch in found]
    assert widths != sorted(widths)


def test_batches_of_like_lengths_resume_within_a_window():
    examples = random_examples([(0, size, 1) for size in range(1, 65)])
    batches = loader.train_batches(examples, batch_size=2, seed=3, like_lengths=True)
    for _ in range(5):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(3)]
    again = loader.train_batches(examples, batch_size=2, seed=3, like_lengths=True)
    again.set_state(state)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, next(again), batch)


def test_no_epoch_of_a_seed_is_one_of_another_seed():
    """Seeds that differ by one would share all epochs but the first if these were added."""
    epochs = {}
    for seed in range(4):
        order = numbers(stream(12, seed=seed), 48)
        for epoch in range(4):
            epochs[seed, epoch] = tuple(order[12 * epoch : 12 * epoch + 12])
    assert len(set(epochs.values())) == len(epochs)


def test_shapes_that_batches_are_padded_to_belong_to_the_state():
    """Resumed after the widest batch, a narrow one is padded to that as before."""
    examples = random_examples([(0, size, 1) for size in (40, 3, 90, 5, 20, 60, 2, 30)])

    def start():
        return loader.train_batches(examples, batch_size=1, seed=0, max_shapes=2)

    batches, states, found = start(), [], []
    for _ in range(16):
        states.append(json.dumps(batches.get_state()))
        found.append(next(batches))
    widths = [batch.tokens.shape[1] for batch in found]
    assert any(len({*widths[:at]}) == 2 and widths[at] > 24 for at in range(16)), "nothing is shown"
    for step in range(16):
        resumed = start()
        resumed.set_state(json.loads(states[step]))
        for expected in found[step:]:
            jax.tree.map(np.testing.assert_array_equal, next(resumed), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["order"], "version 1 of the order of batches; this is version 2"),
        (lambda state: state | {"version": 3}, "of version 3 of the order"),
        (lambda state: b"bytes", "of version 1 of the order"),
        (lambda state: state | {"shapes": None}, "place in the data is damaged"),
        (lambda state: {"version": 2, "shapes": []}, "place in the data is damaged"),
    ],
)
def test_a_state_that_means_something_else_is_refused(change, message):
    batches = stream(5)
    with pytest.raises(ArtifactError, match=message):
        batches.set_state(change(stream(5).get_state()))
