"""Parquet files, and Arrow files as the `datasets` library stores them.

The "line" of a row is its number, counted from 1.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxclf.core.errors import InputError, JaxclfError
from jaxclf.data.formats.limits import ROW_BYTES, Expansion
from jaxclf.data.formats.lines import decode
from jaxclf.data.formats.parts import Part
from jaxclf.data.formats.rows import Defect, RawRow, show

_BATCH_ROWS, _BATCH_BYTES = 1024, 64 << 20  # held at once at most
_ARROW = ".arrow"


def columns(part: Part) -> list[str]:
    """The names of the columns."""
    with part.opening() as opened:
        try:
            return list(_schema(part, opened).names)
        except Exception as error:  # Arrow has no base in common for what a damaged file does
            raise _unreadable(part, error) from error


def read(part: Part, wanted: Sequence[str]) -> Iterator[RawRow]:
    """The rows, with the `wanted` columns."""
    expansion, number, batches = Expansion(part.where, part.stored), 0, None
    class_names: dict[str, list[str]] = {}
    with part.opening() as opened:
        while True:
            try:
                if batches is None:
                    metadata = _schema(part, opened).metadata or {}
                    class_names = _class_names(part.where, metadata, wanted)
                    batches = _batches(part, opened, wanted, expansion)
                batch = next(batches, None)
                if batch is None:
                    return
                table = [
                    _column_values(batch.column(column), class_names.get(column), expansion)
                    for column in wanted
                ]
            except JaxclfError:
                raise
            except Exception as error:
                raise _unreadable(part, error) from error
            for fields in zip(*table, strict=True):
                number += 1
                yield RawRow(f"{part.where}:{number}", dict(zip(wanted, fields, strict=True)))


def _unreadable(part: Part, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the system's
    reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
    kind = "Arrow" if part.ending == _ARROW else "parquet"
    return InputError(f"{part.where}: not a readable {kind} file: {reason}. Fetch or make it again")


def _schema(part: Part, opened: Any) -> Any:
    import pyarrow.ipc
    import pyarrow.parquet

    opened.seek(0)
    if part.ending == _ARROW:
        return pyarrow.ipc.open_stream(opened).schema
    return pyarrow.parquet.ParquetFile(opened).schema_arrow


def _batches(part: Part, opened: Any, wanted: Sequence[str], expansion: Expansion) -> Iterator[Any]:
    import pyarrow.ipc
    import pyarrow.parquet

    opened.seek(0)
    if part.ending == _ARROW:
        for batch in pyarrow.ipc.open_stream(opened):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.select(list(wanted)).slice(start, _BATCH_ROWS)
        return
    file = pyarrow.parquet.ParquetFile(opened)
    rows = _rows_at_once(file.metadata, expansion)
    yield from file.iter_batches(batch_size=rows, columns=list(wanted))


def _rows_at_once(metadata: Any, expansion: Expansion) -> int:
    """How many rows to hold, by what the file says of its sizes.

    Raises InputError where it says that they are more than a file of its size may become. Sizes of
    single columns are not asked for: pyarrow ends the process over damaged ones.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    sizes = [group.total_byte_size for group in groups]
    expansion.check(max(sum(sizes), ROW_BYTES * metadata.num_rows))
    # A page of a few bytes may hold one value many times.
    is_dense = sum(sizes) > 16 * expansion.stored
    largest = max(sizes, default=0) if is_dense else sum(sizes) // max(1, metadata.num_rows)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _column_values(
    array: Any, class_names: Sequence[str] | None, expansion: Expansion
) -> list[Any]:
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        names = _column_values(array.dictionary, None, expansion)
        values = [None if index is None else names[index] for index in array.indices.to_pylist()]
        expansion.add(sum(len(value) for value in values if isinstance(value, str)))
        return values
    expansion.add(array.nbytes)
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # pyarrow does not check text when it reads it
        found = array.cast(pyarrow.large_binary()).to_pylist()
        values = [None if value is None else decode(value) for value in found]
    if class_names is None:
        return values
    return [named(value, class_names) for value in values]


def named(value: Any, names: Sequence[str]) -> Any:
    """A class number, or a list of such, by name; -1 stands for a hidden label."""
    if isinstance(value, list):
        return [named(each, names) for each in value]
    if type(value) is not int or value == -1:
        return None if value == -1 else value
    if 0 <= value < len(names):
        return names[value]
    return Defect("", f"{value} is not the number of one of the {len(names)} classes of the file")


def _class_names(
    where: str, metadata: Mapping[bytes, bytes], wanted: Sequence[str]
) -> dict[str, list[str]]:
    """Column → class names, where the `datasets` library stored numbers in place of names.

    Source: the entry "huggingface" it writes into the metadata of a file's schema. Raises
    InputError where the entry of one of the columns names no classes.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        entries = {column: features[column] for column in wanted if column in features}
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    found: dict[str, list[str]] = {}
    for column, entry in entries.items():
        # A list of classes, such as one tag a word: {"feature": {…}}, in older files [{…}].
        if isinstance(entry, dict) and isinstance(entry.get("feature"), dict):
            entry = entry["feature"]
        elif isinstance(entry, list) and len(entry) == 1:
            (entry,) = entry
        if not isinstance(entry, dict) or entry.get("_type") != "ClassLabel":
            continue
        names: Any = entry.get("names")
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or len({*names}) < len(names):
            raise InputError(
                f"{where}: column {show(column)} has numbers for class names, but its metadata (of "
                f"the datasets library) name no distinct classes: {show(names)}. Write it again "
                "with the names as text"
            )
        found[column] = names
    return found
