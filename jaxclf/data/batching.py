"""Examples → arrays of one shape: padded or packed rows, and left-padded prompts to decode.

A row of the example with prefix+text `5 6 7` and answer `8 2` (2 ends the sequence) is

    tokens              5 6 7 8      the last answer token is predicted, never read
    answer positions        2 3      where a label is predicted
    answer labels           8 2

An encoder's row has one such pair for every head: a class is predicted at the first token, a slot
at the first token of each word. Where a decoder of its own writes the answer, the row ends with the
text, and the positions only say which segment an answer token belongs to:

    tokens              5 6 7        read by the encoder
    answer positions    0 0
    answer labels       8 2          the decoder reads its start and 8
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxclf.core.types import AnyArray, Bool, Float, Int, Prefixes, Shaped
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens
from jaxclf.data.prefixes import NONE, SharedPrefixes

ExampleRow = dict[str, np.ndarray]

ANSWER = "answer"  # the one target of generation


class Targets(NamedTuple):
    """Where labels are predicted in each row, and which; places beyond the last are masked.

    `labels` [*micro B J] are ids of tokens or classes, or numbers (float32); or [*micro B J C]
    flags, one a class.
    """

    positions: Int[AnyArray, "*micro B J"]
    labels: Shaped[AnyArray, "..."]
    mask: Bool[AnyArray, "*micro B J"]


class Soft(NamedTuple):
    """What a teacher says at the places of a target: probabilities, or a number.

    `shares`: how much the label and the teacher's word count in the loss of each place.
    """

    probabilities: Float[AnyArray, "*micro B J C"]
    shares: Float[AnyArray, "*micro B J 2"]


class Batch(NamedTuple):
    """What one train step reads. Padding has segment 0; positions start at 0 in each segment.

    `types`: 1 in the second text of a pair, else 0; None where a model has no such input.
    `prefixes`: those that examples share; positions of the examples then go on from their ends.
    `lengths`: tokens of each row, where every row holds one example alone; None where rows are
    packed. Kernels have a form for such rows that needs no segments. `soft`: of each target, where
    there is a teacher.
    """

    tokens: Int[AnyArray, "*micro B T"]
    segment_ids: Int[AnyArray, "*micro B T"]
    positions: Int[AnyArray, "*micro B T"]
    types: Int[AnyArray, "*micro B T"] | None
    targets: dict[str, Targets]
    prefixes: Prefixes | None = None
    lengths: Int[AnyArray, "*micro B 1"] | None = None
    soft: dict[str, Soft] | None = None


class PromptBatch(NamedTuple):
    """Left-padded prompts: every row ends where its answer begins.

    `seen`: the number of the shared prefix that a row continues; 0: it has the whole prompt.
    `answer`: what the answer begins with, where a decoder of its own writes it.
    """

    tokens: Int[AnyArray, "B T"]
    segment_ids: Int[AnyArray, "B T"]
    positions: Int[AnyArray, "B T"]
    seen: Int[AnyArray, " B"] | None = None
    answer: Int[AnyArray, "B A"] | None = None


def bucket(length: int, smallest: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96 …: few compiled shapes for at most a third of padding."""
    size = smallest
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def row(example: Tokens | Encoded, shared: SharedPrefixes = NONE) -> ExampleRow:
    """One example's arrays, without its prefix where that is shared; positions count from their
    first token."""
    if isinstance(example, Encoded):
        arrays = {"tokens": example.tokens, "types": example.types}
        for name, (positions, labels) in example.targets.items():
            arrays |= {f"{name}/positions": positions, f"{name}/labels": labels}
        for name, (soft, shares) in example.soft.items():
            arrays |= {f"{name}/soft": soft, f"{name}/shares": shares}
        return arrays
    if example.apart:
        return {
            "tokens": np.concatenate([example.prefix, example.text]).astype(np.int32),
            f"{ANSWER}/positions": np.zeros(len(example.label), np.int32),
            f"{ANSWER}/labels": example.label.astype(np.int32),
        }
    number = shared.number(example)
    prefix = example.prefix[:0] if number else example.prefix
    read = np.concatenate([prefix, example.text, example.label[:-1]]).astype(np.int32)
    first = len(prefix) + len(example.text) - 1
    arrays = {
        "tokens": read,
        f"{ANSWER}/positions": np.arange(first, len(read), dtype=np.int32),
        f"{ANSWER}/labels": example.label.astype(np.int32),
    }
    return arrays | {"seen": np.full(len(read), number, np.int32)} if shared else arrays


