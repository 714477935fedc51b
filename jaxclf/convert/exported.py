"""A Hugging Face classifier as one of ours: what to ask it, and how to read its answer.

An export of a run says so itself, in `jaxclf.json` beside its config.json: the run's tasks, prompt
and lengths, how labels are decoded, and the temperatures of its probabilities. Of another
classifier the labels and their kind stand in config.json, as in transformers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.checkpoint.model_dir import read_model
from jaxclf.classifiers import transfer
from jaxclf.classifiers.opening import Opened, make_classifier
from jaxclf.config import defaults, identity, loading
from jaxclf.convert import attributes, hf_import
from jaxclf.core import files, streams
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import read_json
from jaxclf.data import datasets
from jaxclf.data.tasks import OTHER, SlotFormat, Task, TaskKind
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.metrics import calibration
from jaxclf.models import registry
from jaxclf.models.from_config import create_model
from jaxclf.models.heads import HeadConfig
from jaxclf.models.t5 import T5Config

FILE = "jaxclf.json"
_KINDS: dict[Any, TaskKind] = {
    "single_label_classification": "class",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}


def write(directory: Path, run_dir: Path, step: int | None, head: HeadConfig | None) -> None:
    """Write into an export what the run knows of itself; `head`: the one that went along."""
    recipe = Recipe.load(run_dir / "task.json")
    if head is not None:
        recipe = dataclasses.replace(
            recipe, tasks=tuple(task for task in recipe.tasks if task.name == head.name)
        )
    config = loading.read(run_dir / "config.json")
    evaluation = config.eval
    temperatures = calibration.of_run(run_dir, step, evaluation, _scoring(recipe, config))
    fields = {
        "recipe": dataclasses.asdict(recipe),
        "eval": evaluation.to_dict(),
        "temperatures": {
            task.name: temperatures[task.name] for task in recipe.tasks if task.name in temperatures
        },
    }
    files.write_json(directory / FILE, files.sealed(fields))


def _scoring(recipe: Recipe | None, config: ConfigDict) -> dict[str, Any] | None:
    """As of the classifier that answers: probabilities of heads depend on no decoding."""
    is_decoder = recipe is not None and recipe.prompt is not None
    return Decoding.of(config).scoring if is_decoder else {}


def open_exported(source: str, overrides: Sequence[str] = (), *, scores: bool = False) -> Opened:
    """Load a classifier of Hugging Face's format: a directory, a hub id or `package:NAME/FOLDER`.

    `overrides` (`eval.batch_size=8`) change the defaults, or what the export says of itself.
    `scores`: it is to be scored on `config.data`, and one that does not say itself what it is asked
    takes the task and its labels from there. Raises InputError where it is no classifier or its
    labels cannot be known, ArtifactError where it is damaged, StorageError where the hub does not
    give it.
    """
    directory = hf_import.locate(source)
    if not (directory / "config.json").is_file():
        adapters = (directory / "adapter_config.json").is_file()
        remedy = (
            "It holds adapters alone: make a model of them and their base with python -m "
            "jaxclf.convert.from_peft and jaxclf.convert.to_hf --merge"
            if adapters
            else "Expected a run directory of jaxclf.train, a step of one, or a Hugging Face "
            "classifier (config.json and safetensors)"
        )
        raise InputError(f"{directory} holds no classifier. {remedy}")
    theirs = read_json(directory / "config.json")
    config = defaults.default()
    with config.unlocked():
        config.model.name, config.model.checkpoint = "", source
    recipe: Recipe | None = None
    temperatures: dict[str, float] = {}
    if (directory / FILE).is_file():
        recipe, temperatures = _read(directory / FILE, config)
    before, config = config, loading.changed(config, overrides)
    identity.check_evaluation(before, config)
    if recipe is not None:
        recipe = recipe.under(config, before)
    if config.eval.temperature == "none" or _scoring(recipe, before) != _scoring(recipe, config):
        temperatures = {}
    found = hf_import.resolve(source, config.model.quantize)
    tokenizer = Tokenizer.load(found.tokenizer_dir)
    dimensions, _ = read_model(found.model_json)
    if registry.has_heads("auto", dimensions):
        if not dimensions.heads:
            raise InputError(
                f"{directory} is an encoder without a head that classifies; expected "
                "…ForSequenceClassification or …ForTokenClassification. Train one from it: "
                "config.model.checkpoint, or jaxclf.TextClassifier"
            )
        if recipe is None:
            longest = min(dimensions.max_position, tokenizer.hf.model_max_length)
            recipe = _recipe(theirs, dimensions.heads[0], longest, directory / "config.json")
            if scores:
                recipe = _of_data(recipe, config, directory)
        (head,) = dimensions.heads
        head = dataclasses.replace(head, name=recipe.tasks[0].name)
        dimensions = dataclasses.replace(dimensions, heads=(head,))
        if isinstance(dimensions, T5Config) and dimensions.decodes:
            tokenizer.check_end(dimensions.end_id)
    elif recipe is None:
        raise InputError(
            f"{directory} generates text, and nothing there says which labels it is asked for: "
            f"{FILE} is missing, which jaxclf.convert.to_hf writes beside an exported run. Ask it "
            "with python -m jaxclf.prompt, or train it on your data"
        )
    model = create_model(config, dimensions)
    classifier = make_classifier(model, tokenizer, recipe, config)
    with sharding.use(config.mesh) as mesh:
        plan = transfer.plan(model, found, "keep", recipe)
        params = transfer.load(model, found, plan, streams.key(config.seed, streams.INITIALIZATION))
    return Opened(classifier.with_params(params, mesh, temperatures), config, found)


def _read(path: Path, config: ConfigDict) -> tuple[Recipe, dict[str, float]]:
    """The recipe and temperatures of an export; its way of decoding goes into `config`."""
    fields = files.unsealed(path)
    try:
        recipe = Recipe.parse(fields["recipe"], path)
        with config.unlocked():
            for name, value in fields["eval"].items():
                if name in config.eval:
                    config.eval[name] = value
        return recipe, {str(name): float(value) for name, value in fields["temperatures"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} was not written by jaxclf.convert.to_hf ({error!r}). Export the run again, or "
            "remove the file to take the labels from config.json"
        ) from error


def _recipe(theirs: Mapping[str, Any], head: HeadConfig, longest: int, path: Path) -> Recipe:
    """What a classifier that we did not train is asked: its labels, by its config.json."""
    labels = attributes.labels(theirs, path)
    slot_format: SlotFormat = "names"
    if head.kind == "token":
        slots, slot_format = _slots(labels, path)
        task = Task("slots", "slots", slots)
    else:
        problem = theirs.get("problem_type")
        if problem not in (None, *_KINDS):
            raise InputError(f"{path}: problem_type is {problem!r}; known: {', '.join(_KINDS)}")
        # As transformers does: one score is a number, several are classes of which one holds.
        kind = _KINDS.get(problem) or ("regression" if len(labels) == 1 else "class")
        task = Task("label", kind, () if kind == "regression" else labels)
    return Recipe((task,), None, slot_format, max_length=longest, max_new_tokens=0)


def _of_data(recipe: Recipe, config: ConfigDict, directory: Path) -> Recipe:
    """The recipe with the data's one task in the place of its own, which is of the same kind."""
    dataset = datasets.load(config.data, config.seed)
    (own,) = recipe.tasks
    same = [task for task in dataset.tasks if task.kind == own.kind]
    if len(dataset.tasks) != 1 or not same:
        found = ", ".join(f"{task.name} ({task.kind})" for task in dataset.tasks)
        raise InputError(
            f"{directory} has one head, of kind {own.kind}; data set {dataset.name} has {found}. "
            "Choose one of that kind with --config.data.task"
        )
    slots = config.prompt.slots if own.kind == "slots" else recipe.slot_format
    return dataclasses.replace(recipe, tasks=dataset.tasks, slot_format=slots)


def _slots(labels: Sequence[str], path: Path) -> tuple[tuple[str, ...], SlotFormat]:
    """The slots that a head of tokens scores: BIO tags (O, B-x, I-x …), or Other and names."""
    if OTHER in labels:
        return tuple(label for label in labels if label != OTHER), "names"
    slots = tuple(dict.fromkeys(label[2:] for label in labels if label != "O"))
    if set(labels) == {"O", *(f"{mark}-{name}" for name in slots for mark in "BI")}:
        return slots, "bio"
    raise InputError(
        f"{path}: id2label is {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}; expected O "
        f"with B-x and I-x of each slot x, or {OTHER} and the slots' names"
    )
