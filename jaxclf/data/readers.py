"""A file → raw rows: jsonl, csv and parquet, and plain lines (.txt, one text a line); all but
parquet also gzip'd.

Text is UTF-8 without a byte order mark. A line may end in LF or CRLF; blank lines of a jsonl or
csv file are passed over. A csv file has a header. In a parquet file the "line" of a row is its
number, counted from 1.

What is held in memory is bounded by a few records, whatever the file holds. Where a quote of a csv
file is out of place, nobody can tell where the next record begins: such a file is not read on.
"""

import csv
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxclf.core.errors import InputError, JaxclfError, StorageError

MAX_BYTES = 4 << 20  # of one record; some 25 times the longest of 20 Newsgroups
MAX_LINE = 64 * MAX_BYTES  # how far the end of a line that is too long is looked for
# What a compressed file may become, as a multiple of its size; every file may become FREE_BYTES.
# Texts shrink to a third or a tenth, and rows that are all alike to a few hundredths.
MAX_EXPANSION, FREE_BYTES = 256, 256 << 20
_ROW_BYTES = 64  # what a row counts as at least: as a record it takes more
_BATCH_ROWS, _BATCH_BYTES = 64, 64 << 20  # of a parquet file, held at once at most
EXTENSIONS = (".jsonl", ".csv", ".txt", ".parquet")
BYTE_ORDER_MARK = "starts with a byte order mark. Save the file as UTF-8 without one."


class Defect(ValueError):  # noqa: N818 - a finding; a row may hold one as its value
    """Why one record cannot be used, and the field concerned; "" where it is the whole record."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)


@dataclass(frozen=True)
class RawRow:
    """The raw fields of one record and where they stand (`file:line`), or what is wrong there.

    lines: how many it goes over. inside: those of them that would be a row by themselves, read as
    one; where they are most of a csv record, the quote that holds them together may be a mistake.
    """

    where: str
    fields: Mapping[str, Any] | Defect
    lines: int = 1
    inside: Sequence[Mapping[str, str]] = ()


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


def show(value: Any) -> str:
    """A value as an error message quotes it: escaped, and not longer than a line."""
    if isinstance(value, list | dict):
        return kind_of(value)
    value = value if isinstance(value, str) else str(value)
    return repr(value if len(value) <= 60 else value[:57] + "...")


def kind_of(value: Any) -> str:
    """What a JSON value is called in an error message."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


class _Expansion:
    """Counts what a file is read to become; InputError where that is more than it may."""

    def __init__(self, path: Path):
        self.path, self.found, self.stored = path, 0, path.stat().st_size
        self.limit = max(FREE_BYTES, MAX_EXPANSION * self.stored)

    def add(self, size: int) -> None:
        self.found += size
        self.check(self.found)

    def check(self, size: int) -> None:
        if size > self.limit:
            raise InputError(
                f"{self.path}: decompressed it has more than {self.limit:,} bytes (a row counts as "
                f"{_ROW_BYTES} at least), the most that a file of its size may become. If it is "
                "meant so, decompress it or divide it"
            )


class _LongLine(Defect):
    """A line of more than `MAX_BYTES`, which is not held; `quotes`: how many are in it."""

    def __init__(self, size: int, quotes: int):
        super().__init__("", too_large(size))
        self.quotes = quotes


def _lines(path: Path) -> Iterator[tuple[int, bytes | _LongLine]]:
    """Number and content of every line, without its end."""
    is_compressed = path.suffix.lower() == ".gz"
    expansion = _Expansion(path)
    with gzip.open(path) if is_compressed else path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_BYTES + 2)
            size, quotes = len(line), 0
            if not size:
                return
            if size == MAX_BYTES + 2 and not line.endswith(b"\n"):
                quotes = line.count(b'"')
                while not line.endswith(b"\n") and (rest := file.readline(MAX_BYTES)):
                    line, size, quotes = rest, size + len(rest), quotes + rest.count(b'"')
                    if size > MAX_LINE:
                        raise InputError(
                            f"{path}:{number}: no line end in {MAX_LINE:,} bytes. Write one record "
                            "a line"
                        )
            if is_compressed:
                expansion.add(max(size, _ROW_BYTES))
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            yield number, line if size <= MAX_BYTES + 2 else _LongLine(size, quotes)