def padded(rows: Sequence[ExampleRow], shared: SharedPrefixes = NONE, groups: int = 1) -> Batch:
    """One example a row, padded on the right to the bucket of the longest.

    `groups`: micro-batches that the rows are divided into; each has the shared prefixes.
    """
    widths: dict[str, int] = {}
    for name in rows[0]:
        longest = max(len(item[name]) for item in rows)
        is_target = "/" in name
        # One label a text is the rule for classes, and any padding would be computed too.
        widths[name] = 1 if is_target and longest <= 1 else bucket(longest, 4 if is_target else 16)
    arrays = {
        name: np.zeros((len(rows), widths[name], *values.shape[1:]), values.dtype)
        for name, values in rows[0].items()
    }
    segments = {name: np.zeros((len(rows), width), np.int32) for name, width in widths.items()}
    positions = np.zeros_like(segments["tokens"])
    for index, item in enumerate(rows):
        for name, values in item.items():
            arrays[name][index, : len(values)] = values
            segments[name][index, : len(values)] = 1
        count = len(item["tokens"])
        positions[index, :count] = np.arange(count)
    targets = {
        name: Targets(
            arrays[f"{name}/positions"],
            arrays[f"{name}/labels"],
            segments[f"{name}/labels"] > 0,
        )
        for name in target_names(arrays)
    }
    lengths = segments["tokens"].sum(axis=1, keepdims=True, dtype=np.int32)
    batch = Batch(
        arrays["tokens"],
        segments["tokens"],
        positions,
        arrays.get("types"),
        targets,
        lengths=lengths,
        soft=_soft(arrays),
    )
    return _with_prefixes(batch, arrays.get("seen"), shared, groups)


def packed(rows: Mapping[str, np.ndarray], shared: SharedPrefixes = NONE, groups: int = 1) -> Batch:
    """Rows filled by grain's packer, `[B, T]` and `[B, J]`, with their segment ids.

    The packer only lays examples side by side: label positions are moved by where their example
    starts in the row.
    """
    segment_ids = rows["tokens_segment_ids"]
    targets = {}
    for name in target_names(rows):
        of_labels = rows[f"{name}/labels_segment_ids"]
        starts = np.stack(
            [
                np.searchsorted(_filled(segments), wanted)
                for segments, wanted in zip(segment_ids, of_labels, strict=True)
            ]
        )
        mask = of_labels > 0
        positions = np.where(mask, rows[f"{name}/positions"] + starts, 0)
        targets[name] = Targets(
            positions.astype(np.int32),
            rows[f"{name}/labels"],
            mask,
        )
    batch = Batch(
        rows["tokens"].astype(np.int32),
        segment_ids.astype(np.int32),
        rows["tokens_positions"].astype(np.int32),
        rows.get("types"),
        targets,
        soft=_soft(rows),
    )
    return _with_prefixes(batch, rows.get("seen"), shared, groups)


def _with_prefixes(
    batch: Batch, seen: np.ndarray | None, shared: SharedPrefixes, groups: int
) -> Batch:
    """The batch with the shared prefixes over the rows of each group, and positions after them."""
    if not shared or seen is None:
        return batch
    tokens, positions, numbers = (
        np.tile(part, (groups, 1))
        for part in shared.laid(len(batch.tokens) // groups, batch.tokens.shape[1])
    )
    prefixes = Prefixes(tokens, positions, numbers, seen)
    return batch._replace(positions=batch.positions + shared.lengths[seen], prefixes=prefixes)


def target_names(row: Mapping[str, np.ndarray]) -> list[str]:
    """The heads that a row has labels for."""
    return [name.removesuffix("/labels") for name in row if name.endswith("/labels")]


def _soft(rows: Mapping[str, np.ndarray]) -> dict[str, Soft] | None:
    """What a teacher says of each target; None where there is none."""
    found = {
        name: Soft(rows[f"{name}/soft"], rows[f"{name}/shares"])
        for name in target_names(rows)
        if f"{name}/soft" in rows
    }
    return found or None


def _filled(segments: np.ndarray) -> np.ndarray:
    """Segment ids with the padding at the end made larger than any, so that they are sorted."""
    return np.where(segments == 0, np.iinfo(np.int32).max, segments)


def prompts(examples: Sequence[Tokens], rows: int, shared: SharedPrefixes = NONE) -> PromptBatch:
    """Prompts without answers, padded on the left; missing rows repeat the last example.

    Prefixes that are `shared` are left out. Where decoders of their own write the answers, labels
    are what these begin with, all of one length.
    """
    examples = [*examples, *[examples[-1]] * (rows - len(examples))]
    seen = np.array([shared.number(item) for item in examples], np.int32)
    texts = [
        item.text if number else np.concatenate([item.prefix, item.text])
        for item, number in zip(examples, seen, strict=True)
    ]
    width = bucket(max(map(len, texts)))
    tokens, segment_ids, positions = (np.zeros((rows, width), np.int32) for _ in range(3))
    for index, (ids, number) in enumerate(zip(texts, seen, strict=True)):
        tokens[index, width - len(ids) :] = ids
        segment_ids[index, width - len(ids) :] = 1
        positions[index, width - len(ids) :] = np.arange(len(ids)) + shared.lengths[number]
    answer = None
    if examples[0].apart and len(examples[0].label):
        answer = np.stack([item.label for item in examples])
    return PromptBatch(tokens, segment_ids, positions, seen if shared else None, answer)


def prefix_row(shared: SharedPrefixes) -> PromptBatch:
    """All shared prefixes in one row, a segment each."""
    tokens, positions, numbers = shared.laid(1)
    return PromptBatch(tokens, numbers, positions)
