"""What a run fixes before its first step: data, tokenizer, examples, model and objective."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.model_dir import ModelSource, read_model
from jaxclf.core import files, logs
from jaxclf.core.errors import InputError
from jaxclf.data import datasets, prefixes
from jaxclf.data.batching import ANSWER
from jaxclf.data.datasets import Dataset
from jaxclf.data.encoder_inputs import encode
from jaxclf.data.examples import Tokens
from jaxclf.data.loader import Examples
from jaxclf.data.prefixes import NONE, SharedPrefixes
from jaxclf.data.tasks import Record, SlotFormat, Task, has_gold, head_labels
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.cutting import with_layers
from jaxclf.models.decoder_config import DecoderConfig
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.heads import HeadConfig
from jaxclf.models.registry import Model, ModelConfig
from jaxclf.models.t5 import T5Config
from jaxclf.prompts import answer_length, builder
from jaxclf.prompts.builder import Prompt, PromptSource
from jaxclf.prompts.examples import tokenize
from jaxclf.prompts.source import prompt_source
from jaxclf.runs.unlabelled import unlabelled
from jaxclf.training import losses
from jaxclf.training.losses import Objective, Term
from jaxclf.training.objectives import head_objective


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that is fixed before the first step."""

    dataset: Dataset
    tokenizer: Tokenizer
    model: Model
    recipe: Recipe
    prompt: PromptSource | None  # the recipe's, or a function that draws fresh examples
    examples: Examples  # the training split
    objective: Objective
    shared: SharedPrefixes = dataclasses.field(
        default_factory=SharedPrefixes
    )  # prompt prefixes that these have in common
    unlabelled: Sequence[Record] = ()  # those that the last of the examples are of

    @property
    def data_fingerprints(self) -> dict[str, str]:
        """Of the records by split, and of those that a teacher alone labels."""
        found = self.dataset.fingerprints
        if self.unlabelled:  # what is learned from, as the split train is
            found = found | {"unlabelled/train": datasets.fingerprint(self.unlabelled)}
        return found

    def fingerprints(self, base: ModelSource | None) -> dict[str, str]:
        """Of what has to be the same in all processes of a run."""
        return {
            "data": files.digest_of(json.dumps([self.dataset.fingerprint, self.data_fingerprints])),
            "tokenizer": self.tokenizer.fingerprint,
            "checkpoint": tree_store.fingerprint(base.manifest) if base is not None else "",
        }


def prepare(config: ConfigDict, workdir: Path, base: ModelSource | None) -> Setup:
    """Read the data, then the tokenizer, prompt and model that fit it.

    Nothing is allocated, and nothing written (see `claims`).
    """
    dataset = datasets.load(config.data, config.seed)
    if not dataset.splits.get("train"):
        raise InputError(f"data set {dataset.name} has no training records")
    datasets.scored_split(dataset, config.eval.split)  # raises where there is none
    dimensions = _dimensions(config, base)
    if registry.has_heads(config.model.output, dimensions):
        return _headed(config, workdir, base, dataset, dimensions)
    assert not isinstance(dimensions, EncoderConfig)
    return _generative(config, workdir, base, dataset, dimensions)


def _dimensions(config: ConfigDict, base: ModelSource | None) -> ModelConfig:
    """The checkpoint's dimensions; of a model that starts at random, those that its name has."""
    if base is None:
        return with_layers(registry.find(config.model.name), config.model.layers)
    dimensions, _ = read_model(base.model_json)
    if config.model.name:
        _say_other(dimensions, config)
    return with_layers(dimensions, config.model.layers)


def _generative(
    config: ConfigDict,
    workdir: Path,
    base: ModelSource | None,
    dataset: Dataset,
    dimensions: DecoderConfig | T5Config,
) -> Setup:
    """Classification as generation."""
    _refuse_for_decoders(config, dataset)
    if config.distil.teacher:
        raise InputError(
            f"distil.teacher is for models with heads; {config.model.name or 'the model'} writes "
            "its labels. Set model.output='head', or choose an encoder"
        )
    train_records = dataset.splits["train"]
    tokenizer = _named_tokenizer(config, workdir, base)
    prompt, source = prompt_source(config, dataset, tokenizer)
    answers = (
        prompt.lead + builder.answer(record, dataset.tasks, config.prompt.slots, prompt.lettered)
        for record in train_records
        if has_gold(record, dataset.tasks)
    )
    pieces = (piece.text for piece in (*prompt.before, *prompt.after))
    tokenizer = tokenizer or _trained_tokenizer(config, dataset, [*pieces], answers)
    recipe = recipe_of(config, dataset, prompt, tokenizer)
    if config.tune == "none":  # train records are examples in prompts at most
        train_records = []
    examples = tokenize(
        train_records,
        dataset.tasks,
        source,
        tokenizer,
        config.prompt.slots,
        config.train.max_length,
        truncate=config.data.truncate,
        apart=isinstance(dimensions, T5Config),
    )
    model = create_model(config, with_vocabulary(dimensions, tokenizer, base))
    objective = dataclasses.replace(
        losses.GENERATION, terms={ANSWER: Term(label_smoothing=config.loss.label_smoothing)}
    )
    shared = shared_prefixes(config, examples)
    return Setup(dataset, tokenizer, model, recipe, source, examples, objective, shared)


