"""A finished ensemble, or any other run, ready to label texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax

from jaxclf import report
from jaxclf.checkpoint import model_files, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.checkpoint.model_dir import FindModel, find_base, find_model
from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers.opening import Opened, open_run
from jaxclf.config import loading
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.ensemble import attens, features
from jaxclf.ensemble.classifier import EnsembleClassifier
from jaxclf.ensemble.features import AdaptedBase
from jaxclf.ensemble.fitting import combiner_of
from jaxclf.ensemble.modules import FromPeft, Modules


def is_ensemble(path: str | Path) -> bool:
    """Whether the folder is that of a run of an ensemble."""
    path = Path(path) / "config.json"
    return path.is_file() and bool(loading.read(path).get("attens", {}).get("modules"))


def open_ensemble(
    path: str | Path,
    overrides: Sequence[str] = (),
    find: FindModel = find_model,
    from_peft: FromPeft | None = None,
) -> Opened:
    """Load a finished run, ready to label texts for all of its targets.

    Arguments as of `open_run`. Raises ArtifactError where a part is missing or damaged,
    InputError where the run did not finish, or has several prompts.
    """
    path = Path(path)
    model_files.check(path)
    config = loading.read_trained(path / "config.json", overrides)
    recipe = Recipe.load(path / "task.json")
    if not (path / report.REPORT).is_file():
        raise InputError(f"{path}: the ensemble is not finished; run the command of training again")
    if recipe.prompt is not None and len(config.attens.targets) > 1:
        raise InputError(
            f"{path}: each target of a decoder has a prompt of its own; train one each"
        )
    written = report.read(path)
    facts = written["attens"]
    base = find_base(config, path, find)
    modules = Modules(config, path, base, from_peft)
    wanted = {name for task in recipe.tasks for name in facts[task.name]["modules"]}
    with sharding.use(config.mesh) as mesh:
        seen = modules.open(sorted(wanted))
        _check_parts(path, written["model"].get("fingerprints", {}), seen)
        names, stacks = features.grouped(seen.adapters)
        combiners, trained = {}, {}
        for task in recipe.tasks:
            chosen = facts[task.name]["modules"]
            combiner = combiner_of(config, modules.dimensions.hidden_size, task)
            combiners[task.name] = combiner, tuple(1 + names.index(name) for name in chosen)
            abstract = jax.eval_shape(partial(attens.init, combiner), jax.random.key(0))
            folder = path / "combiners" / f"{task.name}-{len(chosen)}"
            with Checkpoints(folder, 1, "") as checkpoints:
                restored = checkpoints.restore_params("last", abstract)
                trained[task.name] = jax.device_put(restored, sharding.whole())
    classifier = EnsembleClassifier(
        seen.model, modules.tokenizer, recipe, modules.pooling, combiners
    )
    params = {"base": seen.params, "modules": stacks, "combiners": trained}
    source = dataclasses.replace(
        base, manifest=tree_store.describe(trained), run_dir=path, step=config.attens.epochs
    )
    parts = seen.fingerprint, *seen.fingerprints.values()
    return Opened(classifier.with_params(params, mesh), config, source, parts=parts)


def _check_parts(path: Path, known: Mapping[str, str], seen: AdaptedBase) -> None:
    """Raise ArtifactError where the combiners have learnt from other parts than there are."""
    for name, found in {features.BASE: seen.fingerprint, **seen.fingerprints}.items():
        if known.get(name, found) != found:
            raise ArtifactError(
                f"{path}: its combiners have learnt from another {name}: the fingerprint was "
                f"{known[name][:16]} and is {found[:16]}. Restore it from a copy, or give its "
                "place by --config.attens.adapters or --config.model.checkpoint"
            )


def open_any(
    path: str | Path,
    step: Which,
    overrides: Sequence[str] = (),
    find: FindModel = find_model,
    from_peft: FromPeft | None = None,
) -> Opened:
    """An ensemble or any other run, as the commands open it; an ensemble has no other steps."""
    if is_ensemble(path):
        return open_ensemble(path, overrides, find, from_peft)
    return open_run(Path(path), step, overrides, find)
