"""What is in a source whose columns nobody named: which hold texts, labels and slots, of what kind.

A guess is by the columns' names, then by what their first rows hold; each is said, and an option
sets it. Where two columns may be meant, an error asks.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from jaxclf.core.errors import InputError
from jaxclf.data import columns
from jaxclf.data.columns import Column, Schema, distinct, find, names_of, values_of
from jaxclf.data.readers import Source, show
from jaxclf.data.slot_formats import as_list, is_span
from jaxclf.data.tasks import TaskKind, words

# In the order in which a file that has several is read.
TEXTS = (
    *("text", "sentence", "utterance", "utt", "content", "body", "review", "review_text"),
    *("reviewtext", "document", "article", "comment", "message", "tweet", "sms", "post", "email"),
    *("question", "query", "description", "abstract", "summary", "prompt", "input", "instruction"),
    *("tokens", "words", "title", "headline", "subject", "name"),
)
LABELS = (
    *("label", "labels", "class", "category", "categories", "target", "intent", "sentiment"),
    *("topic", "topics", "tag", "output", "completion", "class index", "answer", "label_name"),
    *("rating", "score", "stars", "polarity", "genre", "emotion", "department", "type"),
)
SLOTS = ("slots", "ner_tags", "tags", "bio_tags", "bio", "entities", "spans", "ner", "annot_utt")
KNOWN = frozenset((*TEXTS, *LABELS, *SLOTS, "id", "split", "pair"))
_BEFORE = ("title", "headline", "subject", "instruction")  # goes before another text
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_FEW = 0.5  # a label column has fewer different values than this share of its rows
_GRADES = 20  # numbers with a fraction: more different ones are a quantity, no classes


@dataclass(frozen=True)
class Wanted:
    """What the user named; "" and "auto": to be found out.

    task: "auto" is the label if there is one, else the slots, "both" all that there is. names: of a
    file with names of classes. separator: between several labels of a text.
    """

    text: str = ""
    label: str = ""
    slots: str = ""
    id: str = ""
    pair: str = ""
    group: str = ""
    kind: str = "auto"
    task: str = "auto"
    names: tuple[str, ...] = ()
    separator: str = ""
    decimal: str = "auto"


def schema_of(source: Source, wanted: Wanted) -> tuple[Schema, list[str]]:
    """The schema of a source, and what of it was guessed, in words.

    Raises InputError where a column that was named is not there, or where none can be told.
    """
    said: list[str] = []
    _check_names(source, wanted)
    labels = _labels(source, wanted) if wanted.task != "slots" else ()
    slots = ""
    if wanted.task in ("slots", "both") or wanted.slots or not labels:
        slots = _slots(source, wanted)
    taken = {*labels, slots, wanted.id, wanted.pair, wanted.group}
    if not labels and not slots and wanted.task != "slots":
        labels = _labels_by_content(source, wanted, taken)
    texts = [*text_columns(source, wanted.text, {*taken, *labels})]
    if not slots and wanted.task == "slots":
        raise _unknown(source, "slots", "data.slots", {*texts, *taken})
    if not labels and (wanted.task == "label" or not slots):
        raise _unknown(source, "labels", "data.label", {*texts, *taken})
    if wanted.text != ",".join(texts) and texts != ["text"]:
        said.append(f"text {' and '.join(map(show, texts))} (data.text)")
    targets: list[Column] = []
    if labels:
        target = _target(source, wanted, labels, said)
        targets.append(target)
    if slots:
        if len(texts) > 1:
            raise InputError(
                f"{source.path}: slots are of the words of one text, and data.text names "
                f"{len(texts)}. Name one"
            )
        tags = [value for value in values_of(source, slots) if isinstance(value, list)]
        if not wanted.names and any(type(tag) is int for row in tags for tag in row):
            raise InputError(
                f"{source.path}: the tags in column {show(slots)} are numbers without names. "
                "Write their names into a file, one a line or as a JSON list (such as O, B-PER, "
                "I-PER), and set data.label_names to it"
            )
        targets.append(
            Column(
                "slots",
                "slots",
                slots,
                names=wanted.names,
                spans=_are_spans(values_of(source, slots)),
            )
        )
        if slots not in ("slots", wanted.slots):
            said.append(f"slots {show(slots)} (data.slots)")
    schema = Schema(
        text=texts[0],
        texts=tuple(texts) if len(texts) > 1 else (),
        targets=tuple(targets),
        id=wanted.id,
        pair=wanted.pair,
        group=wanted.group,
    )
    schema, matched = columns.matched(source, schema)
    return schema, said + matched


def _check_names(source: Source, wanted: Wanted) -> None:
    """Raise InputError where a name that would be taken stands twice, or a file has texts alone."""
    names = names_of(source)
    for name in names:
        if name and names.count(name) > 1 and name.strip().lower() in KNOWN:
            raise columns.twice(source, name)
    if names == ["text"] and source.columns and not wanted.label and not wanted.slots:
        raise InputError(
            f"{source.path}: lines of text without labels. Texts alone can be labelled: jaxclf "
            "predict. If there are labels in the lines, say how they are written: data.format"
        )


def text_columns(source: Source, wanted: str, taken: Iterable[str] = ()) -> tuple[str, ...]:
    """The columns of the text: those named, else by their names, else the one with most words."""
    names = [name for name in names_of(source) if name]
    if wanted:
        found = columns.find_several(names, wanted)
        if not found and names:
            raise columns.missing(source, wanted)
        return found or (wanted,)
    free = [name for name in names if name not in {*taken}]
    known = [name for each in TEXTS if (name := find(free, each))]
    known = [name for name in known if _is_text(values_of(source, name))]
    if known:
        first = known[0]
        before = [name for name in known[1:] if name.strip().lower() in _BEFORE]
        if before and first.strip().lower() != "text" and _differ(source, before[0]):
            return (before[0], first)
        return (first,)
    texts = [name for name in free if _is_text(values_of(source, name))]
    if len(texts) > 1:
        lengths = {name: _mean_words(values_of(source, name)) for name in texts}
        ordered = sorted(texts, key=lambda name: -lengths[name])
        texts = ordered[:1] if lengths[ordered[0]] > 2 * lengths[ordered[1]] else texts
    if len(texts) == 1:
        return (texts[0],)
    if not names:
        return ("text",)
    raise _unknown(source, "text", "data.text", taken)


def _differ(source: Source, column: str) -> bool:
    """An instruction that is the same everywhere is none of a text."""
    return len(distinct(values_of(source, column))) > 1


def _labels(source: Source, wanted: Wanted) -> tuple[str, ...]:
    """The columns of the label by what was named, or by their names; () if there are none."""
    names = names_of(source)
    if wanted.label:
        found = columns.find_several(names, wanted.label)
        if not found and names:
            raise columns.missing(source, wanted.label)
        return found or (wanted.label,)
    if not names:
        return ("label",)
    for each in LABELS:
        name = find(names, each)
        if name and name not in (wanted.text, wanted.slots, wanted.id, wanted.pair, wanted.group):
            values = values_of(source, name)
            if wanted.task == "label" or not (_are_spans(values) or _are_tags(source, name)):
                return (name,)
    return ()


def _slots(source: Source, wanted: Wanted) -> str:
    names = names_of(source)
    if wanted.slots:
        found = find(names, wanted.slots)
        if found is None and names:
            raise columns.missing(source, wanted.slots)
        return found or wanted.slots
    likely = [name for each in (*SLOTS, *LABELS) if (name := find(names, each))]
    for name in likely:
        values = values_of(source, name)
        if _are_spans(values) or _are_tags(source, name) or name == "slots":
            return name
    return ""


def _labels_by_content(source: Source, wanted: Wanted, taken: set[str]) -> tuple[str, ...]:
    """The one column of few different values, or all columns of 0 and 1; () if none can be told."""
    named = {*taken, *wanted.text.split(",")}
    names = [name for name in names_of(source) if name and name not in named]
    marks = [name for name in names if distinct(values_of(source, name)) <= {"0", "1"}]
    marks = [name for name in marks if distinct(values_of(source, name))]
    if len(marks) > 1:
        return tuple(marks)
    few = [name for name in names if _are_classes(values_of(source, name))]
    return (few[0],) if len(few) == 1 else ()


def _are_classes(values: Sequence[Any]) -> bool:
    found = [value for value in values if value is not None and value != ""]
    if len(found) < max(2, len(values) / 2) or any(isinstance(v, list | dict) for v in found):
        return False
    counts = len(distinct(found))
    return 1 < counts <= max(2, _FEW * len(found)) and _mean_words(found) < 6


def _is_text(values: Sequence[Any]) -> bool:
    found = [value for value in values if value is not None and value != ""]
    if found and all(isinstance(value, list) for value in found):
        return all(isinstance(word, str) for value in found for word in value)
    texts = [value for value in found if isinstance(value, str)]
    return bool(texts) and (_mean_words(texts) >= 1.5 or len({*texts}) > _FEW * len(texts))


def _mean_words(values: Sequence[Any]) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(len(words(text)) for text in texts) / max(1, len(texts))


def _unknown(source: Source, what: str, option: str, taken: Iterable[str]) -> InputError:
    """The question for a column, with what each holds."""
    described = [
        f"{show(name)} ({_described(values_of(source, name))})"
        for name in names_of(source)[:20]
        if name and name not in {*taken}
    ]
    listed = ", ".join(described) or "none besides"
    without = ". Texts without labels can be labelled alone: jaxclf predict"
    without = without if what == "labels" else ""
    return InputError(
        f"{source.path}: which column holds the {what} cannot be told. Set {option}; columns: "
        f"{listed}{without}"
    )


def _described(values: Sequence[Any]) -> str:
    found = distinct(values)
    if not found:
        return "empty"
    example = next(str(value) for value in values if value is not None and value != "")
    return f"{len(found):,} different values such as {show(example[:30])}"


# Kinds of labels ----------------------------------------------------------------------------------


def _target(source: Source, wanted: Wanted, labels: Sequence[str], said: list[str]) -> Column:
    """How the labels of these columns are written; what is guessed is added to `said`."""
    kind = wanted.kind
    if len(labels) > 1:
        found: TaskKind = "multilabel" if kind == "auto" else cast(TaskKind, kind)
        if not wanted.label or kind == "auto":
            said.append(f"a label each: {', '.join(labels[:9])} (data.label), kind {found}")
        return Column("label", found, labels[0], columns=tuple(labels), names=wanted.names)
    column = labels[0]
    values = [value for value in values_of(source, column) if value is not None and value != ""]
    if _are_spans(values):
        raise InputError(
            f"{source.path}: column {show(column)} holds spans of the text, which are slots: set "
            f"data.slots={column} and choose the variant :task=slots of the config"
        )
    separator, lists = wanted.separator, _lists(values)
    if not separator and lists is None and not _have_decimal_comma(values):
        separator = _separator(values, sure=kind == "multilabel")
    if kind == "auto":
        kind = _kind(values, lists, bool(separator))
        if kind != "class":
            said.append(f"kind {kind} (data.kind)")
    if kind == "multilabel" and not wanted.separator and lists is None and separator != ",":
        said.append(f"labels separated by {separator!r} (data.label_separator)")
    decimal = wanted.decimal
    if decimal == "auto":
        decimal = "," if kind == "regression" and _have_decimal_comma(values) else "."
        if decimal == ",":
            said.append("a comma before decimals (data.decimal)")
    if column not in ("label", wanted.label):
        said.append(f"label {show(column)} (data.label)")
    return Column(
        "label",
        cast(TaskKind, kind),
        column,
        names=wanted.names,
        separator="" if lists is not None and not wanted.separator else separator or ",",
        decimal=cast(Literal[".", ","], decimal),
    )


def _kind(values: Sequence[Any], lists: Sequence[Sequence[Any]] | None, separated: bool) -> str:
    if lists is not None:
        return "class" if all(len(each) == 1 for each in lists) else "multilabel"
    if separated:
        return "multilabel"
    if values and _have_decimal_comma(values):
        return "regression"
    numbers = [_number(value) for value in values]
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    fractions = [number for number in known if number % 1]
    if known and len(known) == len(numbers) and fractions and len({*known}) > _GRADES:
        return "regression"
    return "class"


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _have_decimal_comma(values: Sequence[Any]) -> bool:
    """All are numbers, some with a comma, and not all commas before three digits: of thousands."""
    texts = [value.strip() for value in values if isinstance(value, str)]
    with_comma = [text for text in texts if _DECIMAL_COMMA.fullmatch(text)]
    whole = [text for text in texts if re.fullmatch(r"[+-]?\d+", text)]
    return (
        0 < len(with_comma) + len(whole) == len(values)
        and len({*with_comma}) > _GRADES // 2
        and any(len(text.partition(",")[2]) != 3 for text in with_comma)
    )


def _lists(values: Sequence[Any]) -> list[list[Any]] | None:
    """The values as lists, if all are lists or the text of one."""
    if not values:
        return None
    found = [as_list(value) if isinstance(value, str) else value for value in values]
    lists = [each for each in found if isinstance(each, list)]
    return lists if len(lists) == len(found) else None


def _separator(values: Sequence[Any], sure: bool) -> str:
    """What stands between several labels; "": nothing. sure: that there are several.

    A label that holds a `|` or a comma by itself has parts that stand nowhere else.
    """
    texts = [value for value in values if isinstance(value, str)]
    for candidate in ("|", ";", ","):
        several = {text for text in texts if candidate in text}
        if not several:
            continue
        if sure:
            return candidate
        parts = Counter(
            part.strip() for text in {*texts} for part in text.split(candidate) if part.strip()
        )
        reused = sum(parts[part.strip()] > 1 for text in several for part in text.split(candidate))
        if reused > 0.7 * sum(text.count(candidate) + 1 for text in several) and len(parts) < 200:
            return candidate
    return ""


# Slots --------------------------------------------------------------------------------------------


def _are_spans(values: Sequence[Any]) -> bool:
    """Whether the values are lists of [begin, end, name], or of objects that say as much."""
    lists = [value for value in values if isinstance(value, list)]
    spans = [span for value in lists for span in value]
    return bool(spans) and all(is_span(span) for span in spans)


def _are_tags(source: Source, column: str) -> bool:
    """Whether the values are lists with one item for each word of some other column."""
    rows = [row.fields for row in source.sample if isinstance(row.fields, Mapping)]
    lists = [
        (as_list(value) if isinstance(value, str) else value, row)
        for row in rows
        if (value := row.get(column)) is not None
    ]
    if not lists or not all(isinstance(tags, list) for tags, _ in lists):
        return False
    for each in TEXTS:
        name = find([*lists[0][1]], each)
        if name is None or name == column:
            continue
        counts = [_count(row.get(name)) for _, row in lists]
        fitting = sum(
            len(cast(list[Any], tags)) == n for (tags, _), n in zip(lists, counts, strict=True)
        )
        if fitting > 0.8 * len(lists) and sum(counts) > len(counts):
            return True
    return False


def _count(value: Any) -> int:
    if isinstance(value, str):
        return len(words(value))
    return len(value) if isinstance(value, list) else -1


def with_kind(schema: Schema, wanted: Schema) -> Schema:
    """`schema`, with its labels written as those of `wanted`, the training split's."""
    ours = {target.task: target for target in wanted.targets}
    targets = [
        replace(target, kind=ours[target.task].kind, separator=ours[target.task].separator)
        for target in schema.targets
        if target.task in ours
    ]
    return replace(schema, targets=tuple(targets))
