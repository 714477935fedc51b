"""A file, folder or archive → raw rows, however it is written.

What a file does not say (encoding, separator, header, what a text file's lines are) is found out,
and `Source.said` has it in words; `Options` set it. What is held in memory is bounded by a few
records, whatever the file holds, but for objects of columns in JSON.
"""

import gzip
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxclf.core.errors import InputError, StorageError
from jaxclf.data.formats import columnar, corpora, delimited, exports, json_rows, sheets
from jaxclf.data.formats.exports import Reshape
from jaxclf.data.formats.lines import TextForm, text_form
from jaxclf.data.formats.parts import ARCHIVE, COMPRESSED, Part, parts
from jaxclf.data.formats.rows import Defect, RawRow, kind_of, show

__all__ = ["Defect", "Options", "RawRow", "Source", "kind_of", "open_source", "show"]

SAMPLE = 1000  # rows that columns and kinds are guessed from
_TEXT = "text"  # the column of a file that is text alone
# data.format → the endings that mean it.
FORMATS = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv", ".tsv", ".tab", ".psv"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow",),
    "xlsx": (".xlsx", ".xlsm"),
    "txt": (".txt", ".text"),
    "fasttext": (".ft", ".fasttext"),
    "conll": (".conll", ".conllu", ".bio", ".iob", ".iob2"),
}
_BY_ENDING = {ending: name for name, endings in FORMATS.items() for ending in endings}
_IN_TEXT = ("jsonl", "json", "csv", "txt", "fasttext", "conll")
_OTHER_KINDS = {b"PK\x03\x04": "zip or xlsx", b"\x1f\x8b": "gzip", b"PAR1": "parquet"}
_OLD = {".xls": "a spreadsheet of before 2007", ".ods": "an OpenDocument spreadsheet"}


@dataclass(frozen=True)
class Options:
    """How a source is written, where it is set; "" and "auto": to be found out.

    known: names that a csv file's header may have, in lower case.
    """

    format: str = ""
    encoding: str = ""
    separator: str = ""
    header: str = "auto"
    quotes: str = "auto"
    sheet: str = ""
    known: frozenset[str] = frozenset()


Rows = Callable[[Sequence[str]], Iterator[RawRow]]


@dataclass(frozen=True)
class Source:
    """What a path stands for: `rows(columns)` reads it from the start.

    columns: their names; None: each row has its own. sample: the first rows, with every column.
    said: what was guessed.
    """

    path: Path
    columns: Sequence[str] | None
    rows: Rows
    said: Sequence[str] = ()
    sample: Sequence[RawRow] = field(default=(), repr=False)


def open_source(path: Path, options: Options | None = None) -> Source:
    """Find out how a source is written.

    Raises InputError if it cannot be read as a whole (missing, of no known kind, damaged),
    StorageError if the system fails to read it; so do its rows.
    """
    options = options or Options()
    with _Refusing(path):
        found, said = parts(path)
        source = _Documents(path, found, options) if found[0].is_document else None
        source = source or _Parts(path, found, options)
        rows = _guarded(path, source.rows)
        sample = list(itertools.islice(rows(source.columns or ()), SAMPLE))
        columns, change = source.columns, None
        if columns is None:
            change, export = exports.reshape(sample)
            source.said.append(export)
        if change is not None:
            rows = _changed(rows, change)
            sample = list(exports.reshaped(sample, change))
    told = dict.fromkeys(filter(None, [said, *source.said]))
    return Source(path, columns, rows, tuple(told), sample)


def rows(path: Path, columns: Sequence[str]) -> Iterator[RawRow]:
    """The rows of a source that needs no guess of its columns; see `open_source`."""
    yield from open_source(path).rows(columns)


def _changed(rows: Rows, change: Reshape) -> Rows:
    return lambda columns: exports.reshaped(rows(columns), change)


