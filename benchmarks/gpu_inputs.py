"""Tiny models and batches for `gpu_matrix.py`: real batches of the library's, as shapes on a mesh.

Every dimension that counts no tokens is smaller than half the tokens of a row, so that an array
with two dimensions of at least that size can only be a square of attention.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxclf.adapters import tuning
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.config import defaults
from jaxclf.core.types import Tree
from jaxclf.data import batching, loader, prefixes
from jaxclf.data.batching import Batch, PromptBatch
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens
from jaxclf.data.prefixes import NONE, SharedPrefixes
from jaxclf.data.tasks import Task
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.label_decoder import Decoding, Mode
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.encoder import FAMILIES, EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.heads import HeadConfig
from jaxclf.models.registry import Model, ModelConfig
from jaxclf.models.t5 import T5Config
from jaxclf.prompts.builder import Piece, Prompt
from jaxclf.training import losses, optim
from jaxclf.training.losses import Objective, Term

TOKENS = 2048  # of a row
ROWS = 8  # of a micro-batch, all devices together
VOCABULARY = 320
_LABEL = 5  # tokens of an answer

LLAMA = DecoderConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position=16_384,
)
T5 = T5Config(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=192,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    head_dim=64,
)
_BERT = EncoderConfig(
    family="bert",
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    embedding_size=256,
    max_position=TOKENS,
    **FAMILIES["bert"],
)


def _like_bert(family: str, **changes) -> EncoderConfig:
    return dataclasses.replace(_BERT, family=family, **FAMILIES[family] | changes)


ENCODERS: dict[str, EncoderConfig] = {
    "BERT": _BERT,
    "RoBERTa": _like_bert("roberta"),
    "DistilBERT": _like_bert("distilbert"),
    "ELECTRA": _like_bert("electra", embedding_size=128),
    "MiniLM": dataclasses.replace(_BERT, num_heads=8),
}

INTENT = Task("intent", "class", ("alarm_query", "alarm_set", "play", "play_music", "weather"))
SLOTS = Task("slots", "slots", ("date", "event_name", "time"))
TOPICS = Task("topics", "multilabel", ("art", "news", "sport"))
SCORE = Task("score", "regression", ())
HEADS = (INTENT, SLOTS, TOPICS, SCORE)
# Of a head's scores: a slot's has one more, for none.
_SIZES = {INTENT.name: 5, SLOTS.name: 4, TOPICS.name: 3, SCORE.name: 1}


def with_heads(dimensions: EncoderConfig, tasks: Sequence[Task]) -> EncoderConfig:
    """The encoder with a head for each task, and with BERT's pooler where a head reads it."""
    heads = tuple(
        HeadConfig(task.name, "token" if task.kind == "slots" else "sequence", _SIZES[task.name])
        for task in tasks
    )
    return dimensions.with_heads(heads)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config's model and tuning, and the shapes of what it starts from."""

    config: Any
    model: Model
    tuning: tuning.Whole | tuning.Adapted
    optimizer: Any

    @classmethod
    def of(cls, dimensions: ModelConfig, fields: dict[str, Any]) -> "Setup":
        """`fields` by dotted name, beside the defaults of every config."""
        config = defaults.default()
        with config.unlocked():
            config.model.dtype, config.model.attention = "bfloat16", "cudnn"
            for name, value in fields.items():
                group, _, field = name.rpartition(".")
                (config[group] if group else config)[field] = value
        model = create_model(config, dimensions)
        tuned = tuning.choose(config, model.abstract)
        return cls(
            config, model, tuned, optim.optimizer(config.train, config.lora.loraplus_lr_ratio)
        )

    @functools.cached_property
    def parameters(self) -> tuple[Tree, Tree]:
        """Shapes of (what is trained, what is frozen)."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(self.tuning.start, self.model.abstract, key)

    def objective(self, tasks: Sequence[Task]) -> Objective:
        if not self.model.is_encoder:
            return losses.GENERATION
        return Objective(losses.head_scores, {task.name: Term(task.kind) for task in tasks})


# Batches ------------------------------------------------------------------------------------------


def placed(tree: Tree, axis: int = 0) -> Tree:
    """Shapes of a batch, its rows divided over the mesh as `sharding.put_batch` divides them."""

    def one(array):
        array = np.asarray(array)
        cut = sharding.of_rows(array.shape, axis)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=cut)

    return jax.tree.map(one, tree)


def train_batch(examples: Any, *, pack_into: int, shared: SharedPrefixes, accumulate: int) -> Batch:
    """A step's batch in micro-batches of ROWS rows, packed into so many tokens each if > 0."""
    batches = loader.train_batches(
        examples,
        batch_size=ROWS * accumulate,
        seed=0,
        row_length=pack_into,
        shared=shared,
        groups=accumulate,
    )
    batch = next(batches)

    def apart(rows):
        return rows.reshape(accumulate, -1, *rows.shape[1:])

    return placed(jax.tree.map(apart, batch), axis=1)


