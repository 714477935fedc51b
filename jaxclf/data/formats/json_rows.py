"""JSON: an object a line, or an array of objects, or an object of columns as pandas writes it."""

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from jaxclf.core.errors import InputError
from jaxclf.data.formats import limits
from jaxclf.data.formats.limits import Expansion, too_large
from jaxclf.data.formats.lines import TextForm, lines, open_text
from jaxclf.data.formats.parts import Part
from jaxclf.data.formats.rows import Defect, RawRow, kind_of, show

BYTE_ORDER_MARK = "starts with a byte order mark. Save the file as UTF-8 without one."
_CHUNK = 1 << 16
_SPACE = " \t\r\n"


def is_array(part: Part, form: TextForm) -> bool:
    """Whether the file is one JSON value that goes over lines, or an array, and not one a line."""
    with open_text(part, form) as file:
        head = file.read(_CHUNK).lstrip()
    if head.startswith(b"["):
        first, _, rest = head.partition(b"\n")
        return not (rest.strip() and _is_whole(first))
    line = head.partition(b"\n")[0]
    if not head.startswith(b"{") or part.ending == ".jsonl":
        return False
    return not _is_whole(line) or not head.partition(b"\n")[2].strip()


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_lines(part: Part, form: TextForm) -> Iterator[RawRow]:
    """An object a line; blank lines are passed over."""
    for number, line in lines(part, form):
        where = f"{part.where}:{number}"
        if isinstance(line, Defect):
            yield RawRow(where, line)
        elif line and not line.isspace():
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
        remedy = "Save the file as UTF-8, or set data.encoding."
        raise Defect("", f"{reason}. {remedy}") from None
    except json.JSONDecodeError as error:
        raise Defect("", f"not JSON: {error.msg} at character {error.pos}") from None
    except Defect:
        raise
    except ValueError:
        # Python refuses to convert very long digit strings, by default above 4,300 digits.
        raise Defect("", "a number has too many digits. Put it in quotes.") from None
    except RecursionError:
        raise Defect("", "lists or objects are nested too deeply") from None
    return _object(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Defect("", f'expected an object such as {{"text": …}}, found {kind_of(value)}')
    return cast(dict[str, Any], value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Defect("", f"{show(twice)} stands twice in an object. Leave one out.")
    return found


def read_array(part: Part, form: TextForm) -> Iterator[RawRow]:
    """The objects of an array, one held at a time, numbered from 1 as lines are.

    An object of columns, or one that holds the array in one of its fields, is read as a whole; it
    may have as many bytes as a file may become when decompressed.
    """
    items = _Items(part, form)
    if items.first() == "[":
        yield from items.rows()
        return
    value = items.whole()
    columns = list(value.values())
    held = [each for each in columns if isinstance(each, list)]
    if columns and all(isinstance(each, Mapping) for each in columns):  # {"text": {"0": …}}
        keys = dict.fromkeys(key for column in columns for key in cast(dict[str, Any], column))
        rows = [{name: column.get(key) for name, column in value.items()} for key in keys]
    elif columns and len(held) == len(columns) and len({len(each) for each in held}) == 1:
        rows = [dict(zip(value, row, strict=True)) for row in zip(*held, strict=True)]
    elif len(held) == 1:  # {"version": 1, "data": [{…}, {…}]}
        rows = held[0]
    else:
        rows = [value]
    for number, row in enumerate(rows, 1):
        try:
            yield RawRow(f"{part.where}:{number}", _object(row))
        except Defect as defect:
            yield RawRow(f"{part.where}:{number}", defect)


class _Items:
    """A JSON text that is read on as its items are asked for."""

    def __init__(self, part: Part, form: TextForm):
        self.part, self.file = part, open_text(part, form)
        self.utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self.json = json.JSONDecoder(object_pairs_hook=_distinct)
        self.expansion = Expansion(part.where, part.stored)
        self.text, self.place, self.is_at_end = "", 0, False

    def _more(self) -> bool:
        chunk = self.file.read(max(_CHUNK, len(self.text) - self.place))
        self.expansion.add(len(chunk))
        try:
            decoded = self.utf8.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.part.where}: not UTF-8 ({error.reason}). Save the file as UTF-8, or set "
                "data.encoding"
            ) from None
        self.text, self.place = self.text[self.place :] + decoded, 0
        self.is_at_end = not chunk
        return bool(chunk)

    def first(self) -> str:
        """The next character that is no space, which stays; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.is_at_end or not self._more():
                return ""

    def rows(self) -> Iterator[RawRow]:
        self.place += 1
        number = 0
        while (letter := self.first()) and letter != "]":
            if letter == ",":
                self.place += 1
                continue
            number += 1
            where = f"{self.part.where}:{number}"
            try:
                yield RawRow(where, _object(self._item(number)))
            except Defect as defect:
                yield RawRow(where, defect)
        if not letter:
            raise self._broken(number, "the array is not closed")

    def _item(self, number: int) -> Any:
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.place)
            except Defect:
                raise self._broken(number, "a name stands twice in an object") from None
            except RecursionError:
                raise self._broken(number, "lists or objects are nested too deeply") from None
            except ValueError as error:
                if len(self.text) - self.place > limits.MAX_BYTES:
                    raise self._broken(number, too_large(len(self.text) - self.place)) from None
                if self.is_at_end or not self._more():
                    raise self._broken(number, f"not JSON: {error}") from None
                continue
            # A number may go on in the next chunk; an object may not.
            self.place = end
            return value

    def whole(self) -> dict[str, Any]:
        while self._more():
            pass
        try:
            return _object(self.json.decode(self.text))
        except (ValueError, RecursionError) as error:
            raise self._broken(0, f"not JSON: {str(error) or 'nested too deeply'}") from None

    def _broken(self, number: int, reason: str) -> InputError:
        place = f", in element {number:,} of the array" if number else ""
        return InputError(
            f"{self.part.where}{place}: {reason}. Where the next record begins cannot be told, so "
            "that none can be skipped"
        )
