"""The ways a file may write a text's slots → one BIO tag per word.

- annotated text, as MASSIVE has it: `wake me up at [time : five am]`; what is left without the
  brackets must be the words of the text;
- a list with one tag per word, plain `["Other", "time", "time"]` or BIO
  `["O", "B-time", "I-time"]`, as a list or as the text of a JSON list (for csv).

All give `("O", "B-time", "I-time")`. In a plain list consecutive equal names are one span. In a
BIO list an I- tag that continues nothing opens a span, as in conlleval.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from jaxclf.data.tasks import OTHER, bio_slots, words

NONE = frozenset({"O", OTHER})  # either stands for no slot
_ANNOTATION = re.compile(r"\[([^\[\]:]*):([^\[\]]*)\]")
_WORD = re.compile(r"\S+")


def slot_tags(slots: object, text: str) -> tuple[str, ...]:
    """The BIO tags of the words of `text`. Raises ValueError saying what does not fit."""
    count = len(words(text))
    if isinstance(slots, str):
        annotated_words, tags = annotated(slots)
        if annotated_words == words(text):
            return tags
        given = _json_list(slots)
        if given is None:
            raise ValueError(_difference(annotated_words, words(text)))
        slots = given
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


def _list_tags(given: Sequence[str]) -> tuple[str, ...]:
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


def _json_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _difference(found: list[str], expected: list[str]) -> str:
    for number, (word, other) in enumerate(zip(found, expected, strict=False), 1):
        if word != other:
            return f"word {number} is {word[:40]!r}; the text has {other[:40]!r}"
    return f"{len(found)} words; the text has {len(expected)}"
