"""What a config's programs read: batches of its own data, as its loader makes them.

Neither data nor tokenizer need be on the machine that plans. What is missing is stood in for, and
`Workload.notes` say so:

    data        texts and labels of typical length, of which one text fills train.max_length
    tokenizer   one trained on the texts

Nothing is fetched. The batches are the largest that a run meets: of its longest texts.
"""

import dataclasses
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.data import batching, datasets, loader, prefixes, published
from jaxclf.data.batching import ANSWER, Batch, PromptBatch
from jaxclf.data.datasets import Dataset
from jaxclf.data.encoder_inputs import Encoded, encode
from jaxclf.data.examples import Tokens
from jaxclf.data.loader import Examples
from jaxclf.data.prefixes import NONE, SharedPrefixes
from jaxclf.data.splits import spread
from jaxclf.data.tasks import Record, Task, has_gold, words
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.registry import ModelConfig
from jaxclf.models.t5 import T5Config
from jaxclf.prompts import builder as prompts
from jaxclf.prompts.examples import tokenize
from jaxclf.prompts.source import prompt_source
from jaxclf.runs.setup import recipe_of, shared_prefixes
from jaxclf.training import losses
from jaxclf.training.losses import Objective, Term
from jaxclf.training.objectives import head_objective

# Texts that are encoded: so many of the longest, and so many at even distances, for the mean.
_LONGEST, _SPREAD = 16, 500
# Of a tokenizer that stands in. Trained on posts of 20 Newsgroups it has 3.3 characters a
# token; Llama 3's own has 3.6, Llama 2's 2.9 (T5's 3.0, BERT's 3.3).
_VOCABULARY = 8_192
# Of a text that stands in: the most in an utterance of MASSIVE, the mean of a post.
_WORDS = {"massive": 32, "20ng": 400}
_OTHER_WORDS = 100
_LABELS = 16  # of a task whose labels are not known
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")


@dataclasses.dataclass(frozen=True)
class Workload:
    """Data, tokenizer, prompt and examples of a config, or what stands in for them.

    tokenizer_is_own: else one stands in, and ids mean nothing.
    """

    dataset: Dataset
    tokenizer: Tokenizer
    tokenizer_is_own: bool
    recipe: Recipe
    examples: Examples
    means: Examples  # some of them, for what is usual
    prompts: Sequence[Tokens] | Sequence[Encoded]
    words: int  # of the longest text asked, of which slots have a label each
    objective: Objective
    notes: tuple[str, ...]

    def shared(self, config: ConfigDict) -> SharedPrefixes:
        """The prefixes that the examples of a micro-batch share."""
        return NONE if self.recipe.prompt is None else shared_prefixes(config, self.means)  # pyright: ignore

    def mean(self, config: ConfigDict) -> float:
        """Tokens that an example adds to a step on average, without what is shared."""
        shared = self.shared(config)
        return float(np.mean([len(batching.row(each, shared)["tokens"]) for each in self.means]))

    def batch(self, config: ConfigDict) -> Batch:
        """The largest batch of a step, all its micro-batches one after the other."""
        train, count = config.train, config.train.batch_size
        shared = self.shared(config)
        rows = [batching.row(example, shared) for example in self.examples]
        if not train.pack:
            # One that has the longest of each array stands for all.
            widest = {name: max((row[name] for row in rows), key=len) for name in rows[0]}
            return batching.padded([widest] * count, shared, train.gradient_accumulation_steps)
        length = train.row_length or train.max_length
        laid: dict[str, np.ndarray] = {}
        for name, values in rows[0].items():
            width = length
            if "/" in name:
                target = name.partition("/")[0]
                width = loader.label_budget(self.examples, target, length, shared)
            laid[name] = np.zeros((count, width, *values.shape[1:]), values.dtype)
            laid[f"{name}_segment_ids"] = np.zeros((count, width), np.int32)
        laid["tokens_positions"] = np.zeros((count, length), np.int32)
        return batching.packed(laid, shared, train.gradient_accumulation_steps)

    def prompt_batch(
        self,
        rows: int,
        followed: Callable[[Sequence[Tokens]], list[Tokens]] | None = None,
        share: bool = True,
    ) -> tuple[PromptBatch, SharedPrefixes]:
        """The longest prompts that are answered together, and the prefixes that they share.

        `followed`: what puts the beginning of an answer after them.
        """
        examples = [each for each in self.prompts if isinstance(each, Tokens)]
        examples = followed(examples) if followed else examples
        shared = prefixes.find(examples, min(rows, len(examples))) if share else NONE
        examples = sorted(examples, key=lambda each: -len(each.text) - len(each.prefix))
        return batching.prompts(examples[:rows], rows, shared), shared

    def scored_batch(self, rows: int) -> Batch:
        """The longest texts that an encoder scores together."""
        examples = [each for each in self.prompts if isinstance(each, Encoded)]
        (longest, *_) = sorted(examples, key=lambda each: -len(each.tokens))
        return batching.padded([batching.row(longest)] * rows)


