"""Where the numbers of a report come from, and a seal by which a later change is noticed.

`report["provenance"]` has the seed; `data`, the hash of the records (splits, ids, texts, labels);
`checkpoint`, the fingerprint of the parameters that answered ("" where none of ours did);
`predictions`, the SHA-256 of predictions.jsonl; and `seal`, one of every other part of report.json.
That guards against accidents and quiet edits, not against a forger, who can seal anew.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclf.core import files
from jaxclf.core.errors import ArtifactError
from jaxclf.core.files import sha256

REPORT, PREDICTIONS = "report.json", "predictions.jsonl"
_REMEDY = "Restore it from a copy, or remove it and score the run again"


def seal(report: Mapping[str, Any], predictions: str, checkpoint: str = "") -> dict[str, Any]:
    """The report, of what JSON holds, with its `provenance` in the place of any that it had.

    `predictions`: the SHA-256 of predictions.jsonl.
    """
    provenance = {
        "seed": report["config"].get("seed"),
        "data": report["data"].get("fingerprint"),
        "checkpoint": checkpoint,
        "predictions": predictions,
    }
    whole = {**report, "provenance": provenance}
    provenance["seal"] = _digests(whole)
    return whole


def read(directory: str | Path) -> dict[str, Any]:
    """The report in the folder of a run or an evaluation, as it was written.

    Raises ArtifactError where it is missing, or it or predictions.jsonl was altered since; a report
    of an older version has no seal and is taken with a warning. Predictions that are not there are
    no alteration.
    """
    path = Path(directory) / REPORT
    report = files.read_json(path)
    try:
        provenance = report.get("provenance")
        if provenance is None:
            warnings.warn(
                f"{path} is not sealed, as those of older versions: it is taken as it is",
                stacklevel=2,
            )
            return report
        expected, found = provenance["seal"], _digests(report)
        altered = [part for part in {**expected, **found} if expected.get(part) != found.get(part)]
        listed = provenance["predictions"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a report of ours ({error!r})") from error
    if altered:
        raise ArtifactError(
            f"{path}: altered since it was written, in {', '.join(sorted(altered))}. {_REMEDY}"
        )
    predictions = path.with_name(PREDICTIONS)
    if predictions.is_file() and (digest := sha256(predictions.read_bytes())) != listed:
        raise ArtifactError(
            f"{predictions}: altered since it was written: its SHA-256 is {digest[:16]}, that in "
            f"{REPORT} is {str(listed)[:16]}. {_REMEDY}"
        )
    return report


def _digests(report: Mapping[str, Any]) -> dict[str, str]:
    """Part of the report → SHA-256 of its canonical JSON; of the provenance without the seal."""
    parts = dict(report)
    parts["provenance"] = {k: v for k, v in parts["provenance"].items() if k != "seal"}
    return {
        name: sha256(json.dumps(part, sort_keys=True, separators=(",", ":")).encode())
        for name, part in parts.items()
    }
