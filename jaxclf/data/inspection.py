"""What is in files of texts, before anything is trained: columns, classes, lengths, duplicates."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxclf.data.columns import names_of, values_of
from jaxclf.data.datasets import Dataset
from jaxclf.data.notes import notes
from jaxclf.data.readers import Source, show
from jaxclf.data.splits import folded
from jaxclf.data.tasks import Record, Task, label_names, words

_COLUMNS, _CLASSES = 30, 40  # shown at most
_SHARES = (0.5, 0.9, 0.99)

Measure = Callable[[Sequence[str]], Sequence[int]]


def columns(source: Source) -> list[str]:
    """A line a column: name, what its first rows hold, an example."""
    names = names_of(source)
    sampled = len(source.sample)
    lines = [f"columns ({len(names):,}; by the first {sampled:,} rows)"]
    shown = names[:_COLUMNS]
    width = max((len(show(name)) for name in shown), default=0)
    for name in shown:
        values = values_of(source, name)
        filled = [value for value in values if value is not None and value != ""]
        kinds = sorted({type(value).__name__ for value in filled})
        example = show(f"{filled[0]}"[:50]) if filled else "empty"
        different = len({str(value) for value in filled})
        missing = f", {sampled - len(filled):,} empty" if len(filled) < sampled else ""
        what = f"{'/'.join(kinds) or 'nothing'}, {different:,} different{missing}"
        lines.append(f"  {show(name):{width}}  {what}; {example}")
    if len(names) > _COLUMNS:
        lines.append(f"  and {len(names) - _COLUMNS:,} more")
    return lines


def dataset(found: Dataset, measures: Mapping[str, Measure]) -> list[str]:
    """Sizes, classes, lengths by each of `measures` (its unit → how to count), duplicates, and
    what `notes` says."""
    sizes = ", ".join(f"{len(records):,} {split}" for split, records in found.splits.items())
    return [
        f"records: {sizes}",
        *(line for task in found.tasks for line in _task(found, task)),
        *_lengths(found, measures),
        *_duplicates(found),
        *(f"note: {line}" for line in notes(found)),
    ]


def _task(found: Dataset, task: Task) -> Iterator[str]:
    if task.kind == "regression":
        for split, records in found.splits.items():
            values = [
                value
                for record in records
                if isinstance(value := record.labels.get(task.name), float)
            ]
            if values:
                mean = sum(values) / len(values)
                yield (
                    f"numbers of {split}: {min(values):g} to {max(values):g}, mean {mean:.4g} "
                    f"(task {task.name})"
                )
        return
    counts = {split: _counts(records, task) for split, records in found.splits.items()}
    names = sorted({*task.labels}.union(*counts.values()), key=lambda n: (-counts["train"][n], n))
    kinds = {"class": "classes", "multilabel": "labels, any number a text", "slots": "slots"}
    yield f"{len(names):,} {kinds[task.kind]} (task {task.name}); records of {', '.join(counts)}"
    shown = names[:_CLASSES]
    width = max((len(show(name)) for name in shown), default=0)
    for name in shown:
        row = "  ".join(f"{counts[split][name]:>9,}" for split in counts)
        share = counts["train"][name] / max(1, len(found.splits["train"]))
        yield f"  {show(name):{width}}  {row}  {share:6.1%}"
    if len(names) > _CLASSES:
        yield f"  and {len(names) - _CLASSES:,} rarer ones"
    most, least = (
        counts["train"][names[0]] if names else 0,
        min(counts["train"].values(), default=0),
    )
    if task.kind == "class" and least and most > 5 * least:
        yield f"  unbalanced, {most / least:,.0f} to 1: try loss.balanced=True"


def _counts(records: Sequence[Record], task: Task) -> Counter[str]:
    return Counter(
        name for record in records for name in label_names(record.labels.get(task.name), task.kind)
    )


def _lengths(found: Dataset, measures: Mapping[str, Measure]) -> Iterator[str]:
    """Quantiles of the lengths of texts."""
    for split, records in found.splits.items():
        texts = [f"{record.text} {record.pair}".strip() for record in records]
        for unit, measure in measures.items():
            counts = sorted(measure(texts))
            marks = [counts[min(len(counts) - 1, int(share * len(counts)))] for share in _SHARES]
            yield (
                f"{unit} a text of {split}: half up to {marks[0]:,}, 90 % up to {marks[1]:,}, 99 % "
                f"up to {marks[2]:,}, the longest {counts[-1]:,}"
            )


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(words(text)) for text in texts]


def _duplicates(found: Dataset) -> Iterator[str]:
    """Texts that come again, whatever their case and spaces."""
    first: dict[tuple[str, str], str] = {}
    again: Counter[tuple[str, str]] = Counter()
    for split, records in found.splits.items():
        for record in records:
            key = folded(record.text), folded(record.pair)
            if key in first:
                again[first[key], split] += 1
            else:
                first[key] = split
    for (before, split), count in again.items():
        where = "repeat one of it" if before == split else f"are in {before}, too: a leak"
        yield f"{count:,} of {len(found.splits[split]):,} texts of {split} {where}"
    if not again:
        yield "no text comes twice"