def read(config: ConfigDict, dimensions: ModelConfig) -> Workload:
    """The workload of a config for a model of these dimensions; raises InputError for a config that
    no data could make right.
    """
    dataset, data_note = _dataset(config)
    tokenizer, is_own, tokenizer_note = _tokenizer(config, dataset)
    notes = tuple(filter(None, (data_note, tokenizer_note)))
    records = dataset.splits["train"]
    longest, means = _longest(records), spread(records, _SPREAD)
    if config.train.pack:  # how many labels a row holds depends on all
        longest, means = [], records
    asked = _longest(dataset.splits.get(config.eval.split) or records)
    most = max(len(words(record.text)) for record in asked)
    slots, length = config.prompt.slots, config.train.max_length
    fills = bool(data_note) and config.data.name != "massive"
    if registry.has_heads(config.model.output, dimensions):
        head = dimensions.head

        def encoded(records: Sequence[Record]) -> list[Encoded]:
            fixed = (dataset.tasks, tokenizer, slots, length)
            return encode(records, *fixed, text_at=head.text_at, word_at=head.word_at)

        examples = encoded([*longest, *means])
        recipe = Recipe(dataset.tasks, None, slots, length, 0, seed=config.seed)
        objective = head_objective(config.loss, dataset.tasks, examples, slots)
        usual, scored = examples[len(longest) :], encoded(asked)
        if fills:
            examples, scored = (_with_longest(each, length) for each in (examples, scored))
        texts: tuple[Examples, ...] = (examples, usual, scored)
        return Workload(dataset, tokenizer, is_own, recipe, *texts, most, objective, notes)
    config, chat_note = _without_template(config, tokenizer)
    notes = (*notes, chat_note) if chat_note else notes
    prompt, source = prompt_source(config, dataset, tokenizer)
    recipe = recipe_of(config, dataset, prompt, tokenizer)

    def tokens(records: Sequence[Record], reserve: int = 0) -> list[Tokens]:
        apart = isinstance(dimensions, T5Config)
        fixed = (dataset.tasks, source, tokenizer, slots, length)
        return tokenize(records, *fixed, reserve=reserve, apart=apart)

    smoothed = {ANSWER: Term(label_smoothing=config.loss.label_smoothing)}
    objective = dataclasses.replace(losses.GENERATION, terms=smoothed)
    bare = [dataclasses.replace(each, labels={}) for each in asked]
    examples, answered = tokens([*longest, *means]), tokens(bare, recipe.max_new_tokens)
    usual = examples[len(longest) :]
    if fills:
        examples = _with_longest(examples, length)
        answered = _with_longest(answered, length - recipe.max_new_tokens)
    texts = (examples, usual, answered)
    return Workload(dataset, tokenizer, is_own, recipe, *texts, most, objective, notes)


def _longest(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda each: -len(each.text) - len(each.pair))[:_LONGEST]


def _with_longest(examples: Any, length: int) -> Any:
    """The examples and one more, whose text has so many tokens that it is `length` tokens long."""
    first = examples[0]
    if isinstance(first, Encoded):
        tokens, types = (np.resize(each, length) for each in (first.tokens, first.types))
        return [*examples, dataclasses.replace(first, tokens=tokens, types=types)]
    room = length - len(first.prefix) - len(first.label)
    return [*examples, dataclasses.replace(first, text=np.resize(first.text, room))]


# Data ---------------------------------------------------------------------------------------------


def _dataset(config: ConfigDict) -> tuple[Dataset, str]:
    """The config's data where they are on this machine, or texts that stand in; and a note."""
    name = config.data.name
    if name not in ("builtin", "file") and datasets.local_root(config.data) is None:
        why = f"neither data.root nor {datasets.ROOT_VARIABLE} names a folder with {name}"
        return _stand_in(config), _data_note(config, why)
    try:
        return datasets.load(config.data, config.seed), ""
    except (InputError, StorageError, ArtifactError, OSError) as error:
        return _stand_in(config), _data_note(config, str(error))


def _data_note(config: ConfigDict, why: str) -> str:
    longest = f"the longest to fill train.max_length, {config.train.max_length:,} tokens"
    if config.data.name == "massive":
        longest = f"the longest to have {_WORDS['massive']} words"
    return f"the data are not here ({why}): texts and labels are taken to be typical, {longest}"


