"""Whether two configs are of one run: which of the fields they differ in `schema` lets them."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxclf.config.schema import FIELDS, leaves

Changes = dict[str, tuple[Any, Any]]
"""Values before and now by field; None where a config does not have it."""

_LENGTH = ("train.steps", "train.epochs")


def changes(before: ConfigDict, now: ConfigDict) -> Changes:
    """What moves a figure, so that the run of one config has no report for the other."""
    # Where epochs are counted, a run's report has the steps that it found these to be.
    counted = {"train.steps"} if now.train.epochs else set()
    return {
        name: values
        for name, values in _differences(before, now)
        if name not in counted and not _affects(name, "nothing")
    }


def changes_of_steps(before: ConfigDict, now: ConfigDict) -> Changes:
    """What alters steps already taken, so that one config cannot continue the run of the other."""
    # The learning rate of each step depends on their number, unless it is constant.
    fixed = _LENGTH if now.train.schedule != "constant" else ()
    return {
        name: values
        for name, values in _differences(before, now)
        if name in fixed or not _affects(name, "nothing", "report")
    }


def _affects(name: str, *what: str) -> bool:
    """A field that is not ours may affect everything."""
    return name in FIELDS and FIELDS[name].affects in what


def _differences(before: ConfigDict, now: ConfigDict) -> Iterator[tuple[str, tuple[Any, Any]]]:
    old, new = dict(leaves(before)), dict(leaves(now))
    for name in sorted({*old, *new}):
        values = old.get(name), new.get(name)
        if values[0] != values[1]:
            yield name, values
