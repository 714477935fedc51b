"""Sheets of a spreadsheet (.xlsx), by openpyxl, a row at a time."""

import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from jaxclf.core.errors import InputError
from jaxclf.data.formats.limits import Expansion
from jaxclf.data.formats.parts import Part
from jaxclf.data.formats.rows import RawRow, show


def header(part: Part, sheet: str) -> tuple[list[str], str]:
    """The columns' names, from the first row that is not empty, and what was chosen, in words.

    sheet: its name; "": the first with rows. Raises InputError where there is none.
    """
    names, said = [], ""
    with part.opening() as opened:
        book = _book(part, opened)
        if sheet and sheet not in book.sheetnames:
            listed = ", ".join(map(show, book.sheetnames))
            raise InputError(f"{part.where}: has no sheet {sheet!r}. Set data.sheet to {listed}")
        chosen = sheet or next((name for name in book.sheetnames if _has_rows(book[name])), "")
        if chosen:
            names = next(_rows(book[chosen]))[1]
            if not sheet and len(book.sheetnames) > 1:
                said = f"sheet {show(chosen)} of {len(book.sheetnames)} (data.sheet)"
    return ["" if name is None else str(name).strip() for name in names], said


def read(part: Part, sheet: str, names: Sequence[str]) -> Iterator[RawRow]:
    """The rows below the header."""
    with part.opening() as opened:
        book = _book(part, opened)
        chosen = sheet or next((name for name in book.sheetnames if _has_rows(book[name])), "")
        if not chosen:
            return
        rows = _rows(book[chosen])
        next(rows, None)
        for number, values in rows:
            yield RawRow(f"{part.where}:{number}", dict(zip(names, values, strict=False)))


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Number and values of each row with a value; a date is its text."""
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        if any(value is not None for value in row):
            yield number, [_plain(value) for value in row]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _has_rows(sheet: Any) -> bool:
    return hasattr(sheet, "iter_rows") and next(_rows(sheet), None) is not None


def _book(part: Part, opened: Any) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            f"{part.where}: reading spreadsheets needs openpyxl: pip install 'jaxclf[xlsx]'. Or "
            "save the sheet as csv"
        ) from None
    expansion = Expansion(part.where, part.stored)
    try:
        with zipfile.ZipFile(opened) as archive:
            expansion.check(sum(info.file_size for info in archive.infolist()))
        opened.seek(0)
        return openpyxl.load_workbook(opened, read_only=True, data_only=True)
    except InputError:
        raise
    except Exception as error:  # of a damaged file, whatever a parser of XML ran into
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{part.where}: not a readable xlsx file: {reason}. Save it again, or as csv"
        ) from error
