"""Raw rows → records, with every defect located as `file:line: field: reason`.

A defect is: what `readers` finds wrong with a row (not UTF-8, not JSON, no object, a byte order
mark, a line of more than `MAX_BYTES`), a field that is missing or of the wrong type, an empty
text, a NUL character, half of a surrogate pair, an id that an earlier record of the split has,
slots that do not fit the words of the text.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxclf.core.errors import InputError
from jaxclf.data import readers
from jaxclf.data.readers import Defect, RawRow, kind_of, show
from jaxclf.data.slot_formats import slot_tags
from jaxclf.data.tasks import Label, Record, TaskKind, label_names, words

SHOWN_DEFECTS = 10
_REMEDY = "Correct them, or set data.on_defect=skip to go on without these records."
SPLITS = {name: name for name in ("train", "dev", "heldout", "test")} | {"validation": "dev"}


@dataclass(frozen=True)
class Column:
    """The column with a task's gold labels.

    A class label is text or a whole number (taken as its digits); several labels are a list of
    such, or text with commas between them; a number may be written as text. How slots may be
    written is said in `slots`. `names`: the classes that the numbers 0, 1 … stand for. Where a
    label `may_be_hidden`, null and -1 say that it is.
    """

    task: str
    kind: TaskKind
    column: str
    names: tuple[str, ...] = ()
    may_be_hidden: bool = False


@dataclass(frozen=True)
class Schema:
    """Which column holds what. Without an id column a record's id is its `file:line`.

    `pair`: the column of a second text. `may_be_empty`: a text without words is no defect.
    """

    text: str
    targets: tuple[Column, ...] = ()
    id: str = ""
    split: str = ""
    pair: str = ""
    may_be_empty: bool = False

    @property
    def columns(self) -> list[str]:
        """Every column that is read, once; the text first."""
        names = [
            self.text,
            self.pair,
            self.id,
            self.split,
            *(target.column for target in self.targets),
        ]
        return list(dict.fromkeys(filter(None, names)))


@dataclass
class Defects:
    """The defects met so far, over all files of a data set."""

    skip: bool = False  # go on without the records concerned
    shown: list[str] = field(default_factory=list)  # the first ones, located
    counts: dict[str, int] = field(default_factory=dict)  # by split

    def add(self, where: str, split: str, defect: Defect) -> None:
        if len(self.shown) < SHOWN_DEFECTS:
            self.shown.append(f"{where}: {defect}")
        self.counts[split] = self.counts.get(split, 0) + 1

    def check(self, remedy: str = _REMEDY) -> None:
        """Raises InputError with the first defects, unless they are to be skipped."""
        count = sum(self.counts.values())
        if self.skip or not count:
            return
        lines = ["a record has a defect:" if count == 1 else f"{count:,} records have defects:"]
        lines += self.shown
        if count > len(self.shown):
            lines.append(f"and {count - len(self.shown):,} more")
        raise InputError("\n  ".join(lines) + "\n" + remedy)


def read(
    path: str | Path, schema: Schema, defects: Defects, split: str = ""
) -> dict[str, list[Record]]:
    """The records of a file by split: that of the schema's split column, else `split`.

    Defects are added to `defects`, whose `check` is called after the last file. Raises what
    `readers.rows` raises.
    """
    return parse(readers.rows(Path(path), schema.columns), schema, defects, split)


def parse(
    rows: Iterable[RawRow], schema: Schema, defects: Defects, split: str = ""
) -> dict[str, list[Record]]:
    """Raw rows → records by split; see `read`.

    Raises InputError where a record holds what are whole rows of the file, so that a quote must be
    missing: they would be lost.
    """
    records: dict[str, list[Record]] = {}
    doubtful: list[tuple[RawRow, Record | None]] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        row_split, record = "" if schema.split else split, None
        try:
            if isinstance(row.fields, Defect):
                raise row.fields
            if schema.split:
                row_split = _split(row.fields, schema.split)
            record = _record(row.where, row.fields, schema)
            if (row_split, record.id) in seen:
                raise Defect(schema.id, f"{show(record.id)} is the id of an earlier record")
        except Defect as defect:
            defects.add(row.where, row_split or "unknown", defect)
        else:
            seen.add((row_split, record.id))
            records.setdefault(row_split, []).append(record)
        if len(row.inside) > row.lines / 2:
            doubtful.append((row, record))
    if doubtful:
        _check_quotes(doubtful, itertools.chain.from_iterable(records.values()), schema)
    return records


def _check_quotes(
    doubtful: Sequence[tuple[RawRow, Record | None]], found: Iterable[Record], schema: Schema
) -> None:
    """Raise InputError for the first row of which most lines are records with labels of the file.

    Without labels that have names, all lines of it must be rows, and four at least: in prose, most
    lines have another number of commas.
    """
    named = [target for target in schema.targets if target.kind != "regression"]
    others = {id(record) for _, record in doubtful}
    known: dict[str, set[str]] = {target.task: set() for target in named}
    for record in found:
        if id(record) not in others:
            for target in named:
                known[target.task] |= label_names(record.labels[target.task], target.kind)

    def is_record(where: str, fields: Mapping[str, Any]) -> bool:
        try:
            labels = _record(where, fields, schema).labels
        except Defect:
            return False
        return all(
            label_names(labels[target.task], target.kind) <= known[target.task] for target in named
        )

    for row, _ in doubtful:
        count = sum(is_record(row.where, fields) for fields in row.inside)
        if count > row.lines / 2 if named else count == row.lines >= 4:
            raise InputError(
                f"{row.where}: a quote that opens here holds {row.lines:,} lines together, of "
                f"which {count:,} are whole rows of the file. Close the quote, or double it where "
                "it is part of a text. If the text is meant so, save the file as jsonl"
            )


def _record(where: str, fields: Mapping[str, Any], schema: Schema) -> Record:
    read = _text if schema.may_be_empty else _words
    text = read(fields, schema.text)
    pair = read(fields, schema.pair) if schema.pair else ""
    identity = _name(fields, schema.id) if schema.id else Path(where).name
    labels: dict[str, Label] = {}
    for target in schema.targets:
        if target.may_be_hidden and fields.get(target.column, 0) in (None, -1):
            label = None
        elif target.kind == "class":
            label = _class(fields, target)
        elif target.kind == "multilabel":
            label = _names(fields, target.column)
        elif target.kind == "regression":
            label = _number(fields, target.column)
        else:
            label = _slots(fields, target.column, text)
        labels[target.task] = label
    return Record(identity, text, labels, pair)


def _field(fields: Mapping[str, Any], column: str) -> Any:
    value = fields.get(column)
    if value is None:
        found = ", ".join(show(name) for name in list(fields)[:8]) or "no fields"
        reason = "null" if column in fields else f"the record has {found}"
        raise Defect(column, f"missing ({reason})")
    if isinstance(value, Defect):
        raise Defect(column, str(value))
    return value


def _words(fields: Mapping[str, Any], column: str) -> str:
    text = _text(fields, column)
    if not words(text):
        raise Defect(column, "empty; a record needs at least one word")
    return text


def _text(fields: Mapping[str, Any], column: str) -> str:
    value = _field(fields, column)
    if not isinstance(value, str):
        raise Defect(column, f"expected text, found {kind_of(value)}")
    _check_text(value, column)
    return value


def _name(fields: Mapping[str, Any], column: str) -> str:
    """A label or an id: text on one line, or a whole number."""
    value = _field(fields, column)
    if type(value) is int:  # not bool
        return str(value)
    value = _text(fields, column)
    if not value.strip():
        raise Defect(column, "empty")
    if value != value.strip() or len(value.splitlines()) > 1:
        raise Defect(column, f"{show(value)} has space around it or a line break in it")
    return value


def _class(fields: Mapping[str, Any], target: Column) -> str:
    label = _name(fields, target.column)
    if not target.names or label in target.names:
        return label
    if not label.isdecimal() or int(label) >= len(target.names):
        expected = ", ".join(target.names[:8])
        raise Defect(target.column, f"{show(label)} is none of {expected}, nor the number of one")
    return target.names[int(label)]


def _names(fields: Mapping[str, Any], column: str) -> tuple[str, ...]:
    value: Any = _field(fields, column)
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple):
        raise Defect(column, f"expected a list of labels, found {kind_of(value)}")
    names = [_name({column: name}, column) for name in value]
    if len({*names}) < len(names):
        raise Defect(column, f"{', '.join(names)} holds a label twice")
    return tuple(sorted(names))


def _number(fields: Mapping[str, Any], column: str) -> float:
    value = _field(fields, column)
    try:
        if type(value) not in (int, float, str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise Defect(column, f"expected a number, found {show(value)}") from None
    if not math.isfinite(number):
        raise Defect(column, f"{show(value)} is no finite number")
    return number


def _slots(fields: Mapping[str, Any], column: str, text: str) -> tuple[str, ...]:
    try:
        tags = slot_tags(_field(fields, column), text)
    except Defect:
        raise
    except ValueError as error:
        raise Defect(column, str(error)) from None
    for tag in set(tags):
        _check_text(tag, column)
    return tags


def _split(fields: Mapping[str, Any], column: str) -> str:
    value = _text(fields, column)
    if value not in SPLITS:
        raise Defect(column, f"{show(value)} is no split; expected one of {', '.join(SPLITS)}")
    return SPLITS[value]


def _check_text(text: str, column: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # what `readers` makes of a bad byte
            reason = f"not UTF-8 (byte 0x{code - 0xDC00:02x}, or \\u{code:04x} escaped alone)"
        else:
            reason = f"\\u{code:04x} is half of a surrogate pair"
        raise Defect(column, f"{reason} at character {error.start}") from None
    if size > readers.MAX_BYTES:
        raise Defect(column, readers.too_large(size))
    if "\0" in text:
        raise Defect(column, f"character {text.index(chr(0))} is NUL")
    if text.startswith("\ufeff"):
        raise Defect(column, readers.BYTE_ORDER_MARK)
