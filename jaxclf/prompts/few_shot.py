"""Solved examples for a prompt, chosen from the training split.

choose = chooser(config.prompt, train_records, tasks, seed=0)
choose()                    the same ones for a whole run
choose(7, record)           those for the text number 7: fresh or similar ones, never itself
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxclf.core import streams
from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Record, Task, has_gold

Chooser = Callable[..., list[Record]]  # (index, record) or nothing → examples


def chooser(
    prompt_config: Any,
    train_records: Sequence[Record],
    tasks: Sequence[Task],
    seed: int,
    draw: int = 0,
    order: int = 0,
) -> Chooser:
    """A function that gives the `prompt.shots` examples of a prompt, as `prompt.choose` says.

    `draw`: the number of the set among several of a run. `order`: that of the order they stand in;
    order 0 is as they were chosen. Raises InputError where the split has too few, or no class to
    balance by.
    """
    count, choose = prompt_config.shots, prompt_config.get("choose", "seed")
    usable = [record for record in train_records if has_gold(record, tasks)] if count else []
    drawn = functools.partial(by_seed, usable, count, seed, draw=draw)
    similar = None
    if count and choose == "balanced":
        drawn = _balanced(usable, tasks, count, seed, draw)
    elif count and choose == "similar":
        _check(count, usable)
        similar = _similar(usable, count)
    places = orders(count, order + 1, seed)[order]

    def chosen(index: int | None = None, record: Record | None = None) -> list[Record]:
        if similar is not None and record is not None:
            found = similar(record)
        else:
            found = drawn(index=index, exclude_id=record.id if record else None)
        _check(count, found)
        return [found[place] for place in places]

    return chosen


def by_seed(
    records: Sequence[Record],
    count: int,
    seed: int,
    index: int | None = None,
    exclude_id: str | None = None,
    draw: int = 0,
) -> list[Record]:
    """Draw `count` different records.

    The same ones for a whole run, or (`index` given) fresh ones for the example of that number,
    never the record `exclude_id` itself. Raises InputError where there are too few.
    """
    spare = 0 if exclude_id is None else 1
    places = _random(seed, index, draw).choice(
        len(records), size=min(count + spare, len(records)), replace=False
    )
    found = [records[i] for i in places if records[i].id != exclude_id][:count]
    _check(count, found)
    return found


def _check(count: int, found: Sequence[Record]) -> None:
    if len(found) < count:
        raise InputError(
            f"prompt.shots is {count}; the training split has {len(found)} usable examples. "
            "Lower prompt.shots or give more training records."
        )


def orders(count: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """`number` different orders of `count` things, the first as they stand.

    >>> orders(3, 2, seed=0)               # [(0, 1, 2), (2, 1, 0)]
    """
    found = {tuple(range(count)): None}
    random = streams.generator(seed, "order of examples")
    while len(found) < number:
        found[tuple(random.permutation(count).tolist())] = None
    return list(found)


def _random(seed: int, index: int | None, draw: int) -> np.random.Generator:
    """The same for a whole run, or (`index` given) another for the example of that number."""
    return streams.generator(seed, "examples of prompts", draw, "" if index is None else index)


def _balanced(
    records: Sequence[Record], tasks: Sequence[Task], count: int, seed: int, draw: int
) -> Chooser:
    """One of each class in a random order of the classes, then a second of each, and so on."""
    names = [task.name for task in tasks if task.kind == "class"]
    if not names:
        raise InputError(
            f"prompt.choose is 'balanced', but {tasks[0].name} has no classes to balance by. Set "
            "it to 'seed' or 'similar'"
        )
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record.labels[name] for name in names)].append(record)
    classes = [groups[key] for key in sorted(groups, key=str)]

    def chosen(index: int | None = None, exclude_id: str | None = None) -> list[Record]:
        random = _random(seed, index, draw)
        ordered = [classes[i] for i in random.permutation(len(classes))]
        rounds = -(-count // len(ordered)) + 1  # one to spare for the record itself
        picked = [
            [group[i] for i in random.permutation(len(group))[:rounds] if group[i].id != exclude_id]
            for group in ordered
        ]
        turns = itertools.zip_longest(*picked)
        found = [record for turn in turns for record in turn if record is not None]
        missing = count - len(found)
        if missing > 0:  # small classes are used up: the rest from the others
            used = {record.id for record in found} | {exclude_id}
            rest = [record for group in ordered for record in group if record.id not in used]
            found += [rest[i] for i in random.permutation(len(rest))[:missing]]
        return found[:count]

    return chosen


def _similar(records: Sequence[Record], count: int) -> Callable[[Record], list[Record]]:
    """The nearest by the cosine of TF-IDF vectors of words, the nearest of all last."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    vectorizer = TfidfVectorizer(token_pattern=r"\S+", sublinear_tf=True)
    known = vectorizer.fit_transform([record.text for record in records])

    def chosen(record: Record) -> list[Record]:
        cosines = cosine_similarity(vectorizer.transform([record.text]), known)[0]
        nearest = np.argsort(-cosines, kind="stable")[: count + 1]
        # An id of another file may be the same by chance; the record itself has its text, too.
        itself = record.id, record.text
        others = [records[i] for i in nearest if (records[i].id, records[i].text) != itself]
        return others[:count][::-1]

    return chosen
