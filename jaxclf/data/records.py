"""Raw rows → records, with every defect located as `file:line: field: reason`.

A defect is: what `readers` finds wrong with a row (not UTF-8, not JSON, no object, a byte order
mark, a line of more than `MAX_BYTES`), a field that is missing or of the wrong type, an empty
text, a NUL character, half of a surrogate pair, an id that an earlier record of the split has,
slots that do not fit the words of the text.
"""

import gc
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxclf.core.errors import InputError
from jaxclf.data import columns, readers
from jaxclf.data.columns import Column, Schema
from jaxclf.data.formats import limits
from jaxclf.data.formats.json_rows import BYTE_ORDER_MARK
from jaxclf.data.readers import Defect, Options, RawRow, Source, kind_of, show
from jaxclf.data.slot_formats import as_list, slot_tags
from jaxclf.data.tasks import Label, Record, label_names

__all__ = ["Column", "Defects", "Schema", "of_source", "parse", "read"]

SHOWN_DEFECTS = 10
_REMEDY = "Correct them, or set data.on_defect=skip to go on without these records."
SPLITS = {name: name for name in ("train", "dev", "heldout", "test")} | {"validation": "dev"}


@dataclass
class Defects:
    """The defects met so far, over all files of a data set, and what else is to be said of them.

    converted: how many values were taken as another kind of value. guesses: what was guessed of
    each file, in a line.
    """

    skip: bool = False  # go on without the records concerned
    shown: list[str] = field(default_factory=list[str])  # the first ones, located
    counts: dict[str, int] = field(default_factory=dict[str, int])  # by split
    converted: Counter[str] = field(default_factory=Counter[str])
    guesses: list[str] = field(default_factory=list[str])

    def say(self, path: Path, guesses: Sequence[str]) -> None:
        """Note what was guessed of a file."""
        if guesses:
            self.guesses.append(f"{path}: {', '.join(guesses)}")

    def notes(self) -> list[str]:
        """What was guessed and converted."""
        counted = (f"{what}: {count:,}" for what, count in self.converted.items())
        return [*self.guesses, *counted]

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
    path: str | Path,
    schema: Schema,
    defects: Defects,
    split: str = "",
    options: Options | None = None,
) -> dict[str, list[Record]]:
    """The records of a source by split: that of the schema's split column, else `split`.

    Defects are added to `defects`, whose `check` is called after the last file, and so is what was
    guessed of the file. Raises what `readers.open_source` raises, and InputError where a column is
    missing.
    """
    source = readers.open_source(Path(path), options)
    schema, said = columns.matched(source, schema)
    defects.say(source.path, [*source.said, *said])
    return of_source(source, schema, defects, split)


def of_source(
    source: Source, schema: Schema, defects: Defects, split: str = ""
) -> dict[str, list[Record]]:
    """The records of a source whose columns are those of the schema; see `read`."""
    folder = len(str(source.path.parent)) + 1 if str(source.path.parent) != "." else 0
    was_enabled = gc.isenabled()
    gc.disable()  # records are in no cycles, and a collector goes through all of them ever again
    try:
        return parse(source.rows(schema.columns), schema, defects, split, folder)
    finally:
        if was_enabled:
            gc.enable()


def parse(
    rows: Iterable[RawRow],
    schema: Schema,
    defects: Defects,
    split: str = "",
    folder: int | None = None,
) -> dict[str, list[Record]]:
    """Raw rows → records by split; see `read`. folder: how many characters of where a row stands
    are no part of its id; None: those up to the last "/".

    Raises InputError where a record holds what are whole rows of the file, so that a quote must be
    missing: they would be lost.
    """
    records: dict[str, list[Record]] = {}
    doubtful: list[tuple[RawRow, Record | None]] = []
    seen: set[tuple[str, str]] = set()
    counts = defects.converted
    for row in rows:
        row_split, record = "" if schema.split else split, None
        try:
            if isinstance(row.fields, Defect):
                raise row.fields
            if schema.split:
                row_split = _split(row.fields, schema.split)
            record = _record(row, schema, counts, folder)
            if (row_split, record.id) in seen:
                raise Defect(schema.id, f"{show(record.id)} is the id of an earlier record")
        except Defect as defect:
            defects.add(row.where, row_split or "unknown", defect)
        else:
            seen.add((row_split, record.id))
            records.setdefault(row_split, []).append(record)
        if row.lines > 1 and len(row.inside) > row.lines / 2:
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
            labels = _record(RawRow(where, fields), schema, Counter()).labels
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


