"""Whatever labels texts: a run, an ensemble, or a classifier in Hugging Face's format."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxclf import report
from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers.mean import MeanClassifier
from jaxclf.classifiers.opening import Opened
from jaxclf.config import loading
from jaxclf.convert import exported, hf_import, peft_import
from jaxclf.core.errors import InputError
from jaxclf.decoding.recipe import Recipe
from jaxclf.ensemble.opening import open_any
from jaxclf.prompts.source import has_own_prompts
from jaxclf.runs.served_teacher import asks_server, own_prompts, served_teacher
from jaxclf.runs.teacher import Labeller, Teacher


def open_source(
    source: str | Path, step: Which = "best", overrides: Sequence[str] = (), *, scores: bool = False
) -> Opened:
    """What a path, a hub id or `package:NAME/FOLDER` names, ready to label; of several with commas
    between, the mean of their probabilities.

    `step`: of a run that kept several. `scores`: it will be scored on the data of its config, whose
    labels a classifier that we did not train is then read by. Raises InputError where there is
    none, ArtifactError where a part is missing or damaged, StorageError where the hub does not give
    it.
    """
    path = Path(source).expanduser()
    if not path.exists() and "," in str(source):
        return _mean(str(source), step, overrides)
    if is_run(path) or _is_nothing(path, str(source)):
        return open_any(path, step, overrides, hf_import.resolve, peft_import.convert)
    return exported.open_exported(str(source), overrides, scores=scores)


def _mean(source: str, step: Which, overrides: Sequence[str]) -> Opened:
    """Several classifiers as one; they all lie in memory."""
    names = [each.strip() for each in source.split(",")]
    if not all(names):
        raise InputError(f"{source!r} names nothing between two commas; expected RUN,RUN")
    members = [open_source(name, step, overrides) for name in names]
    for name, each in zip(names, members, strict=True):
        if each.prompt is not None:
            raise InputError(
                f"{name} has other examples in each prompt (prompt.fresh_shots or "
                "prompt.choose='similar'), which a mean does not know. Leave it out"
            )
    classifier = MeanClassifier([each.classifier for each in members], names)
    first = members[0]
    manifest = {
        f"{number}/{path}": leaf
        for number, each in enumerate(members)
        for path, leaf in each.source.manifest.items()
    }
    whole = dataclasses.replace(
        first.source, manifest=manifest, run_dir=None, step=None, adapters=None
    )
    parts = tuple(each.fingerprint for each in members)
    return Opened(classifier, first.config, whole, parts=parts, facts=_sums(names, members))


def _sums(names: Sequence[str], members: Sequence[Opened]) -> dict[str, Any]:
    """What the members cost together, as their reports have it."""
    reports = [
        report.read(each.source.run_dir)
        for each in members
        if each.source.run_dir is not None and (each.source.run_dir / report.REPORT).is_file()
    ]
    model: dict[str, Any] = {"name": f"mean of {len(members)}", "members": [*names]}
    train: dict[str, Any] = {}
    if len(reports) == len(members):
        for part, name, found in (
            ("model", "parameters", model),
            ("model", "trained_parameters", model),
            ("train", "seconds", train),
        ):
            values = [each[part].get(name) for each in reports]
            if all(type(value) in (int, float) for value in values):
                found[name] = sum(values)
    return {"model": model, "train": train}


def open_teacher(source: str, folder: Path) -> Teacher:
    """What `distil.teacher` names: anything that `open_source` opens, or a folder of
    `jaxclf.prompt` with an `api.model`, whose answers are kept in `folder`.

    Its probabilities are those of all labels, exact and as the model gives them. Raises what
    `open_source` does, and InputError where each text has examples of its own in its prompt, which
    are drawn from other texts than these.
    """
    path = Path(source).expanduser()
    if asks_server(path):
        return served_teacher(path, source, folder)

    def load() -> Labeller:
        return _labeller(open_source(source, overrides=_EXACT))

    if is_run(path):
        run_dir = path if (path / "task.json").is_file() else path.parent.parent
        recipe = Recipe.load(run_dir / "task.json")
        config = run_dir / "config.json"
        if config.is_file() and has_own_prompts(loading.read(config)):
            raise own_prompts(source)
        return Teacher(source, recipe, load)
    opened = open_source(source, overrides=_EXACT)
    return Teacher(source, opened.classifier.recipe, lambda: _labeller(opened))


def _labeller(opened: Opened) -> Labeller:
    return Labeller(opened.classifier, opened.fingerprint, opened.config.eval.batch_size)


_EXACT = ("eval.decoding=score", "eval.score_bound=0.0", "eval.temperature=none")


def is_run(path: Path) -> bool:
    """Whether it is a folder of ours: a run, a step of one, or a converted model."""
    ours = ("task.json", "checkpoints", "meta", "params")
    return path.is_dir() and any((path / name).exists() for name in ours)


def _is_nothing(path: Path, source: str) -> bool:
    """Whether it can only be a mistyped run: no classifier of the hub has such a name."""
    return not path.exists() and not source.startswith("package:") and source.count("/") != 1
