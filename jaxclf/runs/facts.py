"""The report of a run, put together: its parts are the same whoever writes it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.classifiers import transfer
from jaxclf.data.datasets import Dataset
from jaxclf.data.loader import Examples
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
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
    say: Callable[[str], None] = print,
) -> None:
    """Write report and predictions, by the first process, and say what they hold.

    `more`: a table to show below the figures.
    """
    if processes.is_first():
        report.write(workdir, result, predictions, tasks, history, checkpoint)
    processes.wait("report")
    for text in filter(None, (report.table(result), more)):
        say(text)
    say(f"report: {workdir / 'report.html'}")


def data_facts(dataset: Dataset, examples: Examples = ()) -> dict[str, Any]:
    """What a report says of the data; `examples`: the training split as a model reads it."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "records": {name: len(found) for name, found in dataset.splits.items()},
        "skipped": dataset.skipped,
        "cut_texts": sum(example.cut > 0 for example in examples),
        "cut_tokens": sum(example.cut for example in examples),
        "tasks": report.describe_tasks(dataset.tasks),
    }


def model_facts(
    config: ConfigDict, setup: Setup, plan: transfer.Transfer, trained: int
) -> dict[str, Any]:
    """What a report says of the model, of which `trained` values are trained."""
    return {
        "name": config.model.name,
        "family": setup.model.family,
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


def flat_metrics(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """`{"intent": {"accuracy": 1.0}}` as `{"intent.accuracy": 1.0}`."""
    return {
        f"{task}.{name}": value for task, group in values.items() for name, value in group.items()
    }


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
