"""A greedy soup: the mean of the parameters of several runs of one base, as far as it helps on dev.

The best run is the first ingredient; each other, the better before the worse, is added where the
mean with it is no worse on the dev split. The test split has no say. Source: Wortsman et al. 2022
(Model soups), algorithm 1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclf import report
from jaxclf.checkpoint import model_files, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.checkpoint.model_dir import ModelSource, load_params, model_text, read_model, resolve
from jaxclf.classifiers.opening import Opened, open_run
from jaxclf.config import loading
from jaxclf.core import files, locks, logs
from jaxclf.core.errors import InputError
from jaxclf.core.types import Params
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.metrics import calibration
from jaxclf.runs import claims, evaluation, facts

STEP = 0  # of the soup, which took none of its own


@locks.holds_folder("output")
def cook(runs: Sequence[str], output: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write the soup of finished runs as a run of its own into `output`; returns its report.

    `overrides`: of the first run's config, such as where the data lie. Raises InputError where the
    runs have other shapes, labels, prompts, tokenizers or bases, learned from or are chosen by
    other dev records, or there are none; where there are adapters, of which a mean is no mean of
    models; or where `output` holds something.
    """
    if len({*runs}) < max(2, len(runs)):
        raise InputError(f"{', '.join(runs)}: expected 2 runs or more, each once")
    if any(entry.name != locks.FOLDER_LOCK for entry in output.iterdir()):
        raise InputError(f"{output} is not empty; name another --output")
    sources = [resolve(run) for run in runs]
    for run, source in zip(runs, sources, strict=True):
        check_same(runs[0], sources[0], run, source)
    first = open_run(Path(runs[0]), overrides=overrides)
    dataset = datasets.load(first.config.data, first.config.seed)
    _check_dev(dataset, runs, sources)
    with sharding.use(first.config.mesh):
        chosen = _choose(first, dataset, dict(zip(runs, sources, strict=True)))
        _write(output, first, dataset, chosen)
    opened = open_run(output, overrides=overrides)
    result, predictions = evaluation.score(opened)
    reports = [report.read(source.run_dir) for source in sources if source.run_dir is not None]
    result["model"] = reports[0]["model"]
    result["train"]["seconds"] = sum(each["train"].get("seconds", 0.0) for each in reports)
    result["soup"] = {
        "metric": chosen.metric,
        "dev": chosen.best.value,
        "runs": [
            {"path": run, "dev": found.value, "chosen": run in chosen.runs}
            for run, found in chosen.alone.items()
        ],
    }
    checkpoint = tree_store.fingerprint(opened.source.manifest)
    tasks = opened.classifier.recipe.tasks
    facts.publish(output, result, predictions, tasks, checkpoint=checkpoint)
    return result


class Tasted(NamedTuple):
    """How good parameters are on dev: by the metric that chooses, by all, and in each text."""

    value: float
    values: dict[str, float]
    predictions: list[Prediction]


class Chosen(NamedTuple):
    """What the soup is made of. alone: how good each run is by itself."""

    metric: str
    runs: list[str]
    params: Params
    best: Tasted
    alone: dict[str, Tasted]


def _choose(first: Opened, dataset: datasets.Dataset, sources: Mapping[str, ModelSource]) -> Chosen:
    """The greedy choice, by the metric that chooses a run's best checkpoint."""
    recipe, abstract = first.classifier.recipe, first.classifier.model.abstract
    metric, greater = facts.best_metric(first.config, recipe.tasks)

    def tasted(params: Params) -> Tasted:
        predictions = _predict(first, params, dataset)
        values = facts.dev_metrics(predictions, recipe.tasks, recipe.slot_format)
        return Tasted(values.get(metric, math.nan), values, predictions)

    def quality(value: float) -> float:
        return -math.inf if math.isnan(value) else value if greater else -value

    alone = {}
    for run, source in sources.items():
        alone[run] = tasted(load_params(source, abstract))
        logs.say(f"soup: {run} has {metric} {alone[run].value:.4f} on dev")
    best_run, *others = sorted(sources, key=lambda run: -quality(alone[run].value))
    runs, params, best = [best_run], load_params(sources[best_run], abstract), alone[best_run]
    for run in others:
        mixed = mixture(params, load_params(sources[run], abstract), len(runs))
        found = tasted(_cast(mixed, abstract))
        is_good = quality(found.value) >= quality(best.value)
        if is_good:
            runs, params, best = [*runs, run], mixed, found
        verb = "added" if is_good else "left out"
        logs.say(f"soup: with {run} {metric} is {found.value:.4f}: {verb}")
    return Chosen(metric, runs, _cast(params, abstract), best, alone)