class _Refusing:
    """Turns what libraries raise over damaged or unreadable files into errors of ours."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, gzip.BadGzipFile | EOFError | zlib.error | lzma.LZMAError):
            name = "gzip" if COMPRESSED.get(self.path.suffix.lower()) is gzip.open else "compressed"
            raise InputError(
                f"{self.path}: damaged {name} file ({error}). Fetch or make it again."
            ) from error
        if isinstance(error, zipfile.BadZipFile | NotImplementedError):
            raise InputError(
                f"{self.path}: damaged zip file ({error}). Fetch or make it again."
            ) from error
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise StorageError(f"{self.path}: cannot be read: {reason}") from error


def _guarded(path: Path, rows: Rows) -> Rows:
    def guarded(columns: Sequence[str]) -> Iterator[RawRow]:
        with _Refusing(path):
            yield from rows(columns)

    return guarded


class _Documents:
    """A folder per class, with one text a file."""

    def __init__(self, path: Path, found: Sequence[Part], options: Options):
        self.columns = [_TEXT, *found[0].fields]
        # One encoding for all: a short text is too little to guess from.
        forms = {text_form(part, options.encoding).encoding for part in found[:SAMPLE]}
        legacy = sorted(name for name in forms if not name.startswith("utf"))
        self.said = [f"encoding {legacy[0]} (files are not UTF-8)"] if legacy else []
        self.parts, self.given = found, options.encoding or (legacy[0] if legacy else "")

    def rows(self, columns: Sequence[str]) -> Iterator[RawRow]:
        for part in self.parts:
            form = text_form(part, "" if self.given.startswith("utf") else self.given)
            yield from corpora.read_documents([part], [form], _TEXT)


class _Parts:
    """One file, or several of a kind one after the other."""

    def __init__(self, path: Path, found: Sequence[Part], options: Options):
        self.said: list[str] = []
        self.parts = [_Opened(part, options, self.said) for part in found]
        first = self.parts[0]
        self.columns = first.columns
        if first.columns is not None:
            self.columns = [*first.columns, *(n for n in found[0].fields if n not in first.columns)]
            for part in self.parts[1:]:
                theirs, ours = (", ".join(map(show, each.columns or ())) for each in (part, first))
                if theirs != ours:
                    raise InputError(
                        f"{part.part.where}: has the columns {theirs}, where {first.part.where} "
                        f"has {ours}. Parts of a data set have the same"
                    )

    def rows(self, columns: Sequence[str]) -> Iterator[RawRow]:
        for opened in self.parts:
            if not opened.part.fields:
                yield from opened.rows(columns)
                continue
            own = [name for name in columns if name not in opened.part.fields]
            for row in opened.rows(own):
                if not isinstance(row.fields, Defect):
                    fields = {**row.fields, **opened.part.fields}
                    row = RawRow(row.where, fields, row.lines, row.inside)
                yield row


class _Opened:
    """One file: its format, columns and rows."""

    def __init__(self, part: Part, options: Options, said: list[str]):
        self.part, self.options = part, options
        self.format = options.format or _format(part)
        self.columns: Sequence[str] | None = None
        self.form = TextForm()
        if self.format in _IN_TEXT:
            _check_is_text(part)
            guesses = self.format not in ("jsonl", "json")
            self.form = text_form(part, options.encoding, guesses)
            said.append(self.form.said)
        if self.format in ("jsonl", "json"):
            self.is_array = json_rows.is_array(part, self.form)
            if self.is_array and self.format == "jsonl":
                said.append("a JSON array")
        if self.format == "txt" and not options.format:
            self.format = corpora.kind(part, self.form)
            names = {"fasttext": "fastText's format", "conll": "CoNLL's format"}
            if self.format != corpora.PLAIN:
                said.append(names.get(self.format, "fields separated by tabs"))
        if self.format == "csv":
            self.dialect = delimited.dialect(
                part,
                self.form,
                options.known,
                separator=options.separator,
                header=options.header,
                quotes=options.quotes,
            )
            self.columns = self.dialect.header
            said.append(self.dialect.said)
        elif self.format in ("parquet", "arrow"):
            self.columns = columnar.columns(part)
        elif self.format == "xlsx":
            self.columns, chosen = sheets.header(part, options.sheet)
            said.append(chosen)
        elif self.format == "fasttext":
            self.columns = (_TEXT, "label")
        elif self.format == "conll":
            self.columns = (_TEXT, "slots")
        elif self.format == corpora.PLAIN:
            self.columns = (_TEXT,)

    def rows(self, columns: Sequence[str]) -> Iterator[RawRow]:
        part, form = self.part, self.form
        if self.format in ("parquet", "arrow"):
            return columnar.read(part, list(columns))
        if self.format == "xlsx":
            return sheets.read(part, self.options.sheet, self.columns or ())
        if self.format == "csv":
            return delimited.read(part, form, self.dialect)
        if self.format == "fasttext":
            return corpora.read_fasttext(part, form)
        if self.format == "conll":
            return corpora.read_conll(part, form)
        if self.format == corpora.PLAIN:
            return corpora.read_lines(part, form, _TEXT)
        return (json_rows.read_array if self.is_array else json_rows.read_lines)(part, form)


def _format(part: Part) -> str:
    if part.ending in _OLD:
        raise InputError(f"{part.where}: is {_OLD[part.ending]}. Save it as xlsx or csv")
    found = _BY_ENDING.get(part.ending)
    if found is None or (part.is_compressed and found == "parquet" and not _is_member(part)):
        raise InputError(
            f"{part.where}: the name must end in {', '.join(_endings())} (all but .parquet also "
            f"with a further {', '.join(COMPRESSED)}), or in {ARCHIVE}, which says how to read it. "
            "Rename the file, or set data.format"
        )
    return found


def _is_member(part: Part) -> bool:
    """Of an archive; those may be read from any place, as parquet needs."""
    return not part.where.lower().endswith(tuple(COMPRESSED))


def _endings() -> Iterable[str]:
    return (endings[0] for endings in FORMATS.values())


def _check_is_text(part: Part) -> None:
    with part.opening() as file:
        head = file.read(4)
    for start, kind in _OTHER_KINDS.items():
        if head.startswith(start):
            raise InputError(
                f"{part.where}: is a {kind} file by its first bytes, not text. Give it the ending "
                "of its kind"
            )
