"""Tokens → arrays of one shape: padded or packed rows for training, left-padded prompts to decode.

A row of the example with prefix+text `5 6 7` and answer `8 2` (2 ends the sequence) is

    tokens           5 6 7 8      the last answer token is predicted, never read
    label_positions      2 3      where a label token is predicted
    label_tokens         8 2
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxclf.data.tokenize import Tokens
from jaxclf.shapes import AnyArray, Bool, Int

Row = dict[str, np.ndarray]


class Batch(NamedTuple):
    """What one train step reads. Padding has segment 0; positions start at 0 in each segment."""

    tokens: Int[AnyArray, "*micro B T"]
    segment_ids: Int[AnyArray, "*micro B T"]
    positions: Int[AnyArray, "*micro B T"]
    label_positions: Int[AnyArray, "*micro B J"]
    label_tokens: Int[AnyArray, "*micro B J"]
    label_mask: Bool[AnyArray, "*micro B J"]


class PromptBatch(NamedTuple):
    """Left-padded prompts: every row ends where its answer begins."""

    tokens: Int[AnyArray, "B T"]
    segment_ids: Int[AnyArray, "B T"]
    positions: Int[AnyArray, "B T"]


def bucket(length: int, smallest: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96 …: few compiled shapes for at most a third of padding."""
    size = smallest
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def row(tokens: Tokens) -> Row:
    """One example's arrays; label positions count from its own first token."""
    read = np.concatenate([tokens.prefix, tokens.text, tokens.label[:-1]]).astype(np.int32)
    first = len(tokens.prefix) + len(tokens.text) - 1
    return {
        "tokens": read,
        "label_positions": np.arange(first, len(read), dtype=np.int32),
        "label_tokens": tokens.label.astype(np.int32),
    }


def padded(rows: Sequence[Row]) -> Batch:
    """One example a row, padded on the right to the bucket of the longest."""
    width = bucket(max(len(item["tokens"]) for item in rows))
    labels = bucket(max(len(item["label_tokens"]) for item in rows), smallest=4)
    shapes = {
        "tokens": width,
        "segment_ids": width,
        "positions": width,
        "label_positions": labels,
        "label_tokens": labels,
    }
    arrays = {name: np.zeros((len(rows), size), np.int32) for name, size in shapes.items()}
    mask = np.zeros((len(rows), labels), bool)
    for index, item in enumerate(rows):
        for name, values in item.items():
            arrays[name][index, : len(values)] = values
        count = len(item["tokens"])
        arrays["segment_ids"][index, :count] = 1
        arrays["positions"][index, :count] = np.arange(count)
        mask[index, : len(item["label_tokens"])] = True
    return Batch(**arrays, label_mask=mask)


def packed(rows: Mapping[str, np.ndarray]) -> Batch:
    """Rows filled by grain's packer, `[B, T]` and `[B, J]`, with their segment ids.

    The packer only lays examples side by side: label positions are moved by where their example
    starts in the row.
    """
    segment_ids, label_segments = rows["tokens_segment_ids"], rows["label_tokens_segment_ids"]
    starts = np.stack(
        [
            np.searchsorted(_filled(segments), of_labels)
            for segments, of_labels in zip(segment_ids, label_segments, strict=True)
        ]
    )
    mask = label_segments > 0
    return Batch(
        tokens=rows["tokens"].astype(np.int32),
        segment_ids=segment_ids.astype(np.int32),
        positions=rows["tokens_positions"].astype(np.int32),
        label_positions=np.where(mask, rows["label_positions"] + starts, 0).astype(np.int32),
        label_tokens=rows["label_tokens"].astype(np.int32),
        label_mask=mask,
    )


def _filled(segments: np.ndarray) -> np.ndarray:
    """Segment ids with the padding at the end made larger than any, so that they are sorted."""
    return np.where(segments == 0, np.iinfo(np.int32).max, segments)


def prompts(examples: Sequence[Tokens], rows: int) -> PromptBatch:
    """Prompts without answers, padded on the left; missing rows repeat the last example."""
    texts = [np.concatenate([item.prefix, item.text]) for item in examples]
    texts += texts[-1:] * (rows - len(texts))
    width = bucket(max(map(len, texts)))
    tokens, segment_ids, positions = (np.zeros((rows, width), np.int32) for _ in range(3))
    for index, ids in enumerate(texts):
        tokens[index, width - len(ids) :] = ids
        segment_ids[index, width - len(ids) :] = 1
        positions[index, width - len(ids) :] = np.arange(len(ids))
    return PromptBatch(tokens, segment_ids, positions)
