"""Two runs on the same texts: what differs, how sure that is, and which texts make the difference.

`a` and `b` everywhere are the two runs, and a difference is `b` less `a`: what comes of going from
a to b. A text is won where b alone is right, lost where a alone is.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.core import locks
from jaxclf.core.errors import ArtifactError, InputError, JaxclfError
from jaxclf.core.files import write_text
from jaxclf.core.suggest import did_you_mean
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import SlotFormat, Task
from jaxclf.metrics import metrics, significance
from jaxclf.metrics.significance import Estimate, Figure


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run or an evaluation left in a folder."""

    path: Path
    report: Mapping[str, Any]
    predictions: Sequence[Prediction]

    @property
    def tasks(self) -> dict[str, Task]:
        return {task.name: task for task in report.tasks_of(self.report)}

    @property
    def slot_format(self) -> SlotFormat:
        return self.report["config"].get("prompt", {}).get("slots") or "names"


def read(path: str | Path) -> Result:
    """Raises ArtifactError where a part is missing, damaged, or was altered since."""
    path = Path(path)
    found = Result(path, report.read(path), report.read_predictions(path / report.PREDICTIONS))
    try:
        _ = found.tasks, found.slot_format, found.report["eval"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path / report.REPORT}: no result of ours ({error!r})") from error
    return found


