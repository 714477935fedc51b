"""Fields with a separator between them: csv, tsv and their kin.

What a file does not say is found out from its first rows and said: the separator (`,` `;` tab or
`|`, or what a first line `sep=;` names), whether there is a header, whether quotes are doubled in
quoted fields, as RFC 4180 has them, or stand for nothing, as in many tsv files. Where a quote is
out of place, nobody can tell where the next record begins: such a file is not read on.
"""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxclf.core.errors import InputError
from jaxclf.data.formats import limits
from jaxclf.data.formats.lines import LongLine, TextForm, decode, lines
from jaxclf.data.formats.parts import Part
from jaxclf.data.formats.rows import Defect, RawRow

Quotes = Literal["doubled", "backslash", "none"]
NAMES = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
_SAMPLE = 200  # lines that a dialect is guessed from
_WORDS_OF_A_NAME = 5  # a column's name has not more


@dataclass(frozen=True)
class Dialect:
    """How the fields of a file are written.

    quotes: how a quote stands in a quoted field. skips_space: a space after a separator is none of
    the field. skipped: lines before the header, or the first row. header: the columns' names; those
    of a file without header are "1", "2" … said: what of this was guessed.
    """

    separator: str
    quotes: Quotes = "doubled"
    skips_space: bool = False
    skipped: int = 0
    header: tuple[str, ...] = ()
    has_header: bool = True
    said: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `csv.reader`."""
        common = {"delimiter": self.separator, "skipinitialspace": self.skips_space}
        if self.quotes == "none":
            return common | {"quoting": csv.QUOTE_NONE, "quotechar": None}
        escape = "\\" if self.quotes == "backslash" else None
        return common | {"strict": True, "escapechar": escape}


def dialect(
    part: Part,
    form: TextForm,
    known: Iterable[str],
    *,
    separator: str = "",
    header: str = "auto",
    quotes: str = "auto",
) -> Dialect:
    """The dialect of a file. known: names that a header may have, in lower case. separator, header
    ("yes", "no"), quotes: what is set by the user."""
    with_numbers = itertools.islice(lines(part, form), _SAMPLE + 1)
    sample = [decode(line).rstrip("\r") for _, line in with_numbers if isinstance(line, bytes)]
    found = Dialect(separator or ",")
    said: list[str] = []
    if sample and (stated := re.fullmatch(r'"?sep=(.)"?', sample[0].strip(" \r"))):
        found = replace(found, separator=separator or stated[1], skipped=1)
    elif not separator:
        usual = "\t" if part.ending in (".tsv", ".tab", ".txt") else ","
        found = replace(found, separator=_separator([line for line in sample if line], usual))
        if found.separator != usual:
            said.append(f"separator {NAMES[found.separator]}")
    sample = [line for line in sample[found.skipped :] if line.strip()]
    if quotes != "auto":
        found = replace(found, quotes=quotes)  # pyright: ignore[reportArgumentType]
    elif found.separator == "\t" and _has_plain_quotes(sample, found):
        found = replace(found, quotes="none")
        said.append("quotes stand for themselves (data.quotes=none)")
    elif _is_escaped(sample, found):
        found = replace(found, quotes="backslash")
        said.append("quotes in quotes have a backslash (data.quotes=backslash)")
    if sample and _is_spaced(sample[0], found.separator):
        found = replace(found, skips_space=True)
    rows = list(_sample_rows(sample, found))
    if not rows:
        return found
    has_header = header == "yes" or (header == "auto" and _has_header(rows, {*known}))
    first = rows[0]
    if has_header:
        names = tuple(name.strip() for name in first)
        if len(rows) > 2 and {len(row) for row in rows[1:-1]} == {len(first) + 1}:
            names = ("", *names)  # as R writes the names of rows
            said.append("the first column has no name")
    else:
        names = tuple(str(number) for number, _ in enumerate(first, 1))
        if header == "auto":
            said.append(f"no header: columns are called {', '.join(names[:9])} (data.header)")
    return replace(found, header=names, has_header=has_header, said=", ".join(said))


def _separator(sample: Sequence[str], usual: str) -> str:
    """The one that divides the lines into the same number of fields, by most lines' judgement."""

    def score(candidate: str) -> tuple[float, int]:
        try:
            rows = [row for row in csv.reader(sample, delimiter=candidate) if row]
        except csv.Error:
            return 0, 0
        if not rows or len(rows[0]) < 2:
            return 0, 0
        even = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        return round(even, 1), candidate == usual

    best = max((",", ";", "\t", "|"), key=score)
    return best if score(best)[0] > 0 else usual


def _has_plain_quotes(sample: Iterable[str], found: Dialect) -> bool:
    """Whether a field begins with a quote that does not end it, or a quote is doubled nowhere."""
    for line in sample:
        for value in line.split(found.separator):
            if value.startswith('"') and not re.fullmatch(r'"([^"]|"")*"', value.rstrip("\r")):
                return True
    return False


def _is_escaped(sample: Sequence[str], found: Dialect) -> bool:
    """Whether the lines can be read with backslashes before quotes, and without cannot."""
    if not any('\\"' in line for line in sample) or _can_be_read(sample, found):
        return False
    return _can_be_read(sample, replace(found, quotes="backslash"))