def _decode(line: bytes) -> str:
    """Bad bytes become half surrogates (U+DC80 to U+DCFF), reported with their field later."""
    return line.decode(errors="surrogateescape")


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
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
        value = json.loads(line.decode(), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start} of the line)"
        raise Defect("", f"{reason}. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise Defect("", f"not JSON: {error.msg} at character {error.pos}") from None
    except Defect:
        raise
    except ValueError:
        # Python refuses to convert very long digit strings, by default above 4,300 digits.
        raise Defect("", "a number has too many digits. Put it in quotes.") from None
    except RecursionError:
        raise Defect("", "lists or objects are nested too deeply") from None
    if not isinstance(value, dict):
        raise Defect("", f'expected an object such as {{"text": …}}, found {kind_of(value)}')
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Defect("", f"{show(twice)} stands twice in an object. Leave one out.")
    return found


def _plain_lines(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    for number, line in _lines(path):
        fields = line if isinstance(line, Defect) else {columns[0]: _decode(line)}
        yield RawRow(f"{path}:{number}", fields)


class _CsvLines(Iterator[str]):
    """The lines that `csv.reader` asks for; `record` are those since its last row, from `first`."""

    def __init__(self, path: Path):
        self.path, self.lines, self.number = path, _lines(path), 0
        self.begin()

    def begin(self) -> None:
        """From here on lines are of the next record."""
        self.record: list[str] = []
        self.size = 0

    @property
    def first(self) -> int:
        """The line in which the record begins."""
        return self.number - max(0, len(self.record) - 1)

    def __next__(self) -> str:
        self.number, line = next(self.lines)
        if isinstance(line, _LongLine) and not self.record and line.quotes % 2 == 0:
            raise line
        self.size += 0 if isinstance(line, Defect) else len(line) + 1
        if isinstance(line, Defect) or (self.record and self.size > MAX_BYTES):
            first = self.number - len(self.record)
            raise InputError(
                f"{self.path}:{first}: not csv: the quote that is open at the end of the line is "
                f"not closed within {MAX_BYTES:,} bytes, the most that a record may have. {_QUOTES}"
            )
        self.record.append(_decode(line) + "\n")
        return self.record[-1]


_QUOTES = (
    "A field that holds a comma, a quote or a line break stands in quotes, and a quote inside it "
    'is written twice: "".'
)


def _csv(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    lines = _CsvLines(path)
    default_limit = csv.field_size_limit((1 << 31) - 1)  # the size of records is checked by lines
    try:
        reader = csv.reader(lines, strict=True)
        header = None
        while True:
            lines.begin()
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise _misplaced_quote(lines, str(error)) from error
            except Defect as defect:
                yield RawRow(f"{path}:{lines.number}", defect)
                continue
            where = f"{path}:{lines.first}"
            if header is None:
                header = values or []
                _check_columns(path, header, columns)
            elif values is None:
                return
            elif any(value.startswith(" ") and _opens(value) for value in values):
                raise _misplaced_quote(lines, "a space before a quote, which opens no field so")
            elif values:
                fields = dict(zip(header, values, strict=False))
                if len(values) != len(header):
                    reason = f"{len(values)} fields; the header has {len(header)}"
                    fields = Defect("", f"{reason}. Quote fields that hold a comma.")
                inside = _rows_inside(lines.record, header)
                yield RawRow(where, fields, len(lines.record), inside)
    finally:
        csv.field_size_limit(default_limit)


def _misplaced_quote(lines: _CsvLines, reason: str) -> InputError:
    """What to say where csv cannot be read on."""
    text = "".join(lines.record)
    if "new-line" in reason:
        reason = "a carriage return that ends no line; lines end in LF or CRLF"
    elif "end of data" in reason:
        reason = f"a quote is not closed until the file ends, in line {lines.number}"
    elif len(lines.record) > 1:
        reason += f" in line {lines.number}"
    escaped = ' It is not written \\" as here.' if '\\"' in text else ""
    return InputError(
        f"{lines.path}:{lines.first}: not csv: {reason}. {_QUOTES}{escaped} Where the next record "
        "begins cannot be told, so that none can be skipped"
    )


def _opens(value: str) -> bool:
    """Whether a value begins with a quote, after spaces, that nothing closes."""
    return value.lstrip().startswith('"') and value.count('"') % 2 == 1


def _rows_inside(record: Sequence[str], header: Sequence[str]) -> list[dict[str, str]]:
    """See `RawRow.inside`; of a single column nothing can be told."""
    if len(record) == 1 or len(header) == 1:
        return []
    whole = (line for line in record if line.count(",") == len(header) - 1)
    rows = (line.rstrip("\r\n").replace('"', "").split(",") for line in whole)
    return [dict(zip(header, row, strict=True)) for row in rows]


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


# Parquet ------------------------------------------------------------------------------------------


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    import pyarrow.parquet

    expansion, number, batches = _Expansion(path), 0, None
    class_names: dict[str, list[str]] = {}
    with path.open("rb") as opened:
        while True:
            try:
                if batches is None:
                    file = pyarrow.parquet.ParquetFile(opened)
                    _check_columns(path, file.schema_arrow.names, columns)
                    class_names = _class_names(path, file.schema_arrow.metadata or {}, columns)
                    rows = _rows_at_once(file.metadata, expansion)
                    batches = file.iter_batches(batch_size=rows, columns=list(columns))
                batch = next(batches, None)
                if batch is None:
                    return
                table = [
                    _column_values(batch.column(column), class_names.get(column), expansion)
                    for column in columns
                ]
            except JaxclfError:
                raise
            except Exception as error:  # Arrow has no base in common for what a damaged file does
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the system's
                reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
                raise InputError(
                    f"{path}: not a readable parquet file: {reason}. Fetch or make it again"
                ) from error
            for fields in zip(*table, strict=True):
                number += 1
                yield RawRow(f"{path}:{number}", dict(zip(columns, fields, strict=True)))


def _rows_at_once(metadata: Any, expansion: _Expansion) -> int:
    """How many rows to hold, by what the file says of its sizes.

    Raises InputError where it says that they are more than a file of its size may become. Sizes of
    single columns are not asked for: pyarrow ends the process over damaged ones.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    sizes = [group.total_byte_size for group in groups]
    expansion.check(max(sum(sizes), _ROW_BYTES * metadata.num_rows))
    # A page of a few bytes may hold one value many times.
    is_dense = sum(sizes) > 16 * expansion.stored
    largest = max(sizes, default=0) if is_dense else sum(sizes) // max(1, metadata.num_rows)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _column_values(
    array: Any, class_names: Sequence[str] | None, expansion: _Expansion
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
        values = [None if value is None else _decode(value) for value in found]
    if class_names is None:
        return values
    return [_class_name(value, class_names) for value in values]


def _class_name(value: Any, names: Sequence[str]) -> Any:
    """-1 stands for a hidden label."""
    if type(value) is not int or value == -1:
        return None if value == -1 else value
    if 0 <= value < len(names):
        return names[value]
    return Defect("", f"{value} is not the number of one of the {len(names)} classes of the file")


def _class_names(
    path: Path, metadata: Mapping[bytes, bytes], columns: Sequence[str]
) -> dict[str, list[str]]:
    """Column → class names, where the `datasets` library stored numbers in place of names.

    Source: the entry "huggingface" it writes into the metadata of a file's schema. Raises
    InputError where the entry of one of the columns names no classes.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        entries = {column: features[column] for column in columns if column in features}
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    found: dict[str, list[str]] = {}
    for column, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("_type") != "ClassLabel":
            continue
        names: Any = entry.get("names")
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or len({*names}) < len(names):
            raise InputError(
                f"{path}: column {show(column)} has numbers for class names, but its metadata (of "
                f"the datasets library) name no distinct classes: {show(names)}. Write it again "
                "with the names as text"
            )
        found[column] = names
    return found
