"""What a run leaves to read: report.json, report.html, predictions.jsonl, a table, a model card.

`report` everywhere is the dict that becomes report.json, with the keys config, data, model, train,
eval (task → metric → number), eval_split, calibration (task → figures, see `calibration.measure`)
and versions; of prompted models spread and variants, see `report.spread`; provenance is added where
it is written (see `seal`).
"""

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxclf.checkpoint.seal import PREDICTIONS, REPORT, read, seal
from jaxclf.core.errors import ArtifactError
from jaxclf.core.files import write_text
from jaxclf.data.predictions import UNPARSED, Prediction
from jaxclf.data.tasks import Label, Task
from jaxclf.report.card import model_card
from jaxclf.report.comparison import comparison_page
from jaxclf.report.complete import finished
from jaxclf.report.curve import curve_page
from jaxclf.report.names import metric_name
from jaxclf.report.page import page
from jaxclf.report.terminal import comparison_table, curve_table, methods_table, table

__all__ = [
    "PREDICTIONS",
    "REPORT",
    "comparison_page",
    "comparison_table",
    "curve_page",
    "curve_table",
    "describe_tasks",
    "finished",
    "methods_table",
    "metric_name",
    "model_card",
    "page",
    "prediction_row",
    "read",
    "read_predictions",
    "table",
    "tasks_of",
    "versions",
    "write",
    "write_predictions",
]

_PACKAGES = (
    *("jaxclf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("transformers", "tokenizers", "seqeval", "scikit-learn", "openai"),
)


def write(
    workdir: str | Path,
    report: Mapping[str, Any],
    predictions: Sequence[Prediction],
    tasks: Sequence[Task],
    history: Sequence[Mapping[str, Any]],
    checkpoint: str = "",
) -> None:
    """Write report.json, report.html and predictions.jsonl into `workdir`, each in one step.

    `history`: the lines of metrics.jsonl; none, no learning curves. `checkpoint`: the fingerprint
    of the parameters that answered; "": none of ours.
    """
    workdir = Path(workdir)
    digest = write_predictions(workdir / PREDICTIONS, predictions)
    sealed = seal(_plain(report), digest, checkpoint)
    rows = json.dumps(sealed, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    shown = {**report, "provenance": sealed["provenance"]}
    write_text(workdir / "report.html", page(shown, predictions, tasks, history))
    # The last of all: whoever finds it takes the run for finished.
    write_text(workdir / REPORT, rows + "\n")


def describe_tasks(tasks: Sequence[Task]) -> dict[str, Any]:
    """What a report has as `data.tasks`."""
    return {
        task.name: {
            "kind": task.kind,
            "labels": list(task.labels),
            "positive": task.positive,
            "metric": task.metric,
        }
        for task in tasks
    }


def tasks_of(report: Mapping[str, Any]) -> tuple[Task, ...]:
    """Inverse of `describe_tasks`, of a whole report."""
    return tuple(
        Task(
            name, each["kind"], (*each["labels"],), each.get("positive", ""), each.get("metric", "")
        )
        for name, each in report["data"]["tasks"].items()
    )


def decoding(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of how labels came out, if anything: see `Classifier.facts`."""
    return {"decoding": dict(facts)} if facts else {}


def versions() -> dict[str, str]:
    """Python's, ours and those of the packages that shape the numbers, as far as installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """One line of predictions.jsonl. `unparsed`: the tasks whose output was outside the label set,
    with null as predicted value or, where a fallback is named, what it chose."""
    return {
        "id": prediction.id,
        "gold": _plain(prediction.gold),
        "predicted": _plain(prediction.predicted),
        "scores": _plain(prediction.scores),
        "raw": prediction.raw,
        "unparsed": prediction.unparsed,
        "unknown_slots": prediction.unknown_slots,
        "cut": prediction.cut,
    }


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> str:
    """Write one line per prediction, in their order; returns the SHA-256 of the file."""
    rows = (json.dumps(prediction_row(each), ensure_ascii=False) + "\n" for each in predictions)
    return write_text(Path(path), "".join(rows))


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read what `write_predictions` wrote. The texts are not in the file: each is "".

    Raises ArtifactError where it is missing or a line is none of ours. `read` checks that it is as
    the run wrote it.
    """
    found: list[Prediction] = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            found.extend(_prediction(json.loads(line)) for line in file)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}:{len(found) + 1}: no prediction ({error!r})") from error
    return found


def _prediction(row: Mapping[str, Any]) -> Prediction:
    return Prediction(
        id=row["id"],
        text="",
        gold=_labels(row["gold"]),
        predicted=_labels(row["predicted"]),
        raw=row["raw"],
        scores=row["scores"],
        unknown_slots=row["unknown_slots"],
        guessed=tuple(name for name in row["unparsed"] if row["predicted"][name] is not UNPARSED),
        cut=row.get("cut", 0),  # which older runs do not have
    )


def _labels(values: Mapping[str, Any]) -> dict[str, Label]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _plain(value: Any) -> Any:
    """The same as JSON has it: keys are text, a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
