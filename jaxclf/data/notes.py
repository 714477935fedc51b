"""What a person should know of a data set before anything is trained on it, in a line each.

    2 texts of train stand there with different labels

None of it is an error: the records are used as they are, but for those that were left out.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxclf.data.datasets import Dataset
from jaxclf.data.readers import show
from jaxclf.data.tasks import Record, Task, label_names, unseen_labels

_SHOWN = 5  # labels named in a line
# What pandas and others write where there is no value.
_MISSING = frozenset({"nan", "none", "null", "n/a", "<na>", "nat"})


def notes(dataset: Dataset) -> list[str]:
    """Every line that there is to say."""
    return [
        *dataset.guesses,
        *_drawn(dataset),
        *_left_out(dataset),
        *(
            line
            for task in dataset.tasks
            if task.kind != "regression"
            for line in (*_unseen(dataset, task), *_labels(dataset, task))
        ),
        *_hidden(dataset),
        *_texts(dataset),
    ]


def unseen(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    """Split → task → label that no record of train has → how many records of the split have it."""
    found = {
        split: {
            task.name: dict(counts)
            for task in dataset.tasks
            if (counts := unseen_labels(_gold(records, task), task))
        }
        for split, records in dataset.splits.items()
        if split != "train"
    }
    return {split: by_task for split, by_task in found.items() if by_task}


def _drawn(dataset: Dataset) -> Iterator[str]:
    if dataset.drawn:
        sizes = " and ".join(
            f"{len(dataset.splits[split]):,} of {split}" for split in dataset.drawn
        )
        yield (
            f"{sizes} are drawn from the training split, by class and data.split_seed, equal texts "
            "together"
        )


def _left_out(dataset: Dataset) -> Iterator[str]:
    if dataset.skipped:
        counts = ", ".join(
            f"{count:,} of {'an unknown split' if split == 'unknown' else split}"
            for split, count in dataset.skipped.items()
        )
        first = f": {dataset.defects[0]}" if dataset.defects else ""
        yield f"records left out for a defect: {counts}; the first{first}"


def _unseen(dataset: Dataset, task: Task) -> Iterator[str]:
    for split, by_task in unseen(dataset).items():
        if counts := by_task.get(task.name):
            records = dataset.splits[split]
            concerned = sum(
                bool(unseen_labels([label], task)) for label in _gold(records, task) if label
            )
            yield (
                f"{concerned:,} of {len(records):,} records of {split} have a label that train "
                f"lacks (task {task.name}) and count as wrong: {_counted(counts)}"
            )
            likely = [group for group in alike({*counts, *task.labels}) if {*group} & {*counts}]
            if likely:
                shown = "; ".join(", ".join(map(show, sorted(names))) for names in likely[:_SHOWN])
                yield (
                    f"labels of {split} are those of train but for case, spaces, accents or zeros: "
                    f"{shown}{_more(likely)}. Write them in one way"
                )


def _labels(dataset: Dataset, task: Task) -> Iterator[str]:
    """Odd label sets: of one class, with a class of one record, with two spellings of a class."""
    train = dataset.splits["train"]
    counts = Counter(name for label in _gold(train, task) for name in label_names(label, task.kind))
    missing = {name: counts[name] for name in task.labels if name.lower() in _MISSING}
    if missing:
        yield (
            f"task {task.name} has classes named as a missing value is (and so many records of "
            f"train): {_counted(missing)}. Leave these records out if they have no label"
        )
    pairs = alike(task.labels)
    if pairs:
        shown = "; ".join(", ".join(map(show, names)) for names in pairs[:_SHOWN])
        yield (
            f"task {task.name} has classes that differ by case, spaces or accents alone: "
            f"{shown}{_more(pairs)}"
        )
    if task.kind == "multilabel" and (empty := sum(not label for label in _gold(train, task))):
        yield f"{empty:,} records of train have none of the labels (task {task.name})"
    if task.kind == "class" and len(task.labels) == 1:
        yield f"task {task.name} has one class, {show(task.labels[0])}: there is nothing to learn"
    rare = {name: count for name, count in counts.items() if count == 1}
    if task.kind == "class" and rare and len(train) > len(counts):
        shown = ", ".join(map(show, [*rare][:_SHOWN]))
        yield f"task {task.name} has classes of one record in train: {shown}{_more([*rare])}"


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ by case, spaces, accents or zeros before a number alone."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_folded(name), []).append(name)
    return [group for group in found.values() if len(group) > 1]


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKD", "".join(name.casefold().split()))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return plain.lstrip("0") or plain


def _hidden(dataset: Dataset) -> Iterator[str]:
    for split, records in dataset.splits.items():
        for task in dataset.tasks:
            hidden = sum(label is None for label in _gold(records, task))
            if hidden:
                yield (
                    f"{hidden:,} of {len(records):,} records of {split} have no label of "
                    f"{task.name}; they are in no figure"
                )


def _texts(dataset: Dataset) -> Iterator[str]:
    """Texts for a missing value, those with several labels, those of train that come again."""
    train = _by_text(dataset.splits["train"])
    for split, records in dataset.splits.items():
        missing = sum(record.text.lower() in _MISSING for record in records)
        if missing:
            yield f"{missing:,} texts of {split} are what is written for a missing value ('nan' …)"
    differing = sum(
        any(labels != found[0] for labels in found) for found in train.values() if len(found) > 1
    )
    if differing:
        yield f"{differing:,} texts of train stand there with different labels"
    for split, records in dataset.splits.items():
        again = sum((record.text, record.pair) in train for record in records)
        if split != "train" and again:
            yield f"{again:,} of {len(records):,} texts of {split} are also in train"
    groups = {record.group for record in dataset.splits["train"] if record.group}
    for split, records in dataset.splits.items():
        shared = sum(record.group in groups for record in records)
        if split != "train" and shared:
            yield f"{shared:,} of {len(records):,} records of {split} are of a group of train"


def _by_text(records: Iterable[Record]) -> dict[tuple[str, str], list[Mapping[str, object]]]:
    found: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for record in records:
        found.setdefault((record.text, record.pair), []).append(record.labels)
    return found


def _gold(records: Sequence[Record], task: Task):
    return [record.labels.get(task.name) for record in records]


def _counted(counts: Mapping[str, int]) -> str:
    """`'ABBR' (6), 'NUM' (2)`, the frequent ones first."""
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    named = ", ".join(f"{show(name)} ({counts[name]:,})" for name in ordered[:_SHOWN])
    return named + _more(ordered)


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
