"""A classifier ready to label texts: model, parameters, tokenizer, tasks and prompt together."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxclf.adapters import lora
from jaxclf.checkpoint.checkpoints import (
    ModelSource,
    Which,
    check_base,
    load_adapters,
    load_params,
    quantisation,
    read_model,
    resolve,
)
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.classifiers.heads import EnsembleClassifier, HeadClassifier
from jaxclf.config import loading
from jaxclf.core.errors import InputError
from jaxclf.core.types import Params
from jaxclf.data.datasets import Dataset
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.metrics import calibration
from jaxclf.models import registry
from jaxclf.models.attention import BY_BACKEND, Implementation
from jaxclf.models.kernels import Quantise
from jaxclf.models.registry import Model, ModelConfig
from jaxclf.prompts import builder, few_shot
from jaxclf.prompts.builder import Prompt, PromptSource
from jaxclf.runs import transfer

Classifier = GenerativeClassifier | HeadClassifier | EnsembleClassifier

FindModel = Callable[[str, Quantise], ModelSource]


def find_model(checkpoint: str, quantise: Quantise = "none") -> ModelSource:
    """A run or model directory of ours; raises InputError where it is quantised otherwise.

    The commands pass `jaxclf.convert.from_hf.resolve` instead, which converts others on the way.
    """
    source = resolve(checkpoint)
    if (found := quantisation(source)) != quantise:
        raise InputError(
            f"model.quantise is {quantise!r}; the kernels of {checkpoint} are {found!r}. Set it to "
            "that, or give the checkpoint that it was converted from"
        )
    return source


def make_classifier(
    model: Model, tokenizer: Tokenizer, recipe: Recipe, config: ConfigDict
) -> Classifier:
    """The classifier of the model's kind: by heads, or by generation as `config.eval` says."""
    if model.is_encoder:
        return HeadClassifier(model, tokenizer, recipe)
    return GenerativeClassifier(model, tokenizer, recipe, Decoding.of(config))


def decoding_facts(classifier: Any) -> dict[str, Any]:
    """What a report says under `decoding`, which decoders alone have."""
    return {"decoding": classifier.facts()} if isinstance(classifier, GenerativeClassifier) else {}


def prompt_source(
    config: ConfigDict, dataset: Dataset, draw: int = 0, order: int = 0
) -> tuple[Prompt, PromptSource]:
    """The run's fixed prompt, and what training and evaluation use: it, or one for each text.

    `draw`, `order`: of the examples, see `shots.chooser`.
    """
    fields = config.prompt
    choose = few_shot.chooser(
        fields, dataset.splits["train"], dataset.tasks, config.seed, draw, order
    )

    def build(index: int | None = None, record: Record | None = None) -> Prompt:
        return builder.build(fields, dataset.domain, dataset.tasks, choose(index, record))

    fixed = build()
    of_its_own = fields.fresh_shots or fields.get("choose") == "similar"
    return fixed, build if fields.shots and of_its_own else fixed


def create_model(config: ConfigDict, dimensions: ModelConfig) -> Model:
    """The model in the config's dtypes, quantised and with the prefix that it asks for.

    `auto` computes in float32 on CPU, else in bfloat16.
    """
    dimensions = dataclasses.replace(dimensions, prefix=config.model.prefix)
    if (rate := config.model.dropout) >= 0:
        names = ("dropout", "attention_dropout", "head_dropout")
        present = {field.name for field in dataclasses.fields(dimensions)}
        dimensions = dataclasses.replace(dimensions, **{n: rate for n in names if n in present})
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return registry.create(
        dimensions,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
        unroll=config.model.unroll,
        quantise=config.model.quantise,
        attention=implementation(config),
    )


def implementation(config: ConfigDict) -> Implementation:
    """How attention is computed: as the config says, or by the backend.

    GPUs before Ampere, and those that are not NVIDIA's, attend plainly: cuDNN has no form for them.
    """
    name, backend = config.model.attention, jax.default_backend()
    if name != "auto":
        return name
    capability = getattr(jax.devices()[0], "compute_capability", "")
    if backend == "gpu" and not re.match(r"([89]|\d\d+)\.", str(capability)):
        return "plain"
    return BY_BACKEND.get(backend, "plain")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A trained run, ready to label.

    temperatures: of the class tasks that have one, for the probabilities of the predictions.
    """

    classifier: Classifier
    params: Params
    config: ConfigDict
    source: ModelSource
    mesh: Mesh  # that the parameters lie on
    temperatures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def which(text: str) -> Which:
    """Read `best`, `last` or a step's number; raises InputError."""
    if text in ("best", "last"):
        return text
    if text.isdecimal():
        return int(text)
    raise InputError(f"--step {text}: expected best, last or the number of a step")


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
    temperatures = {}
    if config.eval.get("temperature") == "dev":  # which older runs do not have
        temperatures = calibration.load(source.run_dir / calibration.FILE, source.step)
    return Opened(classifier, params, config, source, mesh, temperatures)


def find_base(config: ConfigDict, run_dir: Path, find: FindModel) -> ModelSource:
    """The frozen base of a run of adapters: what the config names, or the run's own."""
    if config.model.checkpoint:
        return find(config.model.checkpoint, config.model.quantise)
    return resolve(run_dir / "base")
