"""Which columns of a source hold what, and their names in a file that writes them otherwise."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxclf.core.errors import InputError
from jaxclf.core.suggest import did_you_mean
from jaxclf.data.readers import Source, show
from jaxclf.data.tasks import TaskKind

_SHOWN = 20


@dataclass(frozen=True)
class Column:
    """The column with a task's gold labels.

    A class label is text, a number or a boolean; several labels are a list of such, or text with
    `separator` between them ("": the text of a Python or JSON list). `columns`: several columns
    of 0 and 1, each named as its label. A number may be written as text, with `decimal` in it. How
    slots may be written is said in `slot_formats`; `spans`: as spans of characters. `names`: what
    the numbers 0, 1 … stand for. Where a label `may_be_hidden`, null and -1 say that it is.
    """

    task: str
    kind: TaskKind
    column: str
    names: tuple[str, ...] = ()
    may_be_hidden: bool = False
    columns: tuple[str, ...] = ()
    separator: str = ","
    decimal: Literal[".", ","] = "."
    spans: bool = False

    @property
    def read(self) -> tuple[str, ...]:
        """Every column that is read."""
        return self.columns or (self.column,)


@dataclass(frozen=True)
class Schema:
    """Which column holds what. Without an id column a record's id is its `file:line`.

    `pair`: the column of a second text. `texts`: where a text is made of several columns, these;
    `text` is the first. `group`: records with the same value stay on one side of a split.
    `may_be_empty`: a text without words is no defect.
    """

    text: str
    targets: tuple[Column, ...] = ()
    id: str = ""
    split: str = ""
    pair: str = ""
    may_be_empty: bool = False
    texts: tuple[str, ...] = ()
    group: str = ""

    @property
    def columns(self) -> list[str]:
        """Every column that is read, once; the text first."""
        targets = (name for target in self.targets for name in target.read)
        names = [
            *(self.texts or (self.text,)),
            self.pair,
            self.id,
            self.split,
            self.group,
            *targets,
        ]
        return list(dict.fromkeys(filter(None, names)))


def names_of(source: Source) -> list[str]:
    """The columns of a source; where each row has its own, those of the first rows."""
    if source.columns is not None:
        return list(source.columns)
    rows = (row.fields for row in source.sample if isinstance(row.fields, Mapping))
    return list(dict.fromkeys(name for row in rows for name in row))


def values_of(source: Source, column: str) -> list[Any]:
    """Those of the first rows; None where a row has none."""
    return [row.fields.get(column) for row in source.sample if isinstance(row.fields, Mapping)]


def find(names: Sequence[str], wanted: str) -> str | None:
    """The column of this name, or the only one of this name in other case or with spaces."""
    if wanted in names:
        return wanted
    alike = {name for name in names if name.strip().casefold() == wanted.strip().casefold()}
    return alike.pop() if len(alike) == 1 else None


def find_several(names: Sequence[str], wanted: str) -> tuple[str, ...]:
    """`"title, body" → ("title", "body")`, unless a name has the comma. () if any is not there."""
    whole = find(names, wanted)
    if whole is not None:
        return (whole,)
    found = [find(names, name) for name in wanted.split(",")]
    return tuple(name for name in found if name) if None not in found else ()


def matched(source: Source, schema: Schema) -> tuple[Schema, list[str]]:
    """The schema with the names that the source has, and what was matched, in words.

    Raises InputError for a column that is not there or is there twice. Where each row has its own
    columns and some have it, the others are defects of theirs.
    """
    names = names_of(source)
    if source.columns is None and not names:
        return schema, []
    said: dict[str, str] = {}

    def name(wanted: str) -> str:
        found = find(names, wanted)
        if found is None:
            raise missing(source, wanted)
        if names.count(found) > 1:
            raise twice(source, found)
        if found != wanted:
            said[wanted] = f"column {show(found)} for {show(wanted)}"
        return found

    def target(each: Column) -> Column:
        if each.columns:
            return replace(each, columns=tuple(map(name, each.columns)))
        return replace(each, column=name(each.column))

    others = ("id", "split", "pair", "group")
    optional = {key: name(getattr(schema, key)) for key in others if getattr(schema, key)}
    texts = tuple(map(name, schema.texts or (schema.text,)))
    matched = replace(
        schema,
        text=texts[0],
        texts=texts if schema.texts else (),
        targets=tuple(map(target, schema.targets)),
        **optional,
    )
    return matched, list(said.values())


def missing(source: Source, wanted: str) -> InputError:
    """What to say of a column that is not in the source."""
    names = names_of(source)
    listed = ", ".join(map(show, names[:_SHOWN])) or "none"
    return InputError(
        f"{source.path}: column {show(wanted)} is not in the file; its columns: {listed}."
        f"{did_you_mean(wanted, names)} Set data.text, data.label, data.slots and data.id to the "
        f"columns of your file{_of_csv(source)}"
    )


def twice(source: Source, name: str) -> InputError:
    """What to say of a column that stands there twice."""
    listed = ", ".join(map(show, names_of(source)[:_SHOWN]))
    return InputError(
        f"{source.path}: column {show(name)} is twice in the file; its columns: {listed}. Rename "
        "one of them"
    )


def _of_csv(source: Source) -> str:
    if source.columns is None or len(source.columns) != 1 or not source.columns[0]:
        return "."
    return ", or data.separator to what stands between them."


def distinct(values: Iterable[Any]) -> set[str]:
    """The different values that are there, as text."""
    return {str(value) for value in values if value is not None and value != ""}
