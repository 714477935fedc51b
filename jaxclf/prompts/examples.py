"""Records as token ids by a prompt: prefix, text and label kept apart."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxclf.core.errors import InputError
from jaxclf.data.examples import Tokens
from jaxclf.data.tasks import Record, SlotFormat, Task, has_gold
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.prompts.builder import Prompt, answer


def tokenize(
    records: Sequence[Record],
    tasks: Sequence[Task],
    prompt: Prompt | Callable[[int, Record], Prompt],
    tokenizer: Tokenizer,
    slot_format: SlotFormat,
    max_length: int,
    *,
    truncate: bool = True,
    reserve: int = 0,
    apart: bool = False,
) -> list[Tokens]:
    """Encode `records` into at most `max_length` tokens each.

    `prompt` is one for all, or a function of an example's index and record. Room is kept for the
    label, or for `reserve` tokens where that is more (generation: the longest answer and eos), so
    only the end of the text is ever cut. `apart`: see `Tokens`. Raises InputError where the prompt
    leaves no room, and with `truncate=False` for every record that is too long.
    """
    tokens = []
    texts = tokenizer.encode_batch([record.text for record in records], is_data=True)
    prompts = _encode_prompts(records, prompt, tokenizer)
    for record, text, (prefix, suffix, asked) in zip(records, texts, prompts, strict=True):
        label: list[int] = []
        suffix = [*suffix, tokenizer.eos_id] if apart else suffix
        if has_gold(record, tasks):
            gold = answer(record, tasks, slot_format, asked.lettered)
            label = [*tokenizer.encode_answer(gold, asked.lead), tokenizer.eos_id]
        taken = len(prefix) + len(suffix) + max(len(label), reserve)
        room = max_length - taken
        if room < 0:
            raise InputError(
                f"record {record.id}: prompt and answer alone have {taken:,} tokens; max_length "
                f"is {max_length:,}. Raise train.max_length or lower prompt.shots."
            )
        if len(text) > room and not truncate:
            raise InputError(
                f"record {record.id} has {taken + len(text):,} tokens; max_length is "
                f"{max_length:,}. Raise train.max_length or set data.truncate=True."
            )
        tokens.append(
            Tokens(
                id=record.id,
                prefix=prefix,
                text=np.array(text[:room] + suffix, np.int32),
                label=np.array(label, np.int32),
                cut=max(0, len(text) - room),
                apart=apart,
            )
        )
    return tokens


def _encode_prompts(
    records: Sequence[Record],
    prompt: Prompt | Callable[[int, Record], Prompt],
    tokenizer: Tokenizer,
) -> Iterator[tuple[np.ndarray, list[int], Prompt]]:
    """For each record the prompt's ids before the text, those after it, and the prompt itself."""
    if isinstance(prompt, Prompt):
        yield from itertools.repeat(_encode_prompt(prompt, tokenizer), len(records))
    else:
        for index, record in enumerate(records):
            yield _encode_prompt(prompt(index, record), tokenizer)


def _encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> tuple[np.ndarray, list[int], Prompt]:
    before: list[int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for piece in prompt.before:
        before += tokenizer.encode(piece.text, piece.is_data)
    after: list[int] = []
    for piece in prompt.after:
        after += tokenizer.encode(piece.text, piece.is_data)
    return np.array(before, np.int32), after, prompt
