"""The report of a run, put together: its parts are the same whoever writes it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.classifiers import transfer
from jaxclf.core import logs, memory
from jaxclf.core.errors import InputError
from jaxclf.core.suggest import did_you_mean
from jaxclf.data import datasets
from jaxclf.data.datasets import Dataset
from jaxclf.data.loader import Examples
from jaxclf.data.notes import notes, unseen
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import SlotFormat, Task
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import processes
from jaxclf.metrics import calibration, metrics
from jaxclf.runs.setup import Setup


def describe(
    config: ConfigDict,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    train: Mapping[str, Any],
) -> dict[str, Any]:
    """The part that says what was run."""
    return {
        "config": config.to_dict(),
        "data": dict(data),
        "model": dict(model),
        "train": dict(train),
        "versions": report.versions(),
    }


def scores(
    config: ConfigDict,
    recipe: Recipe,
    predictions: Sequence[Prediction],
    split: str,
    temperatures: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """The part that says how good the predictions of `split` are; they are not tempered yet."""
    target = config.eval.get("target_accuracy", 0.0)  # older runs do not have it
    return {
        "eval": metrics.compute(predictions, recipe.tasks, recipe.slot_format),
        "eval_split": split,
        "calibration": calibration.measure(predictions, recipe.tasks, temperatures, target),
    }


def publish(
    workdir: Path,
    result: Mapping[str, Any],
    predictions: Sequence[Prediction],
    tasks: Sequence[Task],
    history: Sequence[Mapping[str, Any]] = (),
    checkpoint: str = "",
    *,
    more: str = "",
    keeps: bool = True,
    say: Callable[[str], None] = logs.say,
) -> None:
    """Write report and predictions, by the first process, and say what they hold.

    `more`: a table to show below the figures. `keeps=False`: the files will not stay there, so that
    nobody is told where they are.
    """
    if processes.is_first():
        report.write(workdir, result, predictions, tasks, history, checkpoint)
    processes.wait("report")
    unit = "characters" if "api" in result else "tokens"
    _say_cut(result["eval_split"], [each.cut for each in predictions], say, unit)
    figures = (report.table(result), more) if predictions else ()
    for text in filter(None, figures):
        say(text)
    if keeps:
        say(f"report: {workdir / 'report.html'}")


def data_facts(
    dataset: Dataset,
    examples: Examples = (),
    split: str = datasets.NO_SPLIT,
    predictions: Sequence[Prediction] = (),
) -> dict[str, Any]:
    """What a report says of the data.

    `examples`: the training split as a model reads it. `predictions`: those of `split`.
    """
    cut = {"train": [each.cut for each in examples], split: [each.cut for each in predictions]}
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "records": {name: len(found) for name, found in dataset.splits.items()},
        "skipped": dataset.skipped,
        "defects": list(dataset.defects),
        "unseen_labels": unseen(dataset),
        "cut_texts": sum(count > 0 for count in cut["train"]),
        "cut_tokens": sum(cut["train"]),
        "cut": {
            name: {"texts": sum(count > 0 for count in counts), "tokens": sum(counts)}
            for name, counts in cut.items()
            if counts
        },
        "notes": notes(dataset),
        "tasks": report.describe_tasks(dataset.tasks),
    }


def say_data(
    config: ConfigDict,
    dataset: Dataset,
    examples: Examples = (),
    say: Callable[[str], None] = logs.say,
) -> None:
    """Say what is odd about the data, and what of the training texts is cut."""
    for line in notes(dataset):
        say(f"data: {line}")
    _say_cut("train", [each.cut for each in examples], say)
    wanted, split = config.eval.split, datasets.scored_split(dataset, config.eval.split)
    if split == datasets.NO_SPLIT:
        say(
            f"data: there is no split {wanted!r}, nor dev: nothing will be scored. Name a file, or "
            "hold out a dev split with data.dev_fraction"
        )
    elif split != wanted:
        say(f"data: there is no split {wanted!r}; {split} is scored in its place")


def _say_cut(
    split: str, cuts: Sequence[int], say: Callable[[str], None], unit: str = "tokens"
) -> None:
    """Say how many texts of a split were cut, by how much of each was."""
    if count := sum(cut > 0 for cut in cuts):
        limit = "train.max_length" if unit == "tokens" else "api.max_characters"
        say(
            f"data: {count:,} of {len(cuts):,} texts of {split} are too long and cut, by "
            f"{sum(cuts):,} {unit} in all; a higher {limit} keeps them"
        )


def model_facts(
    config: ConfigDict, setup: Setup, plan: transfer.Transfer, trained: int
) -> dict[str, Any]:
    """What a report says of the model, of which `trained` values are trained."""
    return {
        "name": config.model.name,
        "family": setup.model.family,
        "output": "head" if setup.model.has_heads else "generate",
        "checkpoint": config.model.checkpoint,
        "dimensions": dataclasses.asdict(setup.model.config),
        "parameters": _size(setup.model.abstract),
        "trained_parameters": trained,
        "new_parameters": list(plan.new),
        "unused_tensors": list(plan.unused),
        "tokenizer": setup.tokenizer.fingerprint,
        "vocabulary": setup.tokenizer.vocab_size,
    }


def device() -> str:
    """`8 x TPU v5p`."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def cost(seconds: float, count: int) -> dict[str, Any]:
    """The part that says what scoring `count` texts took, and the most memory until now.

    Memory is the device's where that tells (GPU, TPU), else the process's.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "cost": {
            "scoring_seconds": round(seconds, 3),
            "texts_per_second": count / seconds if seconds else None,
            "peak_bytes": stats.get("peak_bytes_in_use", memory.peak_bytes()),
        }
    }


def flat_metrics(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """`{"intent": {"accuracy": 1.0}}` as `{"intent.accuracy": 1.0}`."""
    return {
        f"{task}.{name}": value for task, group in values.items() for name, value in group.items()
    }


def dev_metrics(
    predictions: Sequence[Prediction], tasks: Sequence[Task], slot_format: SlotFormat
) -> dict[str, float]:
    """Flat metrics, and as `score` the mean of the tasks' main metrics."""
    values = flat_metrics(metrics.compute(predictions, tasks, slot_format))
    main = [values.get(f"{task.name}.{metrics.main_metric(task)}", math.nan) for task in tasks]
    return values | {"score": float(np.mean(main))}


def best_metric(config: ConfigDict, tasks: Sequence[Task]) -> tuple[str, bool]:
    """What of `dev_metrics` chooses the best parameters, and whether greater is better.

    Raises InputError where an evaluation does not measure train.metric_for_best_model.
    """
    wanted, measured = config.train.metric_for_best_model, metrics.qualities(tasks)
    if wanted and wanted not in measured:
        raise InputError(
            f"train.metric_for_best_model is {wanted!r}; expected one of {', '.join(measured)}"
            f"{did_you_mean(wanted, measured)}"
        )
    return (wanted, measured[wanted]) if wanted else ("score", True)


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
