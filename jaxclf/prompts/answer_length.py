"""How long an answer may get: the room that a prompt leaves for it."""

import math
from collections.abc import Callable, Sequence

from jaxclf.data.tasks import Record, SlotFormat, Task, has_gold
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.prompts import builder
from jaxclf.prompts.builder import Prompt

_MORE_SLOTS = 1.25  # of the longest answer seen: a text to come may hold more slots


def in_tokens(
    tasks: Sequence[Task],
    train_records: Sequence[Record],
    slot_format: SlotFormat,
    prompt: Prompt,
    tokenizer: Tokenizer,
) -> int:
    """Tokens of the longest answer to `prompt`, with its end of sequence."""

    def answer(record: Record) -> str:
        return prompt.lead + builder.answer(record, tasks, slot_format, prompt.lettered)

    def sizes(texts: Sequence[str]) -> list[int]:
        return [len(ids) + 1 for ids in tokenizer.encode_batch(texts, is_data=True)]

    return _longest(tasks, train_records, answer, sizes)


def in_characters(
    tasks: Sequence[Task], train_records: Sequence[Record], slot_format: SlotFormat
) -> int:
    """Tokens that the longest answer may take, whatever tokens the model has.

    Two characters are taken as a token: names such as comp.sys.ibm.pc.hardware have short ones,
    and what is given too much costs nothing.
    """

    def answer(record: Record) -> str:
        return builder.answer(record, tasks, slot_format)

    longest = _longest(tasks, train_records, answer, lambda texts: [len(text) for text in texts])
    return math.ceil(longest / 2) + 8  # of which some end the answer


def _longest(
    tasks: Sequence[Task],
    train_records: Sequence[Record],
    answer: Callable[[Record], str],
    sizes: Callable[[Sequence[str]], list[int]],
) -> int:
    """The largest size of an answer, as far as it can be known.

    Classes are all known beforehand; a slots answer grows with its text, so the training split's
    longest gets more room.
    """
    known = {answer(record) for record in train_records if has_gold(record, tasks)}
    longest = max(sizes(sorted(known)), default=0)
    if any(task.kind == "slots" for task in tasks):
        return math.ceil(_MORE_SLOTS * longest)
    worst = {}
    for task in tasks:
        by_label = dict(zip(task.labels, sizes(task.labels), strict=True))
        worst[task.name] = max(task.labels, key=by_label.__getitem__)
    return max(longest, *sizes([answer(Record("", "", worst))]))
