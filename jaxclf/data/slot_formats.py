"""The ways a file may write a text's slots → one BIO tag per word.

- annotated text, as MASSIVE has it: `wake me up at [time : five am]`; what is left without the
  brackets must be the words of the text;
- a list with one tag per word, plain `["Other", "time", "time"]` or BIO
  `["O", "B-time", "I-time"]`, also with E- or L- for the last word of a span and S- or U- for a
  span of one, as a list or as the text of a JSON or Python list (for csv);
- a list of numbers of such tags, where their names are given;
- a list of spans in characters of the text, `[[11, 18, "time"]]`, as doccano exports them.

All give `("O", "B-time", "I-time")`. In a plain list consecutive equal names are one span. In a
BIO list an I- tag that continues nothing opens a span, as in conlleval. A word of which a span
holds a part belongs to the span.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxclf.data.tasks import OTHER, bio_slots, words

NONE = frozenset({"O", OTHER})  # either stands for no slot
_ANNOTATION = re.compile(r"\[([^\[\]:]*):([^\[\]]*)\]")
_WORD = re.compile(r"\S+")
_LIST = re.compile(r"\s*[\[(].*[\])]\s*", re.DOTALL)


def slot_tags(
    slots: object, text: str, names: Sequence[str] = (), spans: bool = False
) -> tuple[str, ...]:
    """The BIO tags of the words of `text`; `names` are those of numbers. spans: an empty list is
    one of spans, not of tags.

    Raises ValueError saying what does not fit.
    """
    count = len(words(text))
    if isinstance(slots, str):
        annotated_words, tags = annotated(slots)
        if annotated_words == words(text):
            return tags
        given = as_list(slots)
        if given is None:
            raise ValueError(_difference(annotated_words, words(text)))
        slots = given
    if isinstance(slots, list | tuple) and slots and all(map(is_span, slots)):
        return _of_spans(slots, text)
    if isinstance(slots, list | tuple) and slots and all(type(tag) is int for tag in slots):
        slots = [_named(cast(int, tag), names) for tag in slots]
    if spans and slots == []:
        return ("O",) * count
    if not isinstance(slots, list | tuple) or not all(isinstance(tag, str) for tag in slots):
        raise ValueError("expected annotated text or a list with one tag (text) per word")
    if len(slots) != count:
        raise ValueError(f"{len(slots)} tags for the {count} words of the text")
    return _list_tags(slots)


def annotated(text: str) -> tuple[list[str], tuple[str, ...]]:
    """`"at [time : five am]" → (["at", "five", "am"], ("O", "B-time", "I-time"))`.

    Where a bracket begins or ends inside a word, the whole word belongs to the first slot that
    has a character of it; a slot left without a word of its own is dropped. (No record of MASSIVE
    en-US needs this.)
    """
    plain = ""
    spans: list[tuple[int, int, str]] = []  # characters of `plain` [begin, end) and slot name
    end = 0
    for match in _ANNOTATION.finditer(text):
        name, value = (part.strip() for part in match.groups())
        plain += text[end : match.start()]
        if value:
            spans.append((len(plain), len(plain) + len(value), _checked(name)))
        plain += value
        end = match.end()
    plain += text[end:]

    tags = []
    previous = None
    first = 0  # the first span that does not end before the word
    for word in _WORD.finditer(plain):
        while first < len(spans) and spans[first][1] <= word.start():
            first += 1
        span = spans[first] if first < len(spans) and spans[first][0] < word.end() else None
        tags.append("O" if span is None else f"{'I' if span is previous else 'B'}-{span[2]}")
        previous = span
    return words(plain), tuple(tags)


def is_span(value: object) -> bool:
    """Whether a value is `[begin, end, name]`, or an object that says as much."""
    if isinstance(value, Mapping):
        return {"start", "end"} <= {*value} or {"start_offset", "end_offset"} <= {*value}
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(place) is int for place in value[:2])
        and isinstance(value[2], str)
    )


def _span(value: Any) -> tuple[int, int, str]:
    if isinstance(value, Mapping):
        begin = value.get("start", value.get("start_offset"))
        end = value.get("end", value.get("end_offset"))
        name = value.get("label", value.get("tag", value.get("entity_group")))
        if isinstance(name, list) and len(name) == 1:
            (name,) = name
        value = (begin, end, name)
    begin, end, name = value
    if type(begin) is not int or type(end) is not int or not isinstance(name, str):
        raise ValueError("a span needs its begin and end in characters and the name of its slot")
    return begin, end, _checked(name)


def _of_spans(slots: Sequence[object], text: str) -> tuple[str, ...]:
    """Raises ValueError for spans outside the text, that overlap, or that hold no word."""
    spans = sorted(map(_span, slots))
    tags: list[str] = []
    opened: int | None = None
    used: set[int] = set()
    for number, (begin, end, _) in enumerate(spans):
        if not 0 <= begin < end <= len(text):
            raise ValueError(f"the span {begin}:{end} is not in the {len(text)} characters of text")
        if number and begin < spans[number - 1][1]:
            raise ValueError(f"the spans {spans[number - 1][:2]} and {(begin, end)} overlap")
    first = 0
    for word in _WORD.finditer(text):
        while first < len(spans) and spans[first][1] <= word.start():
            first += 1
        if first == len(spans) or spans[first][0] >= word.end():
            tags.append("O")
            continue
        tags.append(f"{'I' if opened == first else 'B'}-{spans[first][2]}")
        opened = first
        used.add(first)
    if lost := [span for number, span in enumerate(spans) if number not in used]:
        raise ValueError(f"the span {lost[0][0]}:{lost[0][1]} shares its only word with another")
    return tuple(tags)


def _named(number: int, names: Sequence[str]) -> str:
    if not names:
        raise ValueError(
            "the tags are numbers; name them in a file, one a line or as a JSON list: "
            "data.label_names"
        )
    if not 0 <= number < len(names):
        raise ValueError(
            f"{number} is not the number of one of the {len(names)} tags that are named"
        )
    return names[number]


def _in_bio(given: Sequence[str]) -> Sequence[str]:
    """BIOES and BILOU tags as BIO; what is none of them is left as it is.

    `E-mail` is a name where no span goes before it.
    """
    if not any(tag.startswith(("E-", "L-", "M-", "S-", "U-")) for tag in given):
        return given
    tags: list[str] = []
    previous = ""
    for tag in given:
        prefix, dash, name = tag.partition("-")
        if not dash or tag in NONE:
            tags.append(tag)
            previous = ""
            if tag not in NONE:
                return given
        elif prefix in ("S", "U", "B"):
            tags.append(f"B-{name}")
            previous = name if prefix == "B" else ""
        elif prefix == "I" or (prefix in ("E", "L", "M") and name == previous):
            tags.append(f"I-{name}")
            previous = "" if prefix in ("E", "L") else name
        else:
            return given
    return tags


def _list_tags(given: Sequence[str]) -> tuple[str, ...]:
    given = _in_bio(given)
    named = [tag for tag in given if tag not in NONE]
    in_bio = [tag.startswith(("B-", "I-")) for tag in named]
    if not all(in_bio):
        if any(in_bio):
            raise ValueError(f"both BIO tags ({named[in_bio.index(True)][:40]!r}) and plain names")
        return bio_slots([OTHER if tag in NONE else _checked(tag) for tag in given])
    tags = []
    previous = ""
    for tag in given:
        name = "" if tag in NONE else _checked(tag[2:])
        tags.append(f"{'I' if name == previous and tag[0] == 'I' else 'B'}-{name}" if name else "O")
        previous = name
    return tuple(tags)


def _checked(name: str) -> str:
    if not name or name != name.strip() or name in NONE:
        raise ValueError(f"{name[:40]!r} cannot name a slot")
    return name


def as_list(text: str) -> list[Any] | None:
    """The list whose JSON or Python text this is, as pandas writes lists to csv; None: of none."""
    if not _LIST.fullmatch(text):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | tuple):
            return list(value)
    return None


def _difference(found: list[str], expected: list[str]) -> str:
    for number, (word, other) in enumerate(zip(found, expected, strict=False), 1):
        if word != other:
            return f"word {number} is {word[:40]!r}; the text has {other[:40]!r}"
    return f"{len(found)} words; the text has {len(expected)}"
