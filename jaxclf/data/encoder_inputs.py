"""Records as an encoder reads them: one text or a pair with the family's special tokens.

`wake me at five` with an intent and slots is, for BERT,

    tokens              [CLS] wake me at five [SEP]
    intent positions      0                          labels: one class
    slots positions             1    2  3   4        labels: one slot a word, at its first token
"""

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Label, Record, SlotFormat, Task, head_labels, plain_slots
from jaxclf.data.tokenizer import Tokenizer

TokenAt = Literal["first", "last"]
Target = tuple[np.ndarray, np.ndarray]  # positions [J] and labels [J] or [J, C]
Soft = tuple[np.ndarray, np.ndarray]  # a teacher's probabilities [J, C], and shares [J, 2]


@dataclass(frozen=True)
class Encoded:
    """One example of an encoder.

    `types`: 1 in the second text of a pair, else 0. `targets`: for each task where it is predicted
    and what (zeros where gold is not wanted). `words`: for each predicted slot the word it is for.
    `cut`: tokens cut from the end of the text. `soft`: where the example has a teacher, for each
    task what it says of each position, and how much the label and its word count there.
    """

    id: str
    tokens: Int32[np.ndarray, " T"]
    types: Int32[np.ndarray, " T"]
    targets: dict[str, Target]
    words: tuple[int, ...]
    cut: int
    soft: Mapping[str, Soft] = field(default_factory=dict)


def encode(
    records: Sequence[Record],
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    slot_format: SlotFormat,
    max_length: int,
    *,
    truncate: bool = True,
    gold: bool = True,
    hidden: bool = False,
    text_at: TokenAt = "first",
    word_at: TokenAt = "first",
) -> list[Encoded]:
    """Encode `records` into at most `max_length` tokens each, with the labels if `gold`.

    `hidden`: a task whose gold is not known has its positions all the same, with zeros as labels.
    `text_at`, `word_at`: the token at which a text, or a word, is labelled.

    The longer text of a pair is cut first. A word that is cut, or that the tokenizer leaves
    nothing of, has no place. A task whose gold is not known has none either. Raises InputError
    where a text is too long and `truncate` is off.
    """
    encodings = tokenizer.encode_inputs(
        [record.text for record in records], [record.pair for record in records], max_length
    )
    has_slots = any(task.kind == "slots" for task in tasks)
    readers = {task.name: _reader(task, slot_format) for task in tasks}
    found = []
    for record, (encoding, cut) in zip(records, encodings, strict=True):
        if cut and not truncate:
            raise InputError(
                f"record {record.id} has {len(encoding) + cut:,} tokens; max_length is "
                f"{max_length:,}. Raise train.max_length or set data.truncate=True."
            )
        # Of an empty text a tokenizer without marks leaves nothing to read.
        ids, types = encoding.ids or [tokenizer.eos_id], encoding.type_ids or [0]
        word_places: dict[int, int] = {}
        for word, token in _word_tokens(record.text, encoding) if has_slots else ():
            if word_at == "last" or word not in word_places:
                word_places[word] = token
        targets = {}
        for task in tasks:
            whole = len(ids) - 1 if text_at == "last" else 0
            places = list(word_places.values()) if task.kind == "slots" else [whole]
            label = record.labels.get(task.name) if gold else None
            if gold and label is None and not hidden:
                places = []
            labels = readers[task.name](label, list(word_places), len(places))
            targets[task.name] = (np.array(places, np.int32), labels)
        found.append(
            Encoded(
                record.id,
                np.array(ids, np.int32),
                np.array(types, np.int32),
                targets,
                tuple(word_places),
                cut,
            )
        )
    return found


def _word_tokens(text: str, encoding: Any) -> Iterator[tuple[int, int]]:
    """(word, a token that begins in it) for every such token of the first text, in order."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    firsts = [start for start, _ in spans]
    # Of a pair, post-processing marks the second text alone as what it is.
    marks = zip(encoding.offsets, encoding.sequence_ids, encoding.special_tokens_mask, strict=True)
    for token, ((start, end), sequence, is_special) in enumerate(marks):
        if is_special or sequence == 1:
            continue
        while start < end and text[start].isspace():  # byte-level tokens begin with their space
            start += 1
        word = bisect.bisect_right(firsts, start) - 1
        if start < end:
            yield word, token


def _reader(task: Task, slot_format: SlotFormat) -> Any:
    """A function (gold label or None, words with a place, places) → labels, zeros without gold."""
    index = {label: number for number, label in enumerate(head_labels(task, slot_format))}

    def read(label: Label, words: list[int], places: int) -> np.ndarray:
        if task.kind == "multilabel":
            flags = np.zeros((places, len(index)), np.float32)
            if places and isinstance(label, tuple):
                flags[0, [index[name] for name in label]] = 1
            return flags
        if task.kind == "regression":
            return np.full(places, 0.0 if label is None else label, np.float32)
        if label is None:
            return np.zeros(places, np.int32)
        if isinstance(label, str):
            return np.array([index[label]], np.int32)
        assert isinstance(label, tuple)
        items = label if slot_format == "bio" else plain_slots(label)
        return np.array([index[items[word]] for word in words], np.int32)

    return read
