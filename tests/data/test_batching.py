"""Examples as rows: where labels are predicted, and what padding looks like."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclf.data import batching, loader
from jaxclf.data.batching import ANSWER
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens
from jaxclf.data.shape_budget import Budget


def example(prefix, text, label) -> Tokens:
    return Tokens("", *(np.array(ids, np.int32) for ids in (prefix, text, label)), cut=0)


def test_row_reads_all_but_the_last_label_token():
    row = batching.row(example([5], [6, 7], [8, 2]))
    assert row["tokens"].tolist() == [5, 6, 7, 8]
    assert row["answer/positions"].tolist() == [2, 3]
    assert row["answer/labels"].tolist() == [8, 2]


def test_padded_rows():
    batch = batching.padded(
        [batching.row(example([5], [6, 7], [8, 2])), batching.row(example([], [9], [2]))]
    )
    assert batch.tokens.shape == (2, 16)
    assert batch.targets[ANSWER].labels.shape == (2, 4)
    assert batch.tokens[:, :5].tolist() == [[5, 6, 7, 8, 0], [9, 0, 0, 0, 0]]
    assert batch.segment_ids[:, :5].tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert batch.positions[:, :5].tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 0, 0]]
    assert batch.targets[ANSWER].positions.tolist() == [[2, 3, 0, 0], [0, 0, 0, 0]]
    assert batch.targets[ANSWER].labels.tolist() == [[8, 2, 0, 0], [2, 0, 0, 0]]
    assert batch.targets[ANSWER].mask.tolist() == [
        [True, True, False, False],
        [True, False, False, False],
    ]
    assert batch.tokens[:, 5:].sum() == batch.segment_ids[:, 5:].sum() == 0
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [[4], [1]]


def test_packed_rows_move_label_positions_to_their_example():
    def array(*row):
        return np.array([row], np.int32)

    batch = batching.packed(
        {
            "tokens": array(5, 6, 7, 8, 9, 4, 0),
            "tokens_segment_ids": array(1, 1, 1, 1, 2, 3, 0),
            "tokens_positions": array(0, 1, 2, 3, 0, 0, 0),
            "answer/positions": array(2, 3, 0, 0, 0),
            "answer/labels": array(8, 2, 2, 3, 0),
            "answer/labels_segment_ids": array(1, 1, 2, 3, 0),
        }
    )
    assert batch.targets[ANSWER].positions.tolist() == [[2, 3, 4, 5, 0]]
    assert batch.targets[ANSWER].mask.tolist() == [[True, True, True, True, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 0, 0]]
    assert batch.lengths is None  # kernels go by segments


def test_prompts_end_where_answers_begin():
    prompts = batching.prompts([example([5], [6, 7], [8, 2]), example([], [9], [])], rows=3)
    assert prompts.tokens.shape == (3, 16)
    assert prompts.tokens[:, -4:].tolist() == [[0, 5, 6, 7], [0, 0, 0, 9], [0, 0, 0, 9]]
    assert prompts.segment_ids[:, -4:].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert prompts.positions[:, -4:].tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert prompts.tokens[:, :-4].sum() == prompts.segment_ids[:, :-4].sum() == 0


@pytest.mark.parametrize(
    ("length", "size"), [(0, 16), (16, 16), (17, 24), (24, 24), (25, 32), (97, 128), (129, 192)]
)
def test_buckets(length, size):
    assert batching.bucket(length) == size


@given(st.integers(1, 200_000), st.sampled_from([4, 16]))
def test_buckets_waste_at_most_a_third(length, smallest):
    size = batching.bucket(length, smallest)
    assert length <= size
    assert size == smallest or size - length <= size / 3


def encoded(sizes, seed=0):
    """Encoder examples of these lengths with a class, and a slot at every second token."""
    random = np.random.default_rng(seed)

    def example(index, size):
        places = np.arange(1, size, 2, dtype=np.int32)
        targets = {
            "intent": (np.zeros(1, np.int32), random.integers(0, 3, 1).astype(np.int32)),
            "slots": (places, random.integers(0, 4, len(places)).astype(np.int32)),
        }
        tokens = random.integers(0, 37, size).astype(np.int32)
        return Encoded(str(index), tokens, tokens % 2, targets, tuple(range(len(places))), 0)

    return [example(index, size) for index, size in enumerate(sizes)]


def test_encoder_rows_have_a_target_for_each_head():
    batch = batching.padded([batching.row(example) for example in encoded([3, 6])])
    assert batch.tokens.shape == batch.types.shape == (2, 16)
    assert batch.targets["intent"].positions.tolist() == [[0], [0]]
    assert batch.targets["slots"].positions.tolist() == [[1, 0, 0, 0], [1, 3, 5, 0]]
    assert batch.targets["slots"].mask.tolist() == [[True] + [False] * 3, [True] * 3 + [False]]


def test_packed_encoder_targets_stay_with_their_example():
    examples = encoded([3, 6, 5, 2, 7], seed=1)
    batch = next(loader.train_batches(examples, batch_size=2, seed=0, row_length=16))
    found = set()
    for row, segments in enumerate(batch.segment_ids):
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            (example,) = (e for e in examples if np.array_equal(e.tokens, batch.tokens[row][at]))
            np.testing.assert_array_equal(batch.types[row][at], example.types)
            for name, (places, labels) in example.targets.items():
                target = batch.targets[name]
                mine = target.mask[row] & (segments[target.positions[row]] == segment)
                np.testing.assert_array_equal(target.positions[row][mine], places + at[0])
                np.testing.assert_array_equal(target.labels[row][mine], labels)
            found.add(example.id)
    assert len(found) >= 4


def taught(sizes, seed=0):
    """The same with a teacher's word at each place, which tells the place."""
    return [
        dataclasses.replace(
            example,
            soft={
                name: (
                    np.stack([places + 100 * number, labels], 1).astype(np.float32),
                    np.tile(np.array([0.25, 0.75], np.float32), (len(places), 1)),
                )
                for name, (places, labels) in example.targets.items()
            },
        )
        for number, example in enumerate(encoded(sizes, seed), 1)
    ]


def test_a_teachers_word_stays_at_its_place_padded_and_packed():
    examples = taught([3, 6, 5, 2, 7], seed=1)
    rows = batching.padded([batching.row(example) for example in examples])
    packed = next(loader.train_batches(examples, batch_size=2, seed=0, row_length=16))
    for batch in (rows, packed, Budget(0, [(64, 16, 16)]).fit(rows)):
        assert batch.soft is not None
        for name, soft in batch.soft.items():
            target = batch.targets[name]
            assert soft.probabilities.shape == (*target.mask.shape, 2)
            assert soft.shares[target.mask].tolist() == [[0.25, 0.75]] * target.mask.sum()
            assert not soft.shares[~target.mask].any()
            np.testing.assert_array_equal(
                soft.probabilities[..., 1][target.mask], target.labels[target.mask]
            )
    mask = rows.targets["slots"].mask
    place = rows.soft["slots"].probabilities[..., 0] % 100
    np.testing.assert_array_equal(place[mask], rows.targets["slots"].positions[mask])
    assert batching.padded([batching.row(each) for each in encoded([3])]).soft is None