def _record(row: RawRow, schema: Schema, counts: Counter[str], folder: int | None = None) -> Record:
    fields = row.fields
    assert not isinstance(fields, Defect)
    text = _whole_text(fields, schema, counts)
    pair = _text(fields, schema.pair, counts) if schema.pair else ""
    if schema.pair and not schema.may_be_empty:
        _check_words(pair, schema.pair)
    if schema.id:
        identity = _name(fields, schema.id, counts)
    else:
        where = row.where
        identity = where[folder:] if folder is not None else where[where.rfind("/") + 1 :]
    labels: dict[str, Label] = {}
    for target in schema.targets:
        if target.may_be_hidden and fields.get(target.column, 0) in (None, -1):
            labels[target.task] = None
        else:
            labels[target.task] = _LABELS[target.kind](fields, target, text, counts)
    group = str(_field(fields, schema.group)) if schema.group else ""
    return Record(identity, text, labels, pair, group)


def _field(fields: Mapping[str, Any], column: str) -> Any:
    value = fields.get(column)
    if value is None:
        found = ", ".join(show(name) for name in list(fields)[:8]) or "no fields"
        reason = "null" if column in fields else f"the record has {found}"
        raise Defect(column, f"missing ({reason})")
    if isinstance(value, Defect):
        raise Defect(column, str(value))
    if value != value:
        raise Defect(column, "missing (NaN)")
    return value


# Texts


def _whole_text(fields: Mapping[str, Any], schema: Schema, counts: Counter[str]) -> str:
    """One column as it is; several by their names, a line each, without those that are empty."""
    if not schema.texts:
        text = _text(fields, schema.text, counts)
    else:
        given = [name for name in schema.texts if fields.get(name) not in (None, "")]
        named = ((name, _text(fields, name, counts)) for name in given)
        text = "\n".join(f"{name}: {value}" for name, value in named if value.strip())
    if not schema.may_be_empty:
        _check_words(text, " and ".join(schema.texts or (schema.text,)))
    return text


def _check_words(text: str, column: str) -> None:
    if not text or text.isspace():
        raise Defect(column, "empty; a record needs at least one word")


def _text(fields: Mapping[str, Any], column: str, counts: Counter[str]) -> str:
    value = fields.get(column)
    if type(value) is str:
        _check_text(value, column)
        return value
    value = _field(fields, column)
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        counts["lists of words taken as texts"] += 1
        value = " ".join(value)
    elif type(value) in (int, float):
        counts["numbers taken as texts"] += 1
        value = str(value)
    if not isinstance(value, str):
        raise Defect(column, f"expected text, found {kind_of(value)}")
    _check_text(value, column)
    return value


# Labels


def _name(fields: Mapping[str, Any], column: str, counts: Counter[str]) -> str:
    """A label or an id: text on one line, a number (4.0 is 4), true or false."""
    value = fields.get(column)
    value = value if type(value) is str else _field(fields, column)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float:
        value = int(value) if value.is_integer() else repr(value)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise Defect(column, f"expected text, found {kind_of(value)}")
    _check_text(value, column)
    stripped = value.strip()
    if not stripped:
        raise Defect(column, "empty")
    if len(stripped) < len(value):
        counts["labels and ids with space around them, which is left out"] += 1
    if not stripped.isprintable() and len(stripped.splitlines()) > 1:
        raise Defect(column, f"{show(value)} has a line break in it")
    return stripped


def _class(fields: Mapping[str, Any], target: Column, text: str, counts: Counter[str]) -> str:
    if target.columns:
        (names,) = [_marked(fields, target)]
        if len(names) != 1:
            expected = "expected 1 in one of the columns of labels"
            raise Defect(target.column, f"{expected}, found it in {len(names)}; or set data.kind")
        return names[0]
    value = fields.get(target.column)
    if type(value) is str and not target.separator:
        value = as_list(value)
    if type(value) is list or type(value) is tuple:
        if len(value) != 1:
            reason = f"expected one label, found a list of {len(value)}"
            raise Defect(target.column, f"{reason}. For several set data.kind=multilabel")
        fields = {target.column: value[0]}
    if value == "":
        raise Defect(
            target.column, "empty; where a text may have no label, set data.kind=multilabel"
        )
    return _known(_name(fields, target.column, counts), target)


