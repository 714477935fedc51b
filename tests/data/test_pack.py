"""Examples as rows: where labels are predicted, and what padding looks like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclf.data import pack
from jaxclf.data.pack import ANSWER
from jaxclf.data.tokenize import Tokens


def example(prefix, text, label) -> Tokens:
    return Tokens("", *(np.array(ids, np.int32) for ids in (prefix, text, label)), cut=0)


def test_row_reads_all_but_the_last_label_token():
    row = pack.row(example([5], [6, 7], [8, 2]))
    assert row["tokens"].tolist() == [5, 6, 7, 8]
    assert row["answer/positions"].tolist() == [2, 3]
    assert row["answer/labels"].tolist() == [8, 2]


def test_padded_rows():
    batch = pack.padded([pack.row(example([5], [6, 7], [8, 2])), pack.row(example([], [9], [2]))])
    assert batch.tokens.shape == (2, 16)
    assert batch.targets[ANSWER].labels.shape == (2, 4)
    assert batch.tokens[:, :5].tolist() == [[5, 6, 7, 8, 0], [9, 0, 0, 0, 0]]
    assert batch.segment_ids[:, :5].tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert batch.positions[:, :5].tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 0, 0]]
    assert batch.targets[ANSWER].positions.tolist() == [[2, 3, 0, 0], [0, 0, 0, 0]]
    assert batch.targets[ANSWER].labels.tolist() == [[8, 2, 0, 0], [2, 0, 0, 0]]
    assert batch.targets[ANSWER].mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert batch.tokens[:, 5:].sum() == batch.segment_ids[:, 5:].sum() == 0


def test_packed_rows_move_label_positions_to_their_example():
    def array(*row):
        return np.array([row], np.int32)

    batch = pack.packed(
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


def test_prompts_end_where_answers_begin():
    prompts = pack.prompts([example([5], [6, 7], [8, 2]), example([], [9], [])], rows=3)
    assert prompts.tokens.shape == (3, 16)
    assert prompts.tokens[:, -4:].tolist() == [[0, 5, 6, 7], [0, 0, 0, 9], [0, 0, 0, 9]]
    assert prompts.segment_ids[:, -4:].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert prompts.positions[:, -4:].tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert prompts.tokens[:, :-4].sum() == prompts.segment_ids[:, :-4].sum() == 0


@pytest.mark.parametrize(
    ("length", "size"), [(0, 16), (16, 16), (17, 24), (24, 24), (25, 32), (97, 128), (129, 192)]
)
def test_buckets(length, size):
    assert pack.bucket(length) == size


@given(st.integers(1, 200_000), st.sampled_from([4, 16]))
def test_buckets_waste_at_most_a_third(length, smallest):
    size = pack.bucket(length, smallest)
    assert length <= size
    assert size == smallest or size - length <= size / 3