def _can_be_read(sample: Sequence[str], found: Dialect) -> bool:
    try:
        widths = {
            len(row) for row in csv.reader([f"{line}\n" for line in sample], **found.arguments)
        }
    except csv.Error:
        return False
    return len(widths) == 1


def _is_spaced(header: str, separator: str) -> bool:
    """Whether a space follows every separator of the header: it belongs to none of the names."""
    after = [header[match.end() :][:1] for match in re.finditer(re.escape(separator), header)]
    return bool(after) and separator != "\t" and all(letter == " " for letter in after)


def _sample_rows(sample: Iterable[str], found: Dialect) -> Iterator[list[str]]:
    try:
        for row in csv.reader((line + "\n" for line in sample), **found.arguments):
            if row:
                yield row
    except csv.Error:
        return  # told with its place when the file is read


def _has_header(rows: Sequence[Sequence[str]], known: set[str]) -> bool:
    """A header has a known name, or values unlike those below: no number, no text, none again."""
    first = [value.strip() for value in rows[0]]
    if {value.lower() for value in first} & known:
        return True
    for place, value in enumerate(first):
        below = [row[place].strip() for row in rows[1:] if place < len(row)]
        if value and (value in below or _is_number(value) or len(value.split()) > _WORDS_OF_A_NAME):
            return False
    return True


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


class _Lines(Iterator[str]):
    """The lines that `csv.reader` asks for; `record` are those since its last row, from `first`."""

    def __init__(self, part: Part, form: TextForm):
        self.where, self.lines, self.number = part.where, lines(part, form), 0
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
        if isinstance(line, LongLine) and not self.record and line.quotes % 2 == 0:
            raise line
        self.size += 0 if isinstance(line, Defect) else len(line) + 1
        if isinstance(line, Defect) or (self.record and self.size > limits.MAX_BYTES):
            first = self.number - len(self.record)
            raise InputError(
                f"{self.where}:{first}: not csv: the quote that is open at the end of the line is "
                f"not closed within {limits.MAX_BYTES:,} bytes, the most that a record may have. "
                f"{_QUOTES}"
            )
        self.record.append(decode(line) + "\n")
        return self.record[-1]


_QUOTES = (
    "A field that holds a separator, a quote or a line break stands in quotes, and a quote inside "
    'it is written twice: "".'
)


def read(part: Part, form: TextForm, found: Dialect) -> Iterator[RawRow]:
    """The rows; raises InputError where a quote is out of place."""
    source = _Lines(part, form)
    for _ in range(found.skipped):
        next(source, None)
    is_header, header, width = found.has_header, found.header, len(found.header)
    may_be_spaced = found.quotes == "doubled" and not found.skips_space
    default_limit = csv.field_size_limit((1 << 31) - 1)  # the size of records is checked by lines
    try:
        reader = csv.reader(source, **found.arguments)
        while True:
            source.begin()
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise _misplaced_quote(source, str(error)) from error
            except Defect as defect:
                yield RawRow(f"{part.where}:{source.number}", defect)
                continue
            if values is None:
                return
            if is_header:
                is_header = False
                continue
            where = f"{part.where}:{source.first}"
            may_open = may_be_spaced and any(' "' in line for line in source.record)
            if may_open and any(value[:1] == " " and _opens(value) for value in values):
                raise _misplaced_quote(source, "a space before a quote, which opens no field so")
            if not values:
                continue
            if len(values) > width and not any(values[width:]):
                values = values[:width]  # as spreadsheets write empty columns
            if len(values) == width:
                fields = dict(zip(header, values, strict=True))
            else:
                reason = f"{len(values)} fields; the header has {width}"
                held = "comma" if found.separator == "," else f"{NAMES.get(found.separator)}"
                fields = Defect("", f"{reason}. Quote fields that hold a {held}.")
            if len(source.record) == 1:
                yield RawRow(where, fields)
            else:
                inside = _rows_inside(source.record, header, found.separator)
                yield RawRow(where, fields, len(source.record), inside)
    finally:
        csv.field_size_limit(default_limit)


def _misplaced_quote(source: _Lines, reason: str) -> InputError:
    """What to say where csv cannot be read on."""
    text = "".join(source.record)
    if "new-line" in reason:
        reason = "a carriage return that ends no line; lines end in LF or CRLF"
    elif "end of data" in reason:
        reason = f"a quote is not closed until the file ends, in line {source.number}"
    elif len(source.record) > 1:
        reason += f" in line {source.number}"
    escaped = ' It is not written \\" as here: set data.quotes=backslash.' if '\\"' in text else ""
    return InputError(
        f"{source.where}:{source.first}: not csv: {reason}. {_QUOTES}{escaped} Where the next "
        "record begins cannot be told, so that none can be skipped. Where quotes stand for "
        "themselves, set data.quotes=none"
    )


def _opens(value: str) -> bool:
    """Whether a value begins with a quote, after spaces, that nothing closes."""
    return value.lstrip().startswith('"') and value.count('"') % 2 == 1


def _rows_inside(
    record: Sequence[str], header: Sequence[str], separator: str
) -> list[dict[str, str]]:
    """See `RawRow.inside`; of a single column nothing can be told."""
    if len(header) == 1:
        return []
    whole = (line for line in record if line.count(separator) == len(header) - 1)
    rows = (line.rstrip("\r\n").replace('"', "").split(separator) for line in whole)
    return [dict(zip(header, row, strict=True)) for row in rows]