def _known(label: str, target: Column) -> str:
    """The label, or the name that its number stands for."""
    if not target.names or label in target.names:
        return label
    if not label.isdecimal() or int(label) >= len(target.names):
        expected = ", ".join(target.names[:8])
        raise Defect(target.column, f"{show(label)} is none of {expected}, nor the number of one")
    return target.names[int(label)]


def _several(
    fields: Mapping[str, Any], target: Column, text: str, counts: Counter[str]
) -> tuple[str, ...]:
    if target.columns:
        return tuple(sorted(_marked(fields, target)))
    column = target.column
    value: Any = _field(fields, column)
    if isinstance(value, str):
        found = as_list(value)
        if found is None:
            parts = value.split(target.separator or ",")
            found = [part for part in map(str.strip, parts) if part]
        value = found
    if type(value) is int:
        value = [value]
    if not isinstance(value, list | tuple):
        raise Defect(column, f"expected a list of labels, found {kind_of(value)}")
    names = [_known(_name({column: name}, column, counts), target) for name in value]
    if len({*names}) < len(names):
        raise Defect(column, f"{', '.join(names)} holds a label twice")
    return tuple(sorted(names))


_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "": False, "false": False, "true": True}


def _marked(fields: Mapping[str, Any], target: Column) -> list[str]:
    """The columns that hold 1."""
    found: list[str] = []
    for column in target.columns:
        mark = _MARKS.get(str(fields.get(column, "")).strip().lower())
        if mark is None:
            raise Defect(column, f"expected 0 or 1, found {show(fields[column])}")
        if mark:
            found.append(column)
    return found


def _number(fields: Mapping[str, Any], target: Column, text: str, counts: Counter[str]) -> float:
    value = _field(fields, target.column)
    try:
        if type(value) not in (int, float, str):
            raise ValueError
        if target.decimal == "," and isinstance(value, str):
            number = float(value.replace(".", "").replace(",", "."))
        else:
            number = float(value)
    except (ValueError, OverflowError):
        reason = f"expected a number, found {show(value)}"
        comma = isinstance(value, str) and "," in value and target.decimal == "."
        raise Defect(target.column, reason + ("; see data.decimal" if comma else "")) from None
    if not math.isfinite(number):
        raise Defect(target.column, f"{show(value)} is no finite number")
    return number


def _slots(
    fields: Mapping[str, Any], target: Column, text: str, counts: Counter[str]
) -> tuple[str, ...]:
    try:
        tags = slot_tags(_field(fields, target.column), text, target.names, target.spans)
    except Defect:
        raise
    except ValueError as error:
        raise Defect(target.column, str(error)) from None
    for tag in set(tags):
        _check_text(tag, target.column)
    return tags


_LABELS = {"class": _class, "multilabel": _several, "regression": _number, "slots": _slots}


def _split(fields: Mapping[str, Any], column: str) -> str:
    value = _text(fields, column, Counter())
    if value not in SPLITS:
        raise Defect(column, f"{show(value)} is no split; expected one of {', '.join(SPLITS)}")
    return SPLITS[value]


def _check_text(text: str, column: str) -> None:
    if text.isascii() and "\0" not in text and len(text) <= limits.MAX_BYTES:
        return  # most are
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # what `readers` makes of a bad byte
            reason = f"not UTF-8 (byte 0x{code - 0xDC00:02x}, or \\u{code:04x} escaped alone)"
        else:
            reason = f"\\u{code:04x} is half of a surrogate pair"
        raise Defect(column, f"{reason} at character {error.start}") from None
    if size > limits.MAX_BYTES:
        raise Defect(column, limits.too_large(size))
    if "\0" in text:
        raise Defect(column, f"character {text.index(chr(0))} is NUL")
    if text.startswith("\ufeff"):
        raise Defect(column, BYTE_ORDER_MARK)