def recipe_of(
    config: ConfigDict, dataset: Dataset, prompt: Prompt, tokenizer: Tokenizer | None
) -> Recipe:
    """What a model is asked by this prompt, with room for an answer and thoughts before it.

    A server's tokenizer is not known: None.
    """
    slot_format, new_tokens = config.prompt.slots, config.eval.max_new_tokens
    known = dataset.tasks, dataset.splits.get("train", []), slot_format
    if not new_tokens and tokenizer is not None:
        new_tokens = answer_length.in_tokens(*known, prompt, tokenizer)
    elif not new_tokens:
        new_tokens = answer_length.in_characters(*known)
    return Recipe(
        tasks=dataset.tasks,
        prompt=prompt,
        slot_format=slot_format,
        max_length=config.train.max_length,
        max_new_tokens=new_tokens + (config.prompt.chain_of_thought_tokens if prompt.cue else 0),
        fallback=config.eval.fallback,
        seed=config.seed,
        first_line=config.eval.first_line,
    )


def shared_prefixes(config: ConfigDict, examples: Sequence[Tokens]) -> SharedPrefixes:
    """The prefixes that the examples of a micro-batch will share."""
    train = config.train
    if not train.share_prefix or not examples:
        return NONE
    per_batch = train.batch_size / train.gradient_accumulation_steps
    if train.pack:
        own = sum(len(example.text) + len(example.label) for example in examples)
        per_batch *= (train.row_length or train.max_length) * len(examples) / own
    return prefixes.find(examples, per_batch)


def _headed(
    config: ConfigDict,
    workdir: Path,
    base: ModelSource | None,
    dataset: Dataset,
    dimensions: ModelConfig,
) -> Setup:
    """Classification by heads, one a task."""
    if config.train.max_length > dimensions.max_position:
        raise InputError(
            f"train.max_length is {config.train.max_length:,}; {config.model.name or 'the model'} "
            f"has {dimensions.max_position:,} positions. Lower it: longer texts are cut"
        )
    if config.prompt.shots:
        raise InputError("prompt.shots is for models that write; heads read the text alone")
    if config.tune == "none":
        raise InputError(
            f"tune is 'none', but {config.model.name or 'the model'} has heads, which know nothing "
            "without training. Choose a decoder, with model.output=generate"
        )
    tokenizer = _named_tokenizer(config, workdir, base)
    tokenizer = tokenizer or _trained_tokenizer(config, dataset, [], [])
    beside = unlabelled(config, dataset)
    examples = encode(
        [*dataset.splits["train"], *beside],
        dataset.tasks,
        tokenizer,
        config.prompt.slots,
        config.train.max_length,
        truncate=config.data.truncate,
        hidden=bool(config.distil.teacher),
        text_at=dimensions.head.text_at,
        word_at=dimensions.head.word_at,
    )
    dimensions = with_vocabulary(dimensions, tokenizer, base)
    dimensions = with_heads(dimensions, dataset.tasks, config.prompt.slots)
    if isinstance(dimensions, T5Config) and dimensions.decodes:
        tokenizer.check_end(dimensions.end_id)
    recipe = Recipe(
        tasks=dataset.tasks,
        prompt=None,
        slot_format=config.prompt.slots,
        max_length=config.train.max_length,
        max_new_tokens=0,
        seed=config.seed,
    )
    labelled = [
        example
        for record, example in zip(dataset.splits["train"], examples, strict=False)
        if has_gold(record, dataset.tasks)
    ]
    objective = head_objective(
        config.loss, dataset.tasks, labelled, config.prompt.slots, config.distil.temperature
    )
    model = create_model(config, dimensions)
    return Setup(dataset, tokenizer, model, recipe, None, examples, objective, unlabelled=beside)


