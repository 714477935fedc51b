"""A file → raw rows: jsonl, csv and parquet, and plain lines (.txt, one text a line); all but
parquet also gzip'd.

Text is UTF-8 without a byte order mark. A line may end in LF or CRLF; blank lines of a jsonl or
csv file are passed over. A csv file has a header. In a parquet file the "line" of a row is its
number, counted from 1.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxclf.core.errors import InputError, StorageError

MAX_BYTES = 4 << 20  # of one record; some 25 times the longest of 20 Newsgroups
EXTENSIONS = (".jsonl", ".csv", ".txt", ".parquet")
BYTE_ORDER_MARK = "starts with a byte order mark. Save the file as UTF-8 without one."


class Defect(ValueError):  # noqa: N818 - a finding; a row may hold one as its value
    """Why one record cannot be used, and the field concerned; "" where it is the whole record."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)


@dataclass(frozen=True)
class RawRow:
    """The raw fields of one record and where they stand (`file:line`), or what is wrong there."""

    where: str
    fields: Mapping[str, Any] | Defect


def rows(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    """The rows of a file, holding at least the given columns (of plain lines: the one column).

    Raises InputError if the file as a whole cannot be read (missing, of no known kind, damaged,
    without one of the columns), StorageError if the system fails to read it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    name = path.name.lower()
    kind = next((end for end in EXTENSIONS if name.removesuffix(".gz").endswith(end)), None)
    if kind is None or name.endswith(".parquet.gz"):
        raise InputError(
            f"{path}: the name must end in {', '.join(EXTENSIONS)} (all but .parquet also with "
            "a further .gz), which says how to read it. Rename the file."
        )
    readers = {".jsonl": _jsonl, ".csv": _csv, ".txt": _plain_lines, ".parquet": _parquet}
    try:
        yield from readers[kind](path, columns)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error}). Fetch or make it again.") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def too_large(size: int) -> str:
    return (
        f"{size:,} bytes; a record may have {MAX_BYTES:,}. Split the document into several "
        "records or cut it."
    )


def show(value: str) -> str:
    """A value as an error message quotes it: escaped, and not longer than a line."""
    return repr(value if len(value) <= 60 else value[:57] + "...")


def kind_of(value: Any) -> str:
    """What a JSON value is called in an error message."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _lines(path: Path, limit: int = MAX_BYTES) -> Iterator[tuple[str, bytes | Defect]]:
    """`file:line` and the line without its end. Of one above the limit only a piece is held."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 2):
            number += 1
            size = len(line)
            while not line.endswith(b"\n") and (rest := file.readline(limit + 2)):
                size += len(rest)
                line = rest
            where = f"{path}:{number}"
            if size > limit + 2:
                yield where, Defect("", too_large(size))
            else:
                yield where, line.removesuffix(b"\n").removesuffix(b"\r")


def _decode(line: bytes) -> str:
    """Bad bytes become half surrogates (U+DC80 to U+DCFF), reported with their field later."""
    return line.decode(errors="surrogateescape")


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    for where, line in _lines(path):
        if isinstance(line, Defect):
            yield RawRow(where, line)
        elif line.strip():
            try:
                yield RawRow(where, _json_object(line))
            except Defect as defect:
                yield RawRow(where, defect)


def _json_object(line: bytes) -> dict[str, Any]:
    if line.startswith(b"\xef\xbb\xbf"):
        raise Defect("", BYTE_ORDER_MARK)
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start} of the line)"
        raise Defect("", f"{reason}. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise Defect("", f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        # Python refuses to convert very long digit strings, by default above 4,300 digits.
        raise Defect("", "a number has too many digits. Put it in quotes.") from None
    except RecursionError:
        raise Defect("", "lists or objects are nested too deeply") from None
    if not isinstance(value, dict):
        raise Defect("", f'expected an object such as {{"text": …}}, found {kind_of(value)}')
    return value


def _plain_lines(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    for where, line in _lines(path):
        yield RawRow(where, line if isinstance(line, Defect) else {columns[0]: _decode(line)})


def _csv(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    # A quoted field may go over lines, so no line can be left out: no limit here. Fields that
    # are too large are found, like all other text, when the record is made.
    lines = (_decode(line) + "\n" for _, line in _lines(path, 1 << 40) if isinstance(line, bytes))
    default_limit = csv.field_size_limit((1 << 31) - 1)
    try:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise InputError(f"{path}:1: the header is not csv: {error}") from error
        _check_columns(path, header, columns)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield RawRow(where, Defect("", f"not csv: {error}"))
                continue
            if values is None:
                return
            if not values:
                continue
            if len(values) == len(header):
                yield RawRow(where, dict(zip(header, values, strict=True)))
            else:
                reason = f"{len(values)} fields; the header has {len(header)}"
                yield RawRow(where, Defect("", f"{reason}. Quote fields that hold a comma."))
    finally:
        csv.field_size_limit(default_limit)


def _check_columns(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    if found and found[0].startswith("\ufeff"):
        raise InputError(f"{path}:1: {BYTE_ORDER_MARK}")
    for column in columns:
        if found.count(column) != 1:
            what = "is twice in the file" if column in found else "is not in the file"
            names = ", ".join(map(show, found[:20])) or "none"
            raise InputError(
                f"{path}: column {show(column)} {what}; its columns: {names}. Set data.text, "
                "data.label, data.slots and data.id to the columns of your file."
            )


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, columns)
            class_names = _class_names(file.schema_arrow.metadata or {})
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                values = [
                    _column_values(batch.column(column), class_names.get(column))
                    for column in columns
                ]
                for fields in zip(*values, strict=True):
                    number += 1
                    yield RawRow(f"{path}:{number}", dict(zip(columns, fields, strict=True)))
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error


def _column_values(array: Any, class_names: Sequence[str] | None) -> list[Any]:
    import pyarrow

    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # pyarrow does not check text when it reads it
        found = array.cast(pyarrow.large_binary()).to_pylist()
        values = [None if value is None else _decode(value) for value in found]
    if class_names is None:
        return values
    count = len(class_names)
    return [
        # -1 stands for a hidden label.
        class_names[value] if isinstance(value, int) and 0 <= value < count else None
        for value in values
    ]


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column → class names, where the `datasets` library stored numbers in place of names.

    Source: the entry "huggingface" it writes into the metadata of a file's schema.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
