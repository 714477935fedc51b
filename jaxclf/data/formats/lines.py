"""The lines of a text file, whatever its encoding and line ends, as bytes of UTF-8.

An encoding is that of a byte order mark; else UTF-8, if most lines that are not ASCII are UTF-8;
else what charset-normalizer makes of these lines. What is not UTF-8 is guessed, and so is said.
"""

import codecs
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from jaxclf.core.errors import InputError
from jaxclf.data.formats import limits
from jaxclf.data.formats.limits import Expansion, too_large
from jaxclf.data.formats.parts import Part
from jaxclf.data.formats.rows import Defect

UTF8 = "utf-8"
_MARKS = (  # the longer ones first: that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_LINES, _SAMPLE_BYTES = 2000, 1 << 18  # that are not ASCII, for the guess
_HEAD = 1 << 16  # bytes that tell the form
_HIGH = bytes(range(0x80, 0x100))
_CANDIDATES = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("iso8859_2", "iso8859_5", "iso8859_7", "koi8_r", "koi8_u", "mac_roman"),
    *("cp932", "shift_jis", "euc_jp", "gb18030", "big5", "cp949", "euc_kr", "cp874"),
]


@dataclass(frozen=True)
class TextForm:
    """encoding: as Python names it. ends_in_cr: lines end in a carriage return alone. said: what of
    this was guessed, in words; "": nothing."""

    encoding: str = UTF8
    ends_in_cr: bool = False
    said: str = ""


def text_form(part: Part, given: str = "", guess: bool = True) -> TextForm:
    """The form of a file. given: its encoding, where it is set. guess: whether a legacy encoding
    may be guessed; else the file is UTF-8 or has a byte order mark.

    Raises InputError for an encoding that does not exist.
    """
    if given:
        try:
            codecs.lookup(given)
        except LookupError:
            raise InputError(
                f"data.encoding is {given!r}; expected a name that Python knows, such as utf-8, "
                "cp1252, utf-16 or gb18030"
            ) from None
    with part.opening() as file:
        head = file.read(_HEAD)
    encoding, said = given.lower().replace("_", "-"), ""
    mark = next((name for start, name in _MARKS if head.startswith(start)), "")
    if mark and not (given and encoding not in (UTF8, "utf8")):
        encoding, said = mark, "" if mark == "utf-8-sig" else f"encoding {mark} (byte order mark)"
    elif not given and (found := _by_zeros(head)):
        encoding, said = found, f"encoding {found}"
    elif not given:
        encoding = UTF8
        if guess:
            encoding, said = _guessed(part)
    ends_in_cr = False
    start = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    if "\r" in start and "\n" not in start:
        ends_in_cr, said = True, ", ".join(filter(None, [said, "lines end in CR"]))
    return TextForm(encoding, ends_in_cr, said)


def _by_zeros(head: bytes) -> str:
    """UTF-16 without a mark: of most text in it every second byte is zero."""
    head = head[:1000]
    if len(head) < 4 or head.count(0) < 0.3 * len(head) or b"\0\0" in head:
        return ""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even > 10 * odd:
        return "utf-16-be"
    return "utf-16-le" if odd > 10 * even else ""


def _guessed(part: Part) -> tuple[str, str]:
    """The encoding, and what to say of it. The whole file is looked at, at a gigabyte a second."""
    bad: list[bytes] = []
    size = good = 0
    for block in _blocks(part):
        if _is_utf8(block):
            good += not block.isascii()
            continue
        for line in block.splitlines():
            if _is_utf8(line):
                good += not line.isascii()
            elif len(bad) < _SAMPLE_LINES and size < _SAMPLE_BYTES:
                bad.append(line)
                size += len(line)
    if not bad or good >= len(bad):
        return UTF8, ""  # a bad byte among good ones is a defect of its record
    return _legacy(b"\n".join(bad))


