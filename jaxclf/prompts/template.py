"""What a prompt is made of, and the answer that is to follow it.

A prompt is two runs of pieces, before and after the text. Pieces of a template may hold a
model's special tokens; pieces of data (label names, the texts and answers of examples) may not,
whatever they contain, so each piece says which it is.

    answer(record, (intent,))                    →  alarm_set
    answer(record, (intent,), lettered=True)     →  A
"""

import functools
import itertools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Record, SlotFormat, Task, plain_slots

SLOT_FORMATS = ("names", "bio")
"""Slots as plain names, where equal neighbours form one span, or as BIO tags."""


@dataclass(frozen=True)
class Piece:
    """A run of text. `is_data`: special tokens in it are plain text."""

    text: str
    is_data: bool


@dataclass(frozen=True)
class Prompt:
    """What stands before and after the text, and the `lead` between the prompt and the answer.

    lettered: a class is answered by the letter of an option, see `letter`. cue: where thoughts come
    first, the words of the output that its answer stands after; "" where all of it is the answer.
    system: without a wrapper, how many characters of `before` are the system part.
    """

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    lead: str = " "
    lettered: bool = False
    cue: str = ""
    system: int = 0

    def render(self, text: str) -> str:
        """The prompt for `text` as a person reads it."""
        return "".join(
            [
                *(piece.text for piece in self.before),
                text,
                *(piece.text for piece in self.after),
            ]
        )

    def messages(self, text: str) -> list[dict[str, str]]:
        """The prompt for `text` as messages of a chat: the system part, if any, and the rest.

        For prompts without a wrapper: the server adds the chat tokens of its model. A lone
        surrogate, which UTF-8 has no form for, becomes a question mark.
        """
        whole = self.render(text).encode("utf-8", "replace").decode()
        parts = {"system": whole[: self.system].strip(), "user": whole[self.system :]}
        return [{"role": role, "content": part} for role, part in parts.items() if part]


PromptSource = Prompt | Callable[[int, Record], Prompt]
"""One prompt for all records, or one for each by its number."""


def answer(
    record: Record, tasks: Sequence[Task], slot_format: SlotFormat = "names", lettered: bool = False
) -> str:
    """The text a model should generate for `record`.

    One class is the bare label, or its letter if `lettered`; slots are a JSON list with one label
    per word; several tasks are one JSON object: `{"task1": "alarm_set", "task2": ["Other",
    "time"]}`. A word outside every slot is "Other", or "O" in BIO format. Raises InputError where
    the record has no gold.
    """
    values = [_value(record, task, slot_format, lettered) for task in tasks]
    if len(values) > 1:
        fields = {f"task{number}": value for number, value in enumerate(values, 1)}
        return json.dumps(fields, ensure_ascii=False)
    (value,) = values
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(record: Record, task: Task, slot_format: SlotFormat, lettered: bool) -> str | list[str]:
    gold = record.labels.get(task.name)
    if task.kind == "class" and isinstance(gold, str):
        return letters(task).get(gold, gold) if lettered else gold
    if task.kind == "slots" and isinstance(gold, tuple):
        return list(gold if slot_format == "bio" else plain_slots(gold))
    raise InputError(
        f"record {record.id}: {task.name} is {gold!r}; an answer needs its gold {task.kind}"
    )


@functools.lru_cache
def letters(task: Task) -> Mapping[str, str]:
    """The options' letters by label, in the labels' order: A to Z, then AA, AB …"""
    names = itertools.chain.from_iterable(
        map("".join, itertools.product(string.ascii_uppercase, repeat=count))
        for count in itertools.count(1)
    )
    return dict(zip(task.labels, names, strict=False))


def cue(tasks: Sequence[Task], lettered: bool = False) -> str:
    """The words after which the answer starts."""
    if len(tasks) > 1:
        return "Output:"
    if lettered:
        return "Answer:"
    return "Label:" if tasks[0].kind == "class" else "Slots:"


def label_list(task: Task, slot_format: SlotFormat) -> str:
    """The labels as a Python list: `['alarm_set', 'play_music']`."""
    if task.kind == "slots" and slot_format == "bio":
        return str([f"{prefix}-{name}" for name in task.labels for prefix in "BI"])
    return str(list(task.labels))


def fixed(text: str) -> Piece:
    return Piece(text, is_data=False)


def data(text: str) -> Piece:
    return Piece(text, is_data=True)


def joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Pieces as a tokenizer should see them: neighbours of one kind joined, empty ones dropped.

    A space before data moves into it: " sci" is one token, as after the cue before an answer.
    """
    joined: list[Piece] = []
    for piece in pieces:
        text = piece.text
        if joined and joined[-1].is_data == piece.is_data:
            text = joined.pop().text + text
        elif joined and piece.is_data and joined[-1].text.endswith(" "):
            joined[-1] = fixed(joined[-1].text[:-1])
            text = " " + text
        if text:
            joined.append(Piece(text, piece.is_data))
    return tuple(piece for piece in joined if piece.text)


def filled(
    template: str, values: Mapping[str, Sequence[Piece]], source: str
) -> tuple[list[Piece], list[Piece], set[str]]:
    """(pieces before `$text`, pieces after it, names used) of a `$` template, as `string.Template`.

    `values`: what stands for the other names. Raises InputError, which names `source` and line,
    for an unknown name, a lone dollar sign, and where `$text` does not stand once.
    """
    parts: list[list[Piece]] = [[]]  # split where $text stands
    seen: set[str] = set()
    position = 0
    for match in string.Template.pattern.finditer(template):
        parts[-1].append(fixed(template[position : match.start()]))
        position = match.end()
        name = match["named"] or match["braced"]
        if match["escaped"] is not None:
            parts[-1].append(fixed("$"))
        elif name == "text":
            parts.append([])
        elif name not in values:
            line = template.count("\n", 0, match.start()) + 1
            possible = ", ".join(f"${known}" for known in ("text", *values))
            raise InputError(
                f"{source}:{line}: {f'${name}' if name else 'a lone $'} is no placeholder; "
                f"possible: {possible}, and $$ for a dollar sign"
            )
        else:
            parts[-1] += values[name]
        seen.add(name or "")
    parts[-1].append(fixed(template[position:]))
    if len(parts) != 2:
        raise InputError(
            f"{source}: $text stands {len(parts) - 1} times; expected once, where the text goes"
        )
    return parts[0], parts[1], seen
