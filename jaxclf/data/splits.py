"""Splits drawn from the training split: dev, test, folds, and few labels to learn from.

What is drawn depends on the ids of the records and a seed alone, never on their order. Records of
the same text, or of the same group, stay on one side: a model is not asked what it has learnt by
heart. Each class gives its share.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Label, Record, Task

Splits = dict[str, list[Record]]


def hold_out(
    train: Sequence[Record], shares: Mapping[str, float], tasks: Sequence[Task], seed: int
) -> Splits:
    """Train and what is held out of it: each split its share of every class.

    With several class tasks, a class is a combination of their labels. At least one record of each
    stays in train. Where classes are too small for a share of their own, they give it together.
    """
    units = _units(train)
    order = _shares(train, units, tasks, seed)
    wanted = {split: share * len(train) for split, share in shares.items() if share}
    kept = Counter(_class_of(train[unit[0]], tasks) for unit in units)
    found: dict[str, list[int]] = {split: [] for split in wanted}
    for number in order:
        unit = units[number]
        name = _class_of(train[unit[0]], tasks)
        due = [split for split in wanted if len(found[split]) + len(unit) <= round(wanted[split])]
        if due and kept[name] > 1:
            found[due[0]] += unit
            kept[name] -= 1
    held_out = {place: split for split, places in found.items() for place in places}
    result: Splits = {split: [] for split in ("train", *wanted)}
    for place, record in enumerate(train):
        result[held_out.get(place, "train")].append(record)
    return {split: records for split, records in result.items() if records}


def folds(train: Sequence[Record], count: int, tasks: Sequence[Task], seed: int) -> list[int]:
    """The fold of each record, 0 to `count` - 1: of about one size, each with its share of every
    class. Raises InputError where there are fewer texts than folds."""
    units = _units(train)
    if len(units) < count:
        raise InputError(
            f"data.folds is {count}; the training split has {len(units):,} different texts. "
            "Lower it"
        )
    found, sizes = [0] * len(train), [0] * count
    by_class: dict[Any, list[int]] = {}
    for number in _shares(train, units, tasks, seed):
        by_class.setdefault(_class_of(train[units[number][0]], tasks), []).append(number)
    for numbers in by_class.values():
        filled = [0] * count
        for number in numbers:
            fold = min(range(count), key=lambda fold: (filled[fold], sizes[fold], fold))
            for place in units[number]:
                found[place] = fold
            filled[fold] += len(units[number])
            sizes[fold] += len(units[number])
    return found


def _units(records: Sequence[Record]) -> list[list[int]]:
    """Places of records that stay together: those linked by an equal text or group."""
    parent = list(range(len(records)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    first: dict[tuple[str, ...], int] = {}
    for place, record in enumerate(records):
        keys: list[tuple[str, ...]] = [("text", folded(record.text), folded(record.pair))]
        if record.group:
            keys.append(("group", record.group))
        for key in keys:
            parent[root(place)] = root(first.setdefault(key, place))
    units: dict[int, list[int]] = {}
    for place in range(len(records)):
        units.setdefault(root(place), []).append(place)
    return list(units.values())


def folded(text: str) -> str:
    """Texts that differ in case or spaces alone are the same."""
    return " ".join(text.split()).casefold()


def _shares(
    records: Sequence[Record], units: Sequence[Sequence[int]], tasks: Sequence[Task], seed: int
) -> list[int]:
    """Numbers of units in an order whose every beginning has about its share of each class: each
    class in turn as its share is due (Sainte-Laguë's divisors), by hashed ids within a class."""
    digests = [min(_digest(records[place], seed) for place in unit) for unit in units]
    classes: dict[Any, list[int]] = {}
    for number, unit in enumerate(units):
        classes.setdefault(_class_of(records[unit[0]], tasks), []).append(number)
    return _in_turn(classes, digests)


def _in_turn(
    classes: Mapping[Any, Sequence[int]], digests: Sequence[bytes], one_each: bool = False
) -> list[int]:
    """All numbers, each class in turn as its share is due; `one_each`: first one of each class."""
    due: dict[int, tuple[bool, float, str, bytes]] = {}
    for name, numbers in classes.items():
        for turn, number in enumerate(sorted(numbers, key=digests.__getitem__)):
            share = (turn + 0.5) / len(numbers)
            due[number] = (one_each and turn > 0, share, str(name), digests[number])
    return sorted(due, key=due.__getitem__)


def _class_of(record: Record, tasks: Sequence[Task]) -> tuple[Label, ...]:
    return tuple(record.labels[task.name] for task in tasks if task.kind == "class")


def few(train: Sequence[Record], count: int, tasks: Sequence[Task], seed: int) -> list[Record]:
    """`count` of the records, by the labels of the first class task, in the order they had.

    They are the beginning of one order, so that more of a seed hold all of fewer: first a record of
    each class, the frequent ones before the rare; then each class in turn as its share is due
    (Sainte-Laguë's divisors). Without a class task the order is random.
    """
    if count > len(train):
        raise InputError(
            f"data.train_examples is {count:,}; the train split has {len(train):,} records. Lower "
            "it, or set it to 0 for all"
        )
    name = next((task.name for task in tasks if task.kind == "class"), None)
    classes: dict[Any, list[int]] = {}
    for place, record in enumerate(train):
        classes.setdefault(record.labels[name] if name else "", []).append(place)
    digests = [_digest(record, seed) for record in train]
    return [train[place] for place in sorted(_in_turn(classes, digests, one_each=True)[:count])]


def _digest(record: Record, seed: int) -> bytes:
    """What orders the records of a class by chance."""
    return sha256(f"{seed}:{record.id}".encode()).digest()


def spread(items: Sequence[Record], count: int) -> list[Record]:
    """At most `count` items at even distances: a file sorted by class gives every class."""
    if count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