def with_heads(
    dimensions: ModelConfig, tasks: Sequence[Task], slot_format: SlotFormat
) -> ModelConfig:
    """The model with one head a task, and the pooler if they read one."""
    heads = tuple(
        HeadConfig(
            task.name,
            "token" if task.kind == "slots" else "sequence",
            max(1, len(head_labels(task, slot_format))),
        )
        for task in tasks
    )
    return dimensions.with_heads(heads)


def _refuse_for_decoders(config: ConfigDict, dataset: Dataset) -> None:
    """Raise InputError for what only heads can do."""
    for task in dataset.tasks:
        if task.kind not in ("class", "slots"):
            raise InputError(
                f"task {task.name} is of kind {task.kind}, for which {config.model.name} has no "
                "form of answer; set model.output=head, or choose an encoder, such as "
                "model.name=roberta_base"
            )
    if any(record.pair for found in dataset.splits.values() for record in found):
        raise InputError(
            "data.pair names a second text, which prompts have no place for; set "
            "model.output=head, choose an encoder, or put both texts into one column"
        )
    if config.loss.balanced or config.loss.class_weights or config.loss.task_weights:
        raise InputError(
            "loss.balanced, loss.class_weights and loss.task_weights are for heads: a generated "
            "answer has one loss over its tokens. Set model.output=head, or leave them"
        )


def _named_tokenizer(
    config: ConfigDict, workdir: Path, base: ModelSource | None
) -> Tokenizer | None:
    """The run's own if it resumes, else the named one or the checkpoint's; None: there is none."""
    own = workdir / "tokenizer"
    if own.is_dir():
        return Tokenizer.load(own)
    if config.tokenizer.path:
        return Tokenizer.load(config.tokenizer.path)
    return None if base is None else Tokenizer.load(base.tokenizer_dir)


def _trained_tokenizer(
    config: ConfigDict, dataset: Dataset, pieces: Sequence[str], answers: Iterable[str]
) -> Tokenizer:
    """One that learns from `pieces` of the prompt, the training texts and the `answers`."""
    train_records = dataset.splits["train"]
    texts = [text for record in train_records for text in (record.text, record.pair) if text]
    return Tokenizer.train([*pieces, *texts, *answers], config.tokenizer.vocab_size)


Dimensions = TypeVar("Dimensions", bound=ModelConfig)


def with_vocabulary(
    dimensions: Dimensions, tokenizer: Tokenizer, base: ModelSource | None
) -> Dimensions:
    """Dimensions that fit the tokenizer; raises InputError if the base has another vocabulary."""
    if base is None:
        # A multiple of 64 keeps matmuls aligned and splits over devices.
        vocab_size = math.ceil(tokenizer.vocab_size / 64) * 64
        dimensions = dataclasses.replace(dimensions, vocab_size=vocab_size)
        if isinstance(dimensions, EncoderConfig) and dimensions.position_offset:
            # Where transformers begins to count, so that an export means the same there.
            dimensions = dataclasses.replace(dimensions, position_offset=tokenizer.pad_id + 1)
        if isinstance(dimensions, T5Config):  # as in the released models
            ids = {"start_id": tokenizer.pad_id, "end_id": tokenizer.eos_id}
            dimensions = dataclasses.replace(dimensions, **ids)
        return dimensions
    if tokenizer.vocab_size > dimensions.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, the checkpoint's embedding "
            f"{dimensions.vocab_size:,} rows; they do not belong together"
        )
    return dimensions


def _say_other(found: ModelConfig, config: ConfigDict) -> None:
    """Say where a checkpoint is not the model that the config names: its own dimensions count."""
    named, name = registry.find(config.model.name), config.model.name
    families = found.family, named.family
    differences = [f"a model of kind {families[0]}, not {families[1]}"]
    if families[0] == families[1]:
        differences = [
            f"{field.name} {getattr(found, field.name)}, not {getattr(named, field.name)}"
            for field in dataclasses.fields(named)
            if getattr(found, field.name) != getattr(named, field.name)
            and field.name not in _NOT_DIMENSIONS
        ]
    if differences:
        logs.say(
            f"model.checkpoint is used as it is, which model.name {name} does not describe: "
            f"{'; '.join(differences)}"
        )


# What two checkpoints of one model may differ in.
_NOT_DIMENSIONS = (
    "initializer_std",
    "initializer_factor",
    "max_position",
    "dropout",
    "attention_dropout",
    "head_dropout",
    "pooler",
    "heads",
    "prefix",
)
