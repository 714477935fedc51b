"""The names that a mistyped one is most like."""

import difflib
from collections.abc import Iterable


def nearest_names(name: str, possible: Iterable[str], count: int, cutoff: float = 0.6) -> list[str]:
    """At most `count` of the possible names, the most similar first.

    `cutoff`: the least similarity, from 0 (any name) to 1 (the name itself).
    """
    return difflib.get_close_matches(name, list(possible), n=count, cutoff=cutoff)


def nearest(name: str, possible: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of the possible names, or None if none is similar."""
    return next(iter(nearest_names(name, possible, 1, cutoff)), None)


def did_you_mean(name: str, possible: Iterable[str], cutoff: float = 0.6) -> str:
    """Ends a sentence: `. Did you mean 'x'?`, or nothing if no possible name is similar."""
    near = nearest(name, possible, cutoff)
    return f". Did you mean {near!r}?" if near else ""
