"""What the value of a field may be: in words, for errors and the reference, and as a test."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """Completes `expected …` in words, tests a value, and lists the choices if there are few."""

    expected: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


LARGEST = 2**31 - 1  # what JAX's counters of 32 bits hold, such as an optimizer's of its steps


def whole(minimum: int, maximum: int = LARGEST) -> Rule:
    """A whole number; where no maximum is given, one that JAX can count to."""
    words = f"a whole number of at least {minimum:,}"
    if maximum != LARGEST:
        words = f"a whole number from {minimum:,} to {maximum:,}"
    return Rule(words, lambda value: type(value) is int and minimum <= value <= maximum)


def real(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number in [low, high), or in (low, high) if `above`."""
    words = f"a number {'above' if above else 'of at least'} {low:g}"
    words += f" and below {high:g}" if high < math.inf else ""
    return Rule(
        words,
        lambda value: (
            type(value) in (int, float)
            and (low < value if above else low <= value)
            and value < high
        ),
    )


def matching(expected: str, pattern: str) -> Rule:
    """Text that a regular expression matches from end to end."""
    return Rule(
        expected, lambda value: type(value) is str and re.fullmatch(pattern, value) is not None
    )


def or_value(special: float, meaning: str, rule: Rule) -> Rule:
    """Also one value outside of the rule, which stands for something else."""
    return Rule(
        f"{special:g} ({meaning}) or {rule.expected}",
        lambda value: (type(value) in (int, float) and value == special) or rule.holds(value),
    )


def tuple_of(expected: str, item: Callable[[Any], bool]) -> Rule:
    return Rule(expected, lambda values: type(values) is tuple and all(map(item, values)))


def pairs(expected: str, second: Rule) -> Rule:
    """A tuple of pairs of a text and what `second` says."""
    return tuple_of(
        expected,
        lambda pair: (
            type(pair) is tuple
            and len(pair) == 2
            and type(pair[0]) is str
            and second.holds(pair[1])
        ),
    )


def patterns(expected: str) -> Rule:
    """Regular expressions, separated by commas; may be empty."""
    return Rule(
        expected, lambda value: type(value) is str and all(map(is_pattern, value.split(",")))
    )


def is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


share = Rule("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
boolean = Rule("true or false", lambda value: type(value) is bool)
text = Rule("text", lambda value: type(value) is str)
nonempty = Rule("text that is not empty", lambda value: type(value) is str and value != "")
file = Rule("the path of a file, or nothing", text.holds)
folder = Rule("the path of a folder, or nothing", text.holds)
column = Rule("the name of a column, or nothing", text.holds)
