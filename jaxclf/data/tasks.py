"""What a record is and what is asked of it.

A task names the values an answer may take; a record is one text with its gold value for every
selected task. A record carrying two tasks' labels *is* the multi-task example:

    Record("7", "wake me at five am", {"intent": "alarm_set", "slots": ("O", "O", "O", "B-time",
    "I-time")})
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

OTHER = "Other"  # what a word outside every slot is called in prompts and answers

TaskKind = Literal["class", "slots", "multilabel", "regression"]
SlotFormat = Literal["names", "bio"]  # plain slot names, or BIO tags
Label = str | tuple[str, ...] | float | None


@dataclass(frozen=True)
class Task:
    """One question asked of a text.

    `labels` are the values an answer may take, sorted: class names for the kinds "class" (one of
    them) and "multilabel" (any number of them); slot type names, without OTHER, for kind "slots";
    empty for kind "regression". `positive`: the class whose F1 is reported as `f1`; "": of none.
    `metric`: the one that stands for the task; "": that of its kind.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...]
    positive: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Record:
    """One text, or a pair of texts, with its gold label per task name.

    A label is a class name, a tuple of BIO tags with one tag per word of `text` ("O", "B-time",
    "I-time"), a sorted tuple of class names (multilabel), a number, or None where the data set
    hides it. Records of a `group` stay on one side where a split is drawn.
    """

    id: str
    text: str
    labels: Mapping[str, Label]
    pair: str = ""
    group: str = ""


def words(text: str) -> list[str]:
    """The words of a text: `"wake me  up" → ["wake", "me", "up"]`. The one definition of a word."""
    return text.split()


def plain_slots(bio: Iterable[str]) -> tuple[str, ...]:
    """BIO tags as plain names: `("B-time", "I-time", "O") → ("time", "time", "Other")`."""
    return tuple(OTHER if tag == "O" else tag[2:] for tag in bio)


def bio_slots(plain: Sequence[str]) -> tuple[str, ...]:
    """Plain names as BIO tags, consecutive equal names forming one span:
    `("time", "time", "Other") → ("B-time", "I-time", "O")`.

    Adjacent spans of the same slot, which BIO tells apart, cannot be told apart in plain names.
    """
    tags = []
    previous = OTHER
    for name in plain:
        if name == OTHER:
            tags.append("O")
        else:
            tags.append(f"I-{name}" if name == previous else f"B-{name}")
        previous = name
    return tuple(tags)


@lru_cache
def head_labels(task: Task, slot_format: SlotFormat) -> tuple[str, ...]:
    """What the scores of a head stand for, in their order; empty for a number.

    Slots: no slot first, then the slots' names, or the two BIO tags of each.
    """
    if task.kind != "slots":
        return task.labels
    if slot_format == "bio":
        return ("O", *(f"{prefix}-{name}" for name in task.labels for prefix in "BI"))
    return (OTHER, *task.labels)


def label_names(label: Label, kind: TaskKind) -> set[str]:
    """The labels of a task that a gold label is made of: one class, several, or slots' names."""
    if isinstance(label, str):
        return {label}
    if not isinstance(label, tuple):
        return set()
    return {tag[2:] for tag in label if tag != "O"} if kind == "slots" else {*label}


def unseen_labels(gold: Iterable[Label], task: Task) -> Counter[str]:
    """The labels in `gold` that no answer to the task can be, sorted, and how many records have
    each: those of a test split that the training split lacks."""
    names = (label_names(label, task.kind) - {*task.labels} for label in gold)
    counts = Counter(itertools.chain.from_iterable(names))
    return Counter(dict(sorted(counts.items())))


def has_gold(record: Record, tasks: Sequence[Task]) -> bool:
    """Whether `record` carries a label for every task."""
    return all(record.labels.get(task.name) is not None for task in tasks)
