"""A classifier ready to label texts: model, parameters, tokenizer, tasks and prompt together."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.adapters import lora
from jaxclf.checkpoint import model_files, tree_store
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
from jaxclf.core import files, streams
from jaxclf.core.errors import InputError
from jaxclf.data import datasets
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.metrics import calibration
from jaxclf.models.from_config import create_model
from jaxclf.models.registry import Model
from jaxclf.prompts.builder import PromptSource
from jaxclf.prompts.source import has_own_prompts, prompt_source


def make_classifier(
    model: Model, tokenizer: Tokenizer, recipe: Recipe, config: ConfigDict
) -> LocalClassifier:
    """The classifier of the model's kind: by heads, or by generation as `config.eval` says."""
    if model.has_heads:
        return HeadClassifier(model, tokenizer, recipe)
    return GenerativeClassifier(model, tokenizer, recipe, Decoding.of(config))


@dataclasses.dataclass(frozen=True)
class Opened:
    """A trained run, ready to label.

    prompt: what texts are asked with where each has a prompt of its own; None: the recipe's.
    parts: fingerprints of parameters that are not in the source's manifest. facts: what a report
    says of model and training, where no run of its own does.
    """

    classifier: LocalClassifier
    config: ConfigDict
    source: ModelSource
    prompt: PromptSource | None = None
    parts: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all that a label depends on beside the text."""
        classifier, model = self.classifier, self.config.model
        parts = {
            "parameters": [tree_store.fingerprint(self.source.manifest), *self.parts],
            "tokenizer": classifier.tokenizer.fingerprint,
            "recipe": dataclasses.asdict(classifier.recipe),
            "decoding": dataclasses.asdict(Decoding.of(self.config)),
            "temperatures": dict(classifier.temperatures),
            "model": dataclasses.asdict(classifier.model.config),
            "precision": [model.dtype, model.param_dtype, model.quantize],
            "prompt": self.config.prompt.to_dict() if self.prompt else None,
        }
        return files.digest_of(json.dumps(parts, sort_keys=True))


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
    trained = source.run_dir / "config.json"
    config = loading.read_trained(trained, overrides)
    recipe = Recipe.load(source.run_dir / "task.json").under(config, loading.read(trained))
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
            start = streams.key(config.seed, streams.INITIALIZATION)
            frozen = transfer.load(model, base, plan, start)
            params = lora.bind(frozen, load_adapters(source, frozen))
    scoring = classifier.scoring
    temperatures = calibration.of_run(source.run_dir, source.step, config.eval, scoring)
    classifier = classifier.with_params(params, mesh, temperatures)
    prompts = _own_prompts(config, source.run_dir, recipe, classifier.tokenizer)
    return Opened(classifier, config, source, prompts)


def _own_prompts(
    config: ConfigDict, run_dir: Path, recipe: Recipe, tokenizer: Tokenizer
) -> PromptSource | None:
    """Where each text's prompt has examples of its own: what chooses them from the training split.

    Raises InputError where that is not the split that the run has learnt from.
    """
    if recipe.prompt is None or not has_own_prompts(config):
        return None
    dataset = datasets.load(config.data, config.seed)
    known = run_dir / model_files.DATA
    if known.is_file() and files.read_json(known).get("train") != dataset.fingerprints["train"]:
        raise InputError(
            f"the training split of data set {dataset.name} is not the one that {run_dir} was "
            "trained on, and each prompt takes its examples from that. Give the same records, by "
            "--config.data.root or --config.data.train"
        )
    return prompt_source(config, dataset, tokenizer)[1]
