"""Scoring a trained run again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxclf import report
from jaxclf.checkpoint import tree_store
from jaxclf.classifiers.opening import Opened
from jaxclf.core import locks, logs
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.metrics import calibration
from jaxclf.runs import facts


@locks.holds_folder("output")
def evaluate(
    opened: Opened, output: Path, split: str = "", *, keeps: bool = True
) -> dict[str, Any]:
    """Score `split` (default: the run's) and write report and predictions into `output`.

    `keeps=False`: they will not stay there, so that nobody is told where they are.

    Same checkpoint, data and batch size give the same numbers as the run's own report. Raises
    InputError where the data have other labels than the run or no such split, or where `output` is
    the run's own folder.
    """
    run_dir = opened.source.run_dir
    if run_dir is not None and output.resolve() == run_dir.resolve():
        raise InputError(f"{output} is the run itself, whose report would be lost; name another")
    result, predictions = score(opened, split, lambda: output.mkdir(parents=True, exist_ok=True))
    checkpoint = tree_store.fingerprint(opened.source.manifest)
    tasks = opened.classifier.recipe.tasks
    facts.publish(output, result, predictions, tasks, checkpoint=checkpoint, keeps=keeps)
    return result


def score(
    opened: Opened, split: str = "", ready: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], list[Prediction]]:
    """The report of a split (default: the run's), and the tempered predictions that it is of.

    `ready` is called when the data were found good. Raises InputError as `evaluate` does.
    """
    config, classifier = opened.config, opened.classifier
    recipe, temperatures = classifier.recipe, classifier.temperatures
    dataset = datasets.load(config.data, config.seed)
    facts.say_data(config, dataset)
    split = split or datasets.scored_split(dataset, config.eval.split)
    if dataset.tasks != recipe.tasks:
        raise InputError(
            f"data set {dataset.name} has other tasks or labels than the run was trained on"
        )
    if not dataset.splits.get(split):
        raise InputError(
            f"data set {dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}"
        )
    records = dataset.splits[split]
    ready()
    start = time.perf_counter()
    with logs.count(f"{split} evaluation", len(records)) as advance:
        predictions = classifier.predict(
            records,
            config.eval.batch_size,
            prompt=opened.prompt,
            progress=advance,
            tempered=False,
        )
    cost = facts.cost(time.perf_counter() - start, len(records))
    result = _run_report(opened) | report.decoding(classifier.facts()) | cost
    result |= facts.scores(config, recipe, predictions, split, temperatures)
    predictions = calibration.tempered(predictions, temperatures)
    result.pop("attens", None)  # of the run's own evaluation
    of_run = result["data"]
    result["data"] = {**of_run, **facts.data_facts(dataset, (), split, predictions)}
    result["data"] |= {name: of_run[name] for name in ("cut_texts", "cut_tokens") if name in of_run}
    return result, predictions


def _run_report(opened: Opened) -> dict[str, Any]:
    """The run's own report with this evaluation's versions, or as much as is known without it."""
    source = opened.source
    if source.run_dir is not None and (source.run_dir / report.REPORT).is_file():
        result = report.read(source.run_dir)
        try:
            result["train"]["evaluated_step"] = source.step
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{source.run_dir}: no report of ours: {error!r}") from error
    else:
        train = {**opened.facts.get("train", {}), "evaluated_step": source.step}
        result = {"data": {}, "model": dict(opened.facts.get("model", {})), "train": train}
    return result | {"config": opened.config.to_dict(), "versions": report.versions()}