def _stand_in(config: ConfigDict) -> Dataset:
    """As many records as a batch has, all alike but for their labels."""
    name = config.data.name
    tasks = _tasks(config)
    if config.data.task not in ("both", "auto"):
        tasks = tuple(task for task in tasks if task.name == config.data.task)
    count = _WORDS.get(name, _OTHER_WORDS)
    text = " ".join(["words"] * count)
    rows = max(config.train.batch_size, config.eval.batch_size, 2 * config.prompt.shots, 32)

    def label(task: Task, number: int) -> Any:
        if task.kind == "slots":
            return tuple(f"B-{task.labels[0]}" if word % 4 == 0 else "O" for word in range(count))
        if task.kind == "regression":
            return 0.5
        chosen = task.labels[number % len(task.labels)]
        return (chosen,) if task.kind == "multilabel" else chosen

    records = [
        Record(f"{number}", text, {task.name: label(task, number) for task in tasks})
        for number in range(rows)
    ]
    splits = dict.fromkeys(("train", config.eval.split), records)
    domain = {"20ng": "News", "massive": "Utter"}.get(name, "Text")
    return Dataset(name, domain, tasks, splits, {}, "")  # pyright: ignore


def _tasks(config: ConfigDict) -> tuple[Task, ...]:
    name = config.data.name
    if name in published.DATASETS:
        return published.DATASETS[name].tasks
    counts = datasets.LABEL_COUNTS.get(name, {"label": _LABELS})
    own = "class" if config.data.kind == "auto" else config.data.kind
    return tuple(
        Task(
            task,
            "slots" if task == "slots" else own if name == "file" else "class",
            tuple(f"{task}_label_{number:02}" for number in range(count)),
        )
        for task, count in counts.items()
    )


# The tokenizer ------------------------------------------------------------------------------------


def _without_template(config: ConfigDict, tokenizer: Tokenizer | None) -> tuple[ConfigDict, str]:
    """The config with another wrapper where the checkpoint's chat template is not here; a note."""
    has_template = tokenizer is not None and tokenizer.render is not None
    if config.prompt.wrapper != "checkpoint" or has_template:
        return config, ""
    fields = config.copy_and_resolve_references()
    fields.prompt.wrapper = "llama3"
    return fields, "the checkpoint's chat template is not here: Llama 3's stands in"


def _tokenizer(config: ConfigDict, dataset: Dataset) -> tuple[Tokenizer, bool, str]:
    """The run's tokenizer where it is on this machine, else one that stands in; and a note."""
    if place := _place(config):
        return Tokenizer.load(place), True, ""
    records = spread(dataset.splits["train"], _SPREAD)
    config, _ = _without_template(config, None)
    prompt, _ = prompt_source(config, dataset) if _is_asked(config) else (None, None)
    pieces = [] if prompt is None else [piece.text for piece in (*prompt.before, *prompt.after)]
    answers = [] if prompt is None else _answers(config, dataset, records, prompt)
    named = config.tokenizer.path or config.model.checkpoint
    if not named:
        records = dataset.splits["train"]  # as the run trains it
    texts = [text for record in records for text in (record.text, record.pair) if text]
    size = _VOCABULARY if named else config.tokenizer.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer.train([*pieces, *texts, *answers], size).save(folder)
        tokenizer = Tokenizer.load(folder)
    if not named:
        return tokenizer, True, ""
    note = f"the tokenizer of {named} is not here: one trained on the texts stands in"
    return tokenizer, False, note


def _is_asked(config: ConfigDict) -> bool:
    return not registry.has_heads(config.model.output, registry.find(config.model.name))


def _answers(config: ConfigDict, dataset: Dataset, records: Sequence[Record], prompt: Any):
    return [
        prompt.lead + prompts.answer(each, dataset.tasks, config.prompt.slots, prompt.lettered)
        for each in records
        if has_gold(each, dataset.tasks)
    ]


def _place(config: ConfigDict) -> str:
    """A folder of this machine with the run's tokenizer; "" where there is none."""
    for named in filter(None, (config.tokenizer.path, config.model.checkpoint)):
        folder = Path(named)
        for place in (folder / "tokenizer", folder):
            if any((place / name).is_file() for name in _FILES):
                return str(place)
    return _cached(config.model.checkpoint) if not config.tokenizer.path else ""


def _cached(checkpoint: str) -> str:
    """The folder of a hub's model in the hub's cache on this machine, if its tokenizer is there."""
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", checkpoint):
        return ""
    from huggingface_hub import try_to_load_from_cache

    for name in _FILES:
        found = try_to_load_from_cache(checkpoint, name)
        if isinstance(found, str):
            return str(Path(found).parent)
    return ""