def prompts(count: int, tokens: int, lengths: Sequence[int] = (), apart: bool = False):
    """(examples with texts of up to so many tokens, the prefixes of these lengths they share)."""
    random = np.random.default_rng(0)

    def ids(size: int) -> np.ndarray:
        return random.integers(3, VOCABULARY, size).astype(np.int32)

    own = [ids(size) for size in lengths] or [ids(8)]
    found = [
        Tokens(
            str(index),
            own[index % len(own)],
            ids(tokens - 2 * _LABEL - (0 if lengths else len(own[0])) - index % 7),
            ids(_LABEL),
            cut=0,
            apart=apart,
        )
        for index in range(count)
    ]
    return found, prefixes.find(found, count) if lengths else NONE


def texts(count: int, tokens: int, tasks: Sequence[Task]) -> list[Encoded]:
    """Texts of up to so many tokens as an encoder reads them, with labels of all kinds."""
    random = np.random.default_rng(0)
    found = []
    for index in range(count):
        size = tokens - index % 7
        first = np.zeros(1, np.int32)
        words = np.arange(1, 9, dtype=np.int32)
        targets = {
            INTENT.name: (first, np.ones(1, np.int32)),
            SLOTS.name: (words, np.ones(len(words), np.int32)),
            TOPICS.name: (first, np.ones((1, 3), np.float32)),
            SCORE.name: (first, np.ones(1, np.float32)),
        }
        ids = random.integers(3, VOCABULARY, size).astype(np.int32)
        chosen = {task.name: targets[task.name] for task in tasks}
        types = np.zeros(size, np.int32)
        found.append(Encoded(str(index), ids, types, chosen, tuple(range(len(words))), 0))
    return found


def score_batch(examples: Sequence[Encoded]) -> Batch:
    _, batch = next(loader.score_batches(examples, sharding.divisible(ROWS)))
    return placed(batch)


def prompt_batch(examples: Sequence[Tokens], shared: SharedPrefixes = NONE) -> PromptBatch:
    _, batch = next(loader.prompt_batches(examples, sharding.divisible(ROWS), shared))
    return placed(batch)


def prefix_batch(shared: SharedPrefixes) -> PromptBatch:
    return placed(batching.prefix_row(shared))


# Classifiers --------------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> Tokenizer:
    answers = [
        f' {{"task1": "{intent}", "task2": ["Other", "{slot}"]}}'
        for intent in INTENT.labels
        for slot in SLOTS.labels
    ]
    return Tokenizer.train([*answers, "wake me at five", "play"], VOCABULARY)


def recipe(tasks: Sequence[Task], prompted: bool) -> Recipe:
    prompt = Prompt((), (Piece("\nLabel:", is_data=False),)) if prompted else None
    return Recipe(tuple(tasks), prompt, "names", max_length=TOKENS, max_new_tokens=24)


def generative(model: Model, mode: Mode) -> GenerativeClassifier:
    """A classifier of an intent and slots."""
    decoding = Decoding(mode)
    return GenerativeClassifier(model, tokenizer(), recipe((INTENT, SLOTS), True), decoding)