def compare(
    a: Result, b: Result, task: str = "", samples: int = significance.SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """What becomes comparison.json: all tasks that both answer, or the one named.

    Raises InputError where there is none, or they did not score the same texts with the same gold.
    """
    names = [name for name in a.tasks if name in b.tasks]
    if task and task not in names:
        raise InputError(
            f"--task {task}: expected a task of both runs, {', '.join(names) or 'which have none'}"
            f"{did_you_mean(task, names)}"
        )
    if not names:
        raise InputError(
            f"{a.path} answers {', '.join(a.tasks)}, {b.path} {', '.join(b.tasks)}; no task is of "
            "both"
        )
    texts = texts_of(a)
    found = {name: _task(a, b, name, texts, samples, seed) for name in ([task] if task else names)}
    joint = None
    if len(a.tasks) > 1 and a.tasks.keys() == b.tasks.keys() and not task:
        joint = _joint(a, b, samples, seed)
    return {
        "runs": {"a": _facts(a), "b": _facts(b)},
        "level": significance.LEVEL,
        "samples": samples,
        "seed": seed,
        "tasks": found,
        "joint": joint,
    }


def texts_of(result: Result) -> dict[str, str]:
    """The scored texts by id, of the very data that were scored; none where these are not at hand.

    Predictions have no texts, which their data set has.
    """
    config = result.report["config"]
    try:
        found = datasets.load(ConfigDict(config["data"]), config["seed"])
    except (JaxclfError, OSError, KeyError, AttributeError, TypeError):
        return {}
    if found.fingerprint != result.report["data"].get("fingerprint"):
        return {}
    records = found.splits.get(result.report.get("eval_split", "test"), ())
    return {each.id: " ⏎ ".join(filter(None, (each.text, each.pair))) for each in records}


# One task -----------------------------------------------------------------------------------------


def _task(
    a: Result, b: Result, name: str, texts: Mapping[str, str], samples: int, seed: int
) -> dict[str, Any]:
    task, other = a.tasks[name], b.tasks[name]
    if (task.kind, task.labels) != (other.kind, other.labels):
        raise InputError(
            f"task {name} has other answers in {a.path} ({task.kind}, {len(task.labels)} labels) "
            f"than in {b.path} ({other.kind}, {len(other.labels)})"
        )
    first, second = aligned(a, b, [name])
    figures = [
        significance.figure(predictions, task, result.slot_format)
        for predictions, result in ((first, a), (second, b))
    ]
    found = _estimates(figures, samples, seed) | {"kind": task.kind, "support": len(first)}
    if task.kind == "regression":
        return found
    right = [
        [metrics.is_right(each, task, result.slot_format) for each in predictions]
        for predictions, result in ((first, a), (second, b))
    ]
    examples = {
        "won" if in_b else "lost": [
            _example(one, two, task, texts)
            for one, two, *pair in zip(first, second, *right, strict=True)
            if pair == [not in_b, in_b]
        ]
        for in_b in (False, True)
    }
    return found | {
        "mcnemar": _mcnemar(*right),
        "classes": _classes(
            metrics.per_class_report(first, task, a.slot_format),
            metrics.per_class_report(second, task, b.slot_format),
        ),
        **examples,
    }


def _joint(a: Result, b: Result, samples: int, seed: int) -> dict[str, Any]:
    """Exact match of all tasks but numbers, as `metrics.compute` has it."""
    first, second = aligned(a, b, [*a.tasks])
    right = [
        [
            all(
                metrics.is_right(each, task, result.slot_format)
                for task in a.tasks.values()
                if task.kind != "regression"
            )
            for each in predictions
        ]
        for predictions, result in ((first, a), (second, b))
    ]
    figures = [significance.share("exact_match", each) for each in right]
    found = _estimates(figures, samples, seed)
    return found | {"support": len(first), "mcnemar": _mcnemar(*right)}


def aligned(
    a: Result, b: Result, tasks: Sequence[str]
) -> tuple[list[Prediction], list[Prediction]]:
    """The predictions of both that have gold of all `tasks`, in the order of a.

    Raises InputError where the ids or the gold labels are not the same.
    """
    first, second = _by_id(a, tasks), _by_id(b, tasks)
    for mine, its, path, other in ((first, second, a, b), (second, first, b, a)):
        if alone := [id_ for id_ in mine if id_ not in its]:
            raise InputError(
                f"{len(alone):,} of {len(mine):,} texts that {path.path} scored are not in "
                f"{other.path}, first {alone[0]!r}. Score the same data and split"
            )
    golds = [[each[id_].gold[name] for name in tasks] for each in (first, second) for id_ in first]
    pairs = zip(first, golds[: len(first)], golds[len(first) :], strict=True)
    if unlike := [(id_, mine, its) for id_, mine, its in pairs if mine != its]:
        id_, mine, its = unlike[0]
        raise InputError(
            f"the gold labels of {len(unlike):,} of {len(first):,} texts differ, first {id_!r}: "
            f"{mine} in {a.path}, {its} in {b.path}. Score the same data"
        )
    if not first:
        raise InputError(f"{a.path} scored no text with gold labels of {', '.join(tasks)}")
    return list(first.values()), [second[id_] for id_ in first]


def _by_id(result: Result, tasks: Sequence[str]) -> dict[str, Prediction]:
    scored = [
        each
        for each in result.predictions
        if all(each.gold.get(name) is not None for name in tasks)
    ]
    found = {each.id: each for each in scored}
    if len(found) < len(scored):
        raise InputError(
            f"{result.path}: {len(scored) - len(found):,} ids of predictions occur twice; texts "
            "are told apart by their ids. Name a column of them in data.id"
        )
    return found


def _estimates(figures: Sequence[Figure], samples: int, seed: int) -> dict[str, Any]:
    a, b = figures
    return {
        "metric": a.name,
        "a": _plain(significance.estimate(a, samples, seed)),
        "b": _plain(significance.estimate(b, samples, seed)),
        "difference": _plain(significance.difference(a, b, samples, seed)),
    }


def _plain(estimate: Estimate) -> dict[str, float | None]:
    """nan, a figure that there is none of, is null in JSON."""
    return {name: value if value == value else None for name, value in estimate._asdict().items()}


def _mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    pairs = list(zip(first, second, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    exact = lost + won < significance.EXACT_BELOW
    return {
        "lost": lost,
        "won": won,
        "p": significance.mcnemar(lost, won),
        "test": "exact binomial" if exact else "chi-square, continuity corrected",
    }


def _classes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """F1 and recall of every class in either, what b loses most first."""
    none = {"f1": 0.0, "recall": 0.0, "support": 0}
    rows = []
    for name in {**a, **b}:
        one, two = a.get(name, none), b.get(name, none)
        row: dict[str, Any] = {"class": name, "support": max(one["support"], two["support"])}
        for figure in ("f1", "recall"):
            row[figure] = {
                "a": one[figure],
                "b": two[figure],
                "difference": two[figure] - one[figure],
            }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["f1"]["difference"], row["class"]))


def _example(
    first: Prediction, second: Prediction, task: Task, texts: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "id": first.id,
        "text": texts.get(first.id),
        "gold": first.gold[task.name],
        "a": first.predicted.get(task.name),
        "b": second.predicted.get(task.name),
    }


def _facts(result: Result) -> dict[str, Any]:
    """Which run it is."""
    found = result.report
    provenance = found.get("provenance", {})
    return {
        "path": str(result.path),
        "data": found["data"].get("name"),
        "model": found.get("model", {}).get("name"),
        "split": found.get("eval_split", "test"),
        "provenance": {name: value for name, value in provenance.items() if name != "seal"},
        "costs": _costs(found),
    }


def _costs(found: Mapping[str, Any]) -> dict[str, float]:
    """What a run takes, as far as its report knows: numbers of parameters, and seconds."""
    model, train = found.get("model", {}), found.get("train", {})
    known = {
        "parameters": model.get("parameters"),
        "trained parameters": model.get("trained_parameters"),
        "seconds of training": train.get("seconds"),
        "seconds of scoring": found.get("cost", {}).get("scoring_seconds"),
        "bytes at most": found.get("cost", {}).get("peak_bytes"),
    }
    return {name: value for name, value in known.items() if type(value) in (int, float)}


@locks.holds_folder("output")
def write(output: Path, comparison: Mapping[str, Any]) -> None:
    """comparison.json and comparison.html."""
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(output / "comparison.json", text + "\n")
    write_text(output / "comparison.html", report.comparison_page(comparison))
