"""What a run leaves to read: report.json, report.html, predictions.jsonl, a table, a model card.

`report` everywhere is the dict that becomes report.json, with the keys config, data, model, train,
eval (task → metric → number), eval_split, calibration (task → figures, see `calibration.measure`)
and versions; of prompted models spread and variants, see `report.spread`.
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxclf.data.tasks import Label, Task
from jaxclf.labels import UNPARSED, Prediction
from jaxclf.report.card import model_card
from jaxclf.report.page import page
from jaxclf.report.terminal import methods_table, table

__all__ = [
    "methods_table",
    "model_card",
    "page",
    "prediction_row",
    "read_predictions",
    "table",
    "versions",
    "write",
    "write_predictions",
]

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("transformers", "tokenizers", "datasets", "seqeval", "scikit-learn", "openai"),
)


def write(
    workdir: str | Path,
    report: Mapping[str, Any],
    predictions: Sequence[Prediction],
    tasks: Sequence[Task],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write report.json, report.html and predictions.jsonl into `workdir`, each in one step.

    `history`: the lines of metrics.jsonl; none, no learning curves.
    """
    workdir = Path(workdir)
    write_predictions(workdir / "predictions.jsonl", predictions)
    rows = json.dumps(_plain(report), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _replace(workdir / "report.json", rows + "\n")
    _replace(workdir / "report.html", page(report, predictions, tasks, history))


def versions() -> dict[str, str]:
    """Python's, ours and those of the packages that shape the numbers, as far as installed."""
    from jaxclf import __version__

    found = {"python": platform.python_version(), "jaxclf": __version__}
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
    }


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write one line per prediction, in their order."""
    rows = (json.dumps(prediction_row(each), ensure_ascii=False) + "\n" for each in predictions)
    _replace(Path(path), "".join(rows))


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read what `write_predictions` wrote. The texts are not in the file: each is ""."""
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        Prediction(
            id=row["id"],
            text="",
            gold=_labels(row["gold"]),
            predicted=_labels(row["predicted"]),
            raw=row["raw"],
            scores=row["scores"],
            unknown_slots=row["unknown_slots"],
            guessed=tuple(
                name for name in row["unparsed"] if row["predicted"][name] is not UNPARSED
            ),
        )
        for row in rows
    ]


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


def _replace(path: Path, text: str) -> None:
    """Write a text file so that under its name there is the old one or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    # A lone surrogate, which UTF-8 has no form for, becomes its escape: in JSON the same text.
    temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)