def mixture(params: Params, other: Params, count: int) -> Params:
    """The mean, in float32, of `count` models with the mean `params` and one `other`."""
    return jax.tree.map(
        lambda mean, leaf: (
            mean.astype(jnp.float32) * (count / (count + 1))
            + leaf.astype(jnp.float32) * (1 / (count + 1))
        ),
        params,
        other,
    )


def _cast(params: Params, abstract: Params) -> Params:
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), params, abstract)


def check_same(first: str, one: ModelSource, name: str, other: ModelSource) -> None:
    """Raise InputError where two runs are not of one base, or not asked the same."""
    for run, source in ((first, one), (name, other)):
        if source.run_dir is None:
            raise InputError(f"{run} is a converted model; a soup is of runs")
        if source.adapters is not None:
            raise InputError(
                f"{run} holds adapters: the mean of their factors is not the mean of what they "
                "add. A soup is of runs that keep whole models, with tune='full'"
            )
        if not (source.run_dir / report.REPORT).is_file():
            raise InputError(f"{run} is not finished; run the command of its training again")
    mine, its = _facts(one), _facts(other)
    unlike = [
        f"{what}: {_shown(its.get(what))} there, {_shown(mine.get(what))} in {first}"
        for what in dict.fromkeys([*mine, *its])
        if mine.get(what) != its.get(what)
    ]
    if unlike:
        raise InputError(
            f"{name} and {first} cannot be averaged; they differ in {'; '.join(unlike)}"
        )


def _facts(source: ModelSource) -> dict[str, Any]:
    """What runs of one soup have in common."""
    assert source.run_dir is not None
    config = loading.read(source.run_dir / "config.json")
    recipe = Recipe.load(source.run_dir / "task.json")
    dimensions, dtype = read_model(source.model_json)
    found: dict[str, Any] = {"base": config.model.checkpoint}
    if not config.model.checkpoint:  # seeds draw bases that have nothing in common
        found["base"] = f"a random start of seed {config.seed}"
    for task in recipe.tasks:
        found[f"labels of task {task.name}"] = task.labels
    found |= {"tasks": tuple(task.name for task in recipe.tasks), "prompt": recipe.prompt}
    found |= {f"model {name}": value for name, value in dataclasses.asdict(dimensions).items()}
    found |= {"model.param_dtype": dtype, "prompt.slots": recipe.slot_format}
    found["tokenizer"] = Tokenizer.load(source.tokenizer_dir).fingerprint
    return found


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]} …"


def _check_dev(
    dataset: datasets.Dataset, runs: Sequence[str], sources: Sequence[ModelSource]
) -> None:
    """Raise InputError where there is no dev split, or a run had another one."""
    if not dataset.splits.get("dev"):
        raise InputError(
            f"data set {dataset.name} has no dev split, by which ingredients are chosen. Name one "
            "in data.dev, or hold one out with data.dev_fraction"
        )
    for run, source in zip(runs, sources, strict=True):
        assert source.run_dir is not None
        known = source.run_dir / model_files.DATA
        before = files.read_json(known).get("dev") if known.is_file() else None
        if before not in (None, dataset.fingerprints["dev"]):
            raise InputError(
                f"{run} was chosen by other dev records than those of {runs[0]} are now; a soup "
                "is of runs with the same. Bring them back, or give their place by "
                "--config.data.root"
            )


def _predict(opened: Opened, params: Params, dataset: datasets.Dataset) -> list[Prediction]:
    """Untempered predictions of all dev records."""
    records, size = dataset.splits["dev"], opened.config.eval.batch_size
    classifier = opened.classifier.with_params(params, opened.classifier.mesh)
    with logs.count("dev evaluation", len(records)) as advance:
        return classifier.predict(
            records, size, prompt=opened.prompt, progress=advance, tempered=False
        )


def _write(output: Path, first: Opened, dataset: datasets.Dataset, chosen: Chosen) -> None:
    """A run's folder with these parameters as its only checkpoint, and their temperature."""
    config, classifier = first.config, first.classifier
    text = model_text(classifier.model.config, config.model.param_dtype, config.model.quantize)
    recipe, best = classifier.recipe, chosen.best
    claims.claim(output, config, dataset.fingerprints, recipe, text, classifier.tokenizer)
    with Checkpoints(output, 1, *facts.best_metric(config, recipe.tasks)) as checkpoints:
        checkpoints.save(STEP, chosen.params, {"step": jnp.int32(STEP)}, None, best.values)
    tasks = calibration.scored_tasks(best.predictions, recipe.tasks)
    if tasks and config.eval.temperature != "none":
        found = calibration.fit(best.predictions, tasks)
        temperature = calibration.to_text(found, STEP, classifier.scoring or {})
        model_files.replace(output, {calibration.FILE: temperature})
