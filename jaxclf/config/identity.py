"""Whether two configs are of one run: which of the fields they differ in `schema` lets them."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxclf.config.schema import FIELDS, leaves
from jaxclf.core.errors import InputError

Changes = dict[str, tuple[Any, Any]]
"""Values before and now by field; None where a config does not have it."""

_LENGTH = ("train.steps", "train.epochs")
# What a trained classifier may be opened with otherwise: which texts, how labels come out, on which
# devices and in which precision, and where its parts lie. All else was decided when it was trained.
_OF_EVALUATION = ("data.", "eval.", "mesh.")
_ALSO_OF_EVALUATION = (
    "model.attention",
    "model.checkpoint",
    "model.dtype",
    "model.param_dtype",
    "model.gradient_checkpointing",
    "model.unroll",
    "attens.adapters",
)


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


def check_evaluation(before: ConfigDict, now: ConfigDict) -> None:
    """Raise InputError where a trained classifier is to be opened as it was not trained."""
    refused = [
        f"{name} is {values[0]!r}"
        for name, values in _differences(before, now)
        if not name.startswith(_OF_EVALUATION) and name not in _ALSO_OF_EVALUATION
    ]
    if refused:
        raise InputError(
            f"what was decided when the run was trained stays: {'; '.join(refused)}. At evaluation "
            f"the groups {', '.join(group.strip('.') for group in _OF_EVALUATION)} can be set, and "
            f"{', '.join(_ALSO_OF_EVALUATION)}. Leave the others out, or train with them"
        )


def _affects(name: str, *what: str) -> bool:
    """A field that is not ours may affect everything."""
    return name in FIELDS and FIELDS[name].affects in what


def _differences(before: ConfigDict, now: ConfigDict) -> Iterator[tuple[str, tuple[Any, Any]]]:
    old, new = dict(leaves(before)), dict(leaves(now))
    for name in sorted({*old, *new}):
        values = old.get(name), new.get(name)
        if values[0] != values[1]:
            yield name, values
