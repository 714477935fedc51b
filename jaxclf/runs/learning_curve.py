"""A learning curve: one run for each number of training examples and seed, and what they give.

    WORKDIR/50-0      a run of its own on 50 examples with seed 0
    WORKDIR/all-2     on all of them with seed 2
    WORKDIR/curve.json, curve.csv, curve.svg, curve.html

The examples are those of `data.train_examples`: 100 of a seed hold the 50 of that seed.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.config import validation
from jaxclf.core import locks
from jaxclf.core.errors import InputError
from jaxclf.core.files import write_text
from jaxclf.data import datasets
from jaxclf.metrics.metrics import main_metric
from jaxclf.report import plots

Train = Callable[[ConfigDict, Path], Any]
ALL = "all"


def read_sizes(words: str) -> list[str]:
    """`"50,100,all" → ["50", "100", "all"]`; raises InputError."""
    sizes = [word.strip() for word in words.split(",")]
    for size in sizes:
        if size != ALL and not (size.isascii() and size.isdecimal() and int(size)):
            raise InputError(f"--sizes {words}: {size!r} is neither a number from 1 nor {ALL!r}")
    found = list(dict.fromkeys(size if size == ALL else str(int(size)) for size in sizes))
    return sorted(found, key=lambda size: math.inf if size == ALL else int(size))


@locks.holds_folder("workdir")
def learn(
    config: ConfigDict, workdir: Path, sizes: Sequence[str], seeds: int, train: Train
) -> dict[str, Any]:
    """Train what is missing, then write and return the curve.

    `train(config, workdir)` leaves a finished run, and resumes one that is not. `seeds`: how many,
    from `config.seed` on. Raises InputError where the split has fewer examples than are asked for,
    ArtifactError where a finished run was altered, and what `train` raises.
    """
    if config.data.train_examples:
        raise InputError("data.train_examples is what --sizes sets; leave it out")
    validation.check("seed", config.seed + seeds - 1)
    total = _total(config, sizes)
    runs = []
    for size in sizes:
        for seed in range(config.seed, config.seed + seeds):
            folder = workdir / f"{size}-{seed}"
            print(f"run {len(runs) + 1} of {len(sizes) * seeds}: {folder}", flush=True)
            own = _config(config, size, seed)
            found = report.finished(own, folder)
            if found is None:
                train(own, folder)
                found = report.read(folder)
            examples = total if size == ALL else int(size)
            runs.append(({"size": size, "examples": examples, "seed": seed}, found))
    curve = summary(runs)
    write(workdir, curve)
    return curve


def _total(config: ConfigDict, sizes: Sequence[str]) -> int:
    """The size of the whole split, checked before the first run against all that is asked for."""
    found = len(datasets.load(config.data, config.seed).splits["train"])
    largest = max((int(size) for size in sizes if size != ALL), default=0)
    if largest > found:
        raise InputError(
            f"--sizes asks for {largest:,} examples; the train split has {found:,}. Lower it, or "
            f"say {ALL}"
        )
    return found


def _config(config: ConfigDict, size: str, seed: int) -> ConfigDict:
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.data.train_examples = 0 if size == ALL else int(size)
        own.seed = seed
    return own


def summary(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """What becomes curve.json, of (size, examples and seed of a run, its report).

    Each task's main metric, and the exact match of several: a point a size with the mean over seeds
    and the standard deviation (n - 1; None of one run).
    """
    first = runs[0][1]
    shown = {task.name: main_metric(task) for task in report.tasks_of(first)}
    if len(shown) > 1 and "joint" in first["eval"]:
        shown["joint"] = "exact_match"
    tasks = {}
    for name, metric in shown.items():
        points: dict[str, dict[str, Any]] = {}
        for facts, found in runs:
            point = points.setdefault(
                facts["size"], {"size": facts["size"], "examples": facts["examples"], "values": []}
            )
            point["values"].append(found["eval"][name].get(metric))
        for point in points.values():
            known = [value for value in point["values"] if value is not None]
            point["mean"] = float(np.mean(known)) if known else None
            point["deviation"] = float(np.std(known, ddof=1)) if len(known) > 1 else None
        tasks[name] = {"metric": metric, "points": list(points.values())}
    return {
        "split": first.get("eval_split", "test"),
        "tasks": tasks,
        "runs": [
            {**facts, "eval": found["eval"], "checkpoint": found["provenance"]["checkpoint"]}
            for facts, found in runs
        ],
    }


def write(workdir: Path, curve: Mapping[str, Any]) -> None:
    """curve.json, curve.csv (a line a run, task and metric), curve.svg and curve.html."""
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow(["size", "examples", "seed", "task", "metric", "value"])
    for run in curve["runs"]:
        for task, values in run["eval"].items():
            for metric, value in values.items():
                rows.writerow([run["size"], run["examples"], run["seed"], task, metric, value])
    drawn = {
        f"{name} {report.metric_name(facts['metric'])}": [
            (point["examples"], _drawn(point["mean"]), _drawn(point["deviation"]))
            for point in facts["points"]
        ]
        for name, facts in curve["tasks"].items()
    }
    picture = plots.over_examples(drawn)
    text = json.dumps(curve, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(workdir / "curve.json", text + "\n")
    write_text(workdir / "curve.csv", lines.getvalue())
    write_text(workdir / "curve.svg", picture.decode())
    write_text(workdir / "curve.html", report.curve_page(curve, picture))


def _drawn(value: float | None) -> float:
    return math.nan if value is None else value