def _blocks(part: Part) -> Iterator[bytes]:
    """The file's bytes, none of them ending inside a character of UTF-8, up to its limit."""
    rest, read, limit = b"", 0, Expansion(part.where, part.stored).limit
    with part.opening() as file:
        while (chunk := file.read(limits.MAX_BYTES >> 2)) and read < limit:
            read += len(chunk)
            whole = (rest + chunk).rstrip(_HIGH)
            rest = (rest + chunk)[len(whole) :]
            if len(rest) > 4:
                whole, rest = whole + rest, b""
            yield whole
    yield rest


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _legacy(sample: bytes) -> tuple[str, str]:
    """What charset-normalizer finds likeliest, but what is the same text in cp1252, which Windows
    writes in the West, and kana are Japanese. Where it finds nothing: UTF-8, with defects."""
    from charset_normalizer import from_bytes

    found = [each.encoding for each in from_bytes(sample, cp_isolation=_CANDIDATES, threshold=0.3)]
    if not found:
        return UTF8, ""
    texts = {name: text for name in found if (text := _decoded(sample, name)) is not None}
    western = _decoded(sample, "cp1252")
    chosen = found[0]
    if western is not None and ("cp1252" in found or western == texts.get(chosen)):
        chosen = "cp1252"
    japanese = [name for name in ("cp932", "euc_jp") if _has_kana(texts.get(name, ""))]
    chosen = japanese[0] if japanese else chosen
    return chosen, f"encoding {chosen} (the file is not UTF-8)"


def _decoded(sample: bytes, encoding: str) -> str | None:
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError:
        return None


def _has_kana(text: str) -> bool:
    kana = sum("\u3041" <= letter <= "\u30ff" for letter in text)
    return kana > 0.3 * sum(not letter.isascii() for letter in text)


class _Recoded(io.RawIOBase):
    """A file in another encoding as UTF-8, in which lines end in LF."""

    def __init__(self, file: io.BufferedIOBase, form: TextForm, where: str):
        self.file, self.form, self.where = file, form, where
        errors = "strict" if form.encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        self.decoder = codecs.getincrementaldecoder(form.encoding)(errors)
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            chunk = self.file.read(limits.MAX_BYTES >> 5)
            try:
                text = self.decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.where}: not {self.form.encoding}: {error.reason}. Set data.encoding"
                ) from error
            if self.form.ends_in_cr:
                text = text.replace("\r", "\n")
            self.rest = text.encode("utf-8", "surrogateescape")
            if not chunk:
                break
        size = min(len(self.rest), len(buffer))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


def open_text(part: Part, form: TextForm) -> io.BufferedIOBase:
    """The file as UTF-8 without a byte order mark, its lines ending in LF."""
    file = part.opening()
    if form.encoding in (UTF8, "utf8") and not form.ends_in_cr:
        return file
    if form.encoding == "utf-8-sig" and not form.ends_in_cr:
        file.read(len(codecs.BOM_UTF8))
        return file
    return io.BufferedReader(cast(io.RawIOBase, _Recoded(file, form, part.where)))


class LongLine(Defect):
    """A line of more than `MAX_BYTES`, which is not held; `quotes`: how many are in it."""

    def __init__(self, size: int, quotes: int):
        super().__init__("", too_large(size))
        self.quotes = quotes


def lines(part: Part, form: TextForm) -> Iterator[tuple[int, bytes | LongLine]]:
    """Number and content of every line, without its end."""
    expansion = Expansion(part.where, part.stored) if part.is_compressed else None
    most = limits.MAX_BYTES + 2
    with open_text(part, form) as file:
        for number in itertools.count(1):
            line = file.readline(most)
            size, quotes = len(line), 0
            if not size:
                return
            if size == most and not line.endswith(b"\n"):
                quotes = line.count(b'"')
                while not line.endswith(b"\n") and (rest := file.readline(limits.MAX_BYTES)):
                    line, size, quotes = rest, size + len(rest), quotes + rest.count(b'"')
                    if size > limits.MAX_LINE:
                        raise InputError(
                            f"{part.where}:{number}: no line end in {limits.MAX_LINE:,} bytes. "
                            "Write one record a line"
                        )
            if expansion is not None:
                expansion.add(max(size, limits.ROW_BYTES))
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            yield number, line if size <= most else LongLine(size, quotes)


def decode(line: bytes) -> str:
    """Bad bytes become half surrogates (U+DC80 to U+DCFF), reported with their field later."""
    return line.decode(errors="surrogateescape")
