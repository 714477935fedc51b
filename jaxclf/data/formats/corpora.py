"""Text files of tools: fastText's lines, CoNLL's columns, and files that are one text each."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from jaxclf.data.formats import limits
from jaxclf.data.formats.limits import too_large
from jaxclf.data.formats.lines import TextForm, decode, lines, open_text
from jaxclf.data.formats.parts import Part
from jaxclf.data.formats.rows import Defect, RawRow

_PREFIX = "__label__"
_TAG = re.compile(r"O|([BIESLUM])-\S+")
_SAMPLE = 200
PLAIN, FASTTEXT, CONLL, DELIMITED = "txt", "fasttext", "conll", "csv"


def kind(part: Part, form: TextForm) -> str:
    """What the lines of a text file are: PLAIN, FASTTEXT, CONLL, or DELIMITED by tabs."""
    found = islice(lines(part, form), _SAMPLE)
    sample = [decode(line) for _, line in found if isinstance(line, bytes)]
    filled = [line for line in sample if line.strip()]
    if filled and all(line.startswith(_PREFIX) for line in filled):
        return FASTTEXT
    words = [line.split() for line in filled if not _is_passed_over(line)]
    if words and all(len(row) > 1 and _TAG.fullmatch(row[-1]) for row in words):
        return CONLL
    tabs = {line.count("\t") for line in filled}
    if len(filled) > 1 and len(tabs) == 1 and tabs != {0}:
        return DELIMITED
    return PLAIN


def read_lines(part: Part, form: TextForm, column: str) -> Iterator[RawRow]:
    """A text a line."""
    for number, line in lines(part, form):
        fields = line if isinstance(line, Defect) else {column: decode(line)}
        yield RawRow(f"{part.where}:{number}", fields)


def read_fasttext(part: Part, form: TextForm) -> Iterator[RawRow]:
    """`__label__spam __label__ad win a prize` → text "win a prize", label a list of both.

    Source: https://fasttext.cc/docs/en/supervised-tutorial.html
    """
    for number, line in lines(part, form):
        where = f"{part.where}:{number}"
        if isinstance(line, Defect):
            yield RawRow(where, line)
            continue
        rest, labels = decode(line).strip(), []
        while rest.startswith(_PREFIX):
            label, _, rest = rest.partition(" ")
            labels.append(label.removeprefix(_PREFIX).strip())
            rest = rest.lstrip()
        if rest or labels:
            yield RawRow(where, {"text": rest, "label": labels})


def read_conll(part: Part, form: TextForm) -> Iterator[RawRow]:
    """A word a line, its tag in the last column, a blank line between texts.

    Source: Tjong Kim Sang & De Meulder 2003; lines `-DOCSTART-` and comments (`# …`) are none.
    """
    words: list[str] = []
    tags: list[str] = []
    first = size = number = 0
    defect: Defect | None = None

    def row() -> RawRow:
        fields = {"text": list(words), "slots": list(tags)}
        return RawRow(f"{part.where}:{first}", defect or fields, max(1, number - first))

    for number, line in lines(part, form):
        text = "" if isinstance(line, Defect) else decode(line).strip()
        if not text and not isinstance(line, Defect):
            if words or defect:
                yield row()
            words, tags, defect, size = [], [], None, 0
            continue
        if not isinstance(line, Defect) and _is_passed_over(text) and not words:
            continue
        first = first if words or defect else number
        columns = text.split()
        size += len(text)
        if isinstance(line, Defect):
            defect = line
        elif len(columns) < 2:
            defect = defect or Defect("", f"line {number:,} has a word without a tag")
        elif size > limits.MAX_BYTES:
            defect = defect or Defect("", too_large(size))
            words, tags = [], []
        else:
            words.append(columns[0])
            tags.append(columns[-1])
    if words or defect:
        number += 1
        yield row()


def _is_passed_over(line: str) -> bool:
    """Comments of CoNLL-U, which have no tag, and CoNLL 2003's marks between documents."""
    if line.startswith("-DOCSTART-"):
        return True
    return line.startswith("# ") and _TAG.fullmatch(line.split()[-1]) is None


def read_documents(
    parts: Iterable[Part], forms: Iterable[TextForm], column: str
) -> Iterator[RawRow]:
    """A text a file, with the fields of the folders around it; its "line" is 1."""
    for part, form in zip(parts, forms, strict=True):
        with open_text(part, form) as file:
            content = file.read(limits.MAX_BYTES + 1)
        if len(content) > limits.MAX_BYTES:
            fields = Defect("", too_large(len(content)))
        else:
            fields = {column: decode(content).strip(), **part.fields}
        yield RawRow(f"{part.where}:1", fields)
