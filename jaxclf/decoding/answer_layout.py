"""Answers as fixed tokens and choices, so that a label can be chosen instead of generated.

    {"task1": "alarm_set", "task2": ["Other", "time"]}

    lead         {"task1": "
    field 1      alarm_set", "task2": ["        one piece a label, with what follows it
    field 2      Other", "                      one piece a slot and word
                 time"]}                        and another for the last word

Pieces are cut from whole encoded answers, at places that do not depend on the labels: put together
they are the very ids that the model was trained on.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Label, Record, SlotFormat, Task, head_labels
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.trie import Ids
from jaxclf.prompts import builder

# What no label is likely to begin or end with: it shows where the text around labels ends.
_PROBES = ("0", "Q")


@dataclass(frozen=True)
class Field:
    """One task's part of the answer.

    pieces: of each label (of a slots task: of the last word) with what follows it up to the next
    field. inner: of slots, of a word before another. fixed: how many tokens at the end of `pieces`
    are the same for all labels and tell nothing of them.
    """

    task: Task
    names: tuple[str, ...]
    pieces: tuple[Ids, ...]
    inner: tuple[Ids, ...] = ()
    fixed: int = 0

    @property
    def scored(self) -> tuple[Ids, ...]:
        """The pieces up to the first token after the label, which says that the label ends."""
        cut = max(0, self.fixed - 1)
        return tuple(piece[: len(piece) - cut] for piece in self.pieces)


@dataclass(frozen=True)
class Layout:
    """What all answers begin with, and the fields in their order."""

    tasks: tuple[Task, ...]
    slot_format: SlotFormat
    lead: Ids
    fields: tuple[Field, ...]
    lettered: bool = False

    def text(self, labels: Mapping[str, Label]) -> str:
        """The answer as a model would write it; slots as they stand in it."""
        return _text(self.tasks, self.slot_format, labels, self.lettered)


def layout(
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    slot_format: SlotFormat,
    lead: str = " ",
    lettered: bool = False,
) -> Layout:
    """Cut the answers to `tasks` into pieces; `lettered`: classes are answered by letters.

    Raises InputError where the tokenizer joins a label with its neighbours, or tells two labels
    not apart.
    """
    return _Cutter(tuple(tasks), tokenizer, slot_format, lead, lettered).layout()


class _Cutter:
    """Encodes whole answers that differ from a reference in one field."""

    def __init__(
        self,
        tasks: tuple[Task, ...],
        tokenizer: Tokenizer,
        slot_format: SlotFormat,
        lead: str,
        lettered: bool,
    ):
        self.tasks, self.tokenizer, self.lead, self.lettered = tasks, tokenizer, lead, lettered
        self.slot_format: SlotFormat = slot_format
        self.names = {task.name: head_labels(task, slot_format) for task in tasks}
        self.reference = {task.name: self.label(task, self.names[task.name][0]) for task in tasks}

    def layout(self) -> Layout:
        whole = self.ids({})
        starts = [self.start(task) for task in self.tasks]
        rests = [len(whole) - start for start in starts[1:]] + [0]
        fields = tuple(map(self.field, self.tasks, starts, rests))
        found = Layout(self.tasks, self.slot_format, whole[: starts[0]], fields, self.lettered)
        self.check(found)
        return found

    def label(self, task: Task, *names: str) -> Label:
        return names if task.kind == "slots" else names[0]

    def ids(self, labels: Mapping[str, Label]) -> Ids:
        """The reference's answer with these labels in place of its own."""
        text = _text(self.tasks, self.slot_format, self.reference | dict(labels), self.lettered)
        return tuple(self.tokenizer.encode_answer(text, self.lead))

    def start(self, task: Task) -> int:
        """Where the answers begin to differ by this task's label."""
        names = self.names[task.name]
        names = names if len(names) > 1 else (*names, *_PROBES)
        return _common(self.ids({task.name: self.label(task, name)}) for name in names)

    def field(self, task: Task, start: int, rest: int) -> Field:
        """`rest`: tokens of the reference from the next field on."""
        names = self.names[task.name]

        def piece(*words: str, rest: int = rest) -> Ids:
            ids = self.ids({task.name: self.label(task, *words)})
            return ids[start : len(ids) - rest]

        pieces = tuple(map(piece, names))
        inner: tuple[Ids, ...] = ()
        if task.kind == "slots":
            last = len(pieces[0]) + rest
            inner = tuple(piece(name, names[0], rest=last) for name in names)
        for ids in (pieces, inner):
            known: dict[Ids, str] = {}
            for name, piece_ids in zip(names, ids, strict=bool(ids)):
                if piece_ids in known:
                    raise InputError(
                        f"the tokenizer {self.name} has the same tokens for {known[piece_ids]!r} "
                        f"and {name!r} of {task.name}. Rename one, or set eval.decoding=free"
                    )
                known[piece_ids] = name
        ends = (ids[::-1] for ids in (*pieces, *map(piece, _PROBES)))
        return Field(task, names, pieces, inner, fixed=_common(ends))

    def check(self, found: Layout) -> None:
        """Raise InputError where pieces put together are not the answer's own ids."""
        for labels in self.samples():
            ids = found.lead
            for field in found.fields:
                value = labels[field.task.name]
                *words, last = value if isinstance(value, tuple) else (str(value),)
                for word in words:
                    ids += field.inner[field.names.index(word)]
                ids += field.pieces[field.names.index(last)]
            if ids != self.ids(labels):
                raise InputError(
                    f"the tokenizer {self.name} cuts labels otherwise beside other labels, as in "
                    f"{found.text(labels)!r}, so that they cannot be chosen one by one. Set "
                    "eval.decoding=free"
                )

    def samples(self) -> Iterator[dict[str, Label]]:
        """Labels that no piece was cut from together; every label of every task is among them."""
        for index in range(max(map(len, self.names.values()))):
            labels: dict[str, Label] = {}
            for number, task in enumerate(self.tasks):
                names = self.names[task.name]
                places = (index + number + step for step in (0, 0, 1))  # as of "time, time, date"
                chosen = [names[place % len(names)] for place in places]
                labels[task.name] = self.label(task, *chosen)
            yield labels

    @property
    def name(self) -> str:
        return self.tokenizer.hf.name_or_path or self.tokenizer.fingerprint[:12]


def _text(
    tasks: Sequence[Task], slot_format: SlotFormat, labels: Mapping[str, Label], lettered: bool
) -> str:
    """The answer with these labels, slots as they stand in it."""
    gold: dict[str, Label] = dict(labels)
    for task in tasks:
        value = labels[task.name]
        if isinstance(value, tuple) and slot_format == "names":
            none = head_labels(task, slot_format)[0]
            gold[task.name] = tuple("O" if name == none else f"B-{name}" for name in value)
    return builder.answer(Record("", "", gold), tasks, slot_format, lettered)


def _common(sequences: Iterator[Ids]) -> int:
    """How many tokens all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
