"""A classifier ready to label texts: model, parameters, tokenizer, tasks and prompt together."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxclf import config as configs
from jaxclf.checkpoints import ModelSource, Which, load_params, read_model, resolve
from jaxclf.data import prompts
from jaxclf.data.datasets import Dataset
from jaxclf.data.prompts import Prompt
from jaxclf.data.tasks import Record
from jaxclf.data.tokenize import Tokenizer
from jaxclf.errors import InputError
from jaxclf.generation import GenerativeClassifier, PromptSource
from jaxclf.models import zoo
from jaxclf.models.zoo import Model, ModelConfig
from jaxclf.recipe import Recipe
from jaxclf.scoring import HeadClassifier
from jaxclf.shapes import Params

Classifier = GenerativeClassifier | HeadClassifier


def make_classifier(model: Model, tokenizer: Tokenizer, recipe: Recipe) -> Classifier:
    """The classifier of the model's kind: by generation or by heads."""
    kind = HeadClassifier if model.is_encoder else GenerativeClassifier
    return kind(model, tokenizer, recipe)


def prompt_source(config: ConfigDict, dataset: Dataset) -> tuple[Prompt, PromptSource]:
    """The run's fixed prompt, and what training and evaluation use: it, or fresh examples."""
    fields, train_records = config.prompt, dataset.splits["train"]

    def build(index: int | None = None, record: Record | None = None) -> Prompt:
        exclude = record.id if record else None
        shots = prompts.draw_shots(train_records, fields.shots, config.seed, index, exclude)
        return prompts.build(fields, dataset.domain, dataset.tasks, shots)

    fixed = build()
    return fixed, build if fields.fresh_shots and fields.shots else fixed


def create_model(config: ConfigDict, dimensions: ModelConfig) -> Model:
    """The model in the config's dtypes; `auto` computes in float32 on CPU, else in bfloat16."""
    if (rate := config.model.dropout) >= 0:
        names = ("dropout", "attention_dropout", "head_dropout")
        present = {field.name for field in dataclasses.fields(dimensions)}
        dimensions = dataclasses.replace(dimensions, **{n: rate for n in names if n in present})
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return zoo.create(
        dimensions,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
    )


@dataclasses.dataclass(frozen=True)
class Opened:
    """A trained run, ready to label."""

    classifier: Classifier
    params: Params
    config: ConfigDict
    source: ModelSource


def which(text: str) -> Which:
    """Read `best`, `last` or a step's number; raises InputError."""
    if text in ("best", "last"):
        return text
    if text.isdecimal():
        return int(text)
    raise InputError(f"--step {text}: expected best, last or the number of a step")


def open_run(path: Path, step: Which = "best", overrides: Sequence[str] = ()) -> Opened:
    """Load what a run saved: a run directory, or a step directory of one.

    `overrides` (`data.root=…`) change the run's config. Raises ArtifactError where a part is
    missing, damaged or does not fit, InputError where the path holds no run.
    """
    source = resolve(path, step)
    if source.run_dir is None:
        raise InputError(
            f"{path} is a converted model without a prompt or labels; give a run directory made by "
            "jaxclf.train"
        )
    config = configs.read(source.run_dir / "config.json")
    with config.unlocked():
        configs.override(config, overrides)
    recipe = Recipe.load(source.run_dir / "task.json")
    dimensions, _ = read_model(source.model_json)
    model = create_model(config, dimensions)
    classifier = make_classifier(model, Tokenizer.load(source.tokenizer_dir), recipe)
    return Opened(classifier, load_params(source, model.abstract), config, source)
