"""A classifier ready to label texts: model, parameters, tokenizer, tasks and prompt together."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxclf.adapters import lora
from jaxclf.checkpoint.model_dir import (
    FindModel,
    ModelSource,
    check_base,
    find_base,
    find_model,
    load_adapters,
    load_params,
    read_model,
    resolve,
)
from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers import transfer
from jaxclf.classifiers.base import LocalClassifier
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.classifiers.heads import HeadClassifier
from jaxclf.config import loading
from jaxclf.core.errors import InputError
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.metrics import calibration
from jaxclf.models.from_config import create_model
from jaxclf.models.registry import Model


def make_classifier(
    model: Model, tokenizer: Tokenizer, recipe: Recipe, config: ConfigDict
) -> LocalClassifier:
    """The classifier of the model's kind: by heads, or by generation as `config.eval` says."""
    if model.is_encoder:
        return HeadClassifier(model, tokenizer, recipe)
    return GenerativeClassifier(model, tokenizer, recipe, Decoding.of(config))


@dataclasses.dataclass(frozen=True)
class Opened:
    """A trained run, ready to label."""

    classifier: LocalClassifier
    config: ConfigDict
    source: ModelSource


def open_run(
    path: Path,
    step: Which = "best",
    overrides: Sequence[str] = (),
    find: FindModel = find_model,
) -> Opened:
    """Load what a run saved: a run directory, or a step directory of one.

    `overrides` (`data.root=…`) change the run's config. `find(checkpoint, quantise)`: where the
    base of a run of adapters lies. Raises ArtifactError where a part is missing, damaged or does
    not fit (a base that is another one too), InputError where the path holds no run.
    """
    source = resolve(path, step)
    if source.run_dir is None:
        raise InputError(
            f"{path} is a converted model without a prompt or labels; give a run directory made by "
            "jaxclf.train"
        )
    config = loading.read(source.run_dir / "config.json")
    with config.unlocked():
        loading.override(config, overrides)
    recipe = Recipe.load(source.run_dir / "task.json")
    dimensions, _ = read_model(source.model_json)
    model = create_model(config, dimensions)
    classifier = make_classifier(model, Tokenizer.load(source.tokenizer_dir), recipe, config)
    with sharding.use(config.mesh) as mesh:
        if source.adapters is None:
            params = load_params(source, model.abstract)
        else:
            base = find_base(config, source.run_dir, find)
            check_base(source.adapters, base, source.run_dir)
            plan = transfer.plan(model, base, config.model.heads, recipe)
            frozen = transfer.load(model, base, plan, jax.random.key(config.seed))
            params = lora.bind(frozen, load_adapters(source, frozen))
    temperatures = calibration.of_run(source.run_dir, source.step, config.eval)
    return Opened(classifier.with_params(params, mesh, temperatures), config, source)
