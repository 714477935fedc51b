"""Whether a folder holds the finished run of a config: whoever does many runs skips these."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.checkpoint.seal import REPORT, read
from jaxclf.core.errors import ArtifactError

# What a run may differ in and still be the one that is asked for: none of it moves a figure.
_SAME = ("mesh.", "model.attention", "api.base_url", "api.concurrency", "api.timeout")
_SAME += ("api.retries", "api.max_cost", "train.save_steps", "train.keep")
_SAME += ("train.logging_steps", "train.max_shapes")


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """The report of a run that is complete and is of this config, else None: it has to go on.

    Raises ArtifactError where the report was altered or is damaged.
    """
    if not (folder / REPORT).is_file():
        return None
    found = read(folder)
    # The steps of a run that counts epochs are what it found them to be.
    same = (*_SAME, "train.steps") if config.train.epochs else _SAME
    try:
        before = dict(_leaves(found["config"], same))
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / REPORT}: not a report of ours") from error
    now = dict(_leaves(json.loads(json.dumps(config.to_dict())), same))
    return found if before == now else None


def _leaves(fields: Any, same: tuple[str, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields that have a bearing on the figures, as (`train.steps`, value)."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, same, f"{prefix}{name}.")
        elif not f"{prefix}{name}".startswith(same):
            yield f"{prefix}{name}", value
