"""A raw row, what may be wrong with one, and how an error message quotes a value."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Defect(ValueError):  # noqa: N818 - a finding; a row may hold one as its value
    """Why one record cannot be used, and the field concerned; "" where it is the whole record."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)


@dataclass(frozen=True, slots=True)
class RawRow:
    """The raw fields of one record and where they stand (`file:line`), or what is wrong there.

    lines: how many it goes over. inside: those of them that would be a row by themselves, read as
    one; where they are most of a csv record, the quote that holds them together may be a mistake.
    """

    where: str
    fields: Mapping[str, Any] | Defect
    lines: int = 1
    inside: Sequence[Mapping[str, str]] = ()


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
