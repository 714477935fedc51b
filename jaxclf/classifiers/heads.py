"""Labels by scores: of a model's heads, or of an ensemble's combiners."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.classifiers.base import LocalClassifier, Progress
from jaxclf.core.errors import InputError
from jaxclf.core.finite import check_scores
from jaxclf.core.types import AnyArray, Array, Float, Params
from jaxclf.data import loader
from jaxclf.data.batching import Batch
from jaxclf.data.encoder_inputs import Encoded, encode
from jaxclf.data.loader import Examples
from jaxclf.data.predictions import Prediction
from jaxclf.data.shape_budget import Budget
from jaxclf.data.tasks import Label, Record, Task, head_labels, words
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.models.registry import Model
from jaxclf.prompts.builder import PromptSource
from jaxclf.prompts.examples import tokenize
from jaxclf.training import losses


def _read(
    function: Callable[[Float[Array, "*B C"]], Float[Array, "*B C"]],
) -> Callable[[Float[AnyArray, "*B C"]], Float[Array, "*B C"]]:
    """The function, but NaN of what is not finite: a sigmoid makes a sure answer of infinity."""
    return lambda scores: jnp.where(jnp.isfinite(scores), function(jnp.asarray(scores)), jnp.nan)


# From scores to what is reported of them: probabilities, or the number itself.
READ = {
    "class": _read(jax.nn.softmax),
    "slots": _read(jax.nn.softmax),
    "multilabel": _read(jax.nn.sigmoid),
    "regression": _read(lambda scores: scores),
}


class HeadClassifier(LocalClassifier):
    """Labels texts by the highest score of each head. Compiled programs are kept, one a shape."""

    def __init__(self, model: Model, tokenizer: Tokenizer, recipe: Recipe):
        super().__init__(model, tokenizer, recipe)

        def scores(params: Params, batch: Batch) -> losses.Scores:
            found = losses.head_scores(model.bind(params), batch)
            read = {task.name: READ[task.kind](found[task.name]) for task in recipe.tasks}
            return sharding.everywhere(read)

        self.scores = jax.jit(scores)
        self.budget = Budget()

    def _labelled(
        self,
        records: Sequence[Record],
        batch_size: int,
        prompt: PromptSource | None,
        progress: Progress,
    ) -> dict[int, Prediction]:
        recipe, head = self.recipe, self.model.config.head
        examples = encode(
            records,
            recipe.tasks,
            self.tokenizer,
            recipe.slot_format,
            recipe.max_length,
            gold=False,
            text_at=head.text_at,
            word_at=head.word_at,
        )
        predictions: dict[int, Prediction] = {}
        for indices, batch in loader.score_batches(examples, sharding.divisible(batch_size)):
            batch = sharding.put_batch(self.budget.fit(batch))
            scores = jax.device_get(self.scores(self.params, batch))
            for row, index in enumerate(indices):
                of_row = {name: values[row] for name, values in scores.items()}
                predictions[index] = self.read(records[index], examples[index], of_row)
            progress(len(indices))
        return predictions

    def read(self, record: Record, example: Encoded, scores: dict[str, np.ndarray]) -> Prediction:
        """The labels of one text by its scores, `[J, C]` a task."""
        predicted: dict[str, Label] = {}
        shown, of_words = {}, {}
        for task in self.recipe.tasks:
            names = head_labels(task, self.recipe.slot_format)
            values = scores[task.name]
            if task.kind == "slots":
                values = values[: len(example.words)]
                check_scores(values, f"task {task.name} for record {record.id!r}")
                best = np.argmax(values, axis=-1)
                found = [names[0]] * len(words(record.text))
                each = np.zeros((len(found), len(names)), np.float32)
                each[np.array(example.words, int)] = values
                for word, item in zip(example.words, best, strict=True):
                    found[word] = names[item]
                predicted[task.name], of_words[task.name] = tuple(found), each
                continue
            predicted[task.name] = label_of(task, names, values[0], record)
            shown[task.name] = dict(zip(names or ("value",), map(float, values[0]), strict=True))
        return Prediction(
            record.id,
            record.text,
            dict(record.labels),
            predicted,
            scores=shown or None,
            cut=example.cut,
            slot_scores=of_words or None,
        )


def inputs(
    records: Sequence[Record], recipe: Recipe, tokenizer: Tokenizer, *, truncate: bool = True
) -> Examples:
    """Texts as the base of an ensemble reads them: bare, or in a decoder's prompt, never answered.

    Raises InputError for a text that is too long where it must not be cut, or a pair in a prompt.
    """
    slot_format, length = recipe.slot_format, recipe.max_length
    if recipe.prompt is None:
        return encode(
            records, recipe.tasks, tokenizer, slot_format, length, truncate=truncate, gold=False
        )
    if any(record.pair for record in records):
        raise InputError(
            "the texts come in pairs, which prompts have no place for; set model.output=head, or "
            "choose an encoder as model"
        )
    bare = [dataclasses.replace(record, labels={}) for record in records]
    return tokenize(
        bare, recipe.tasks, recipe.prompt, tokenizer, slot_format, length, truncate=truncate
    )


def whole_text_prediction(
    record: Record, tasks: Sequence[Task], scores: Mapping[str, np.ndarray], cut: int
) -> Prediction:
    """The labels of one text by what is reported of its scores, `[C]` a task; no slots.

    `cut`: see `Prediction`.
    """
    return Prediction(
        record.id,
        record.text,
        {task.name: record.labels.get(task.name) for task in tasks},
        {task.name: label_of(task, task.labels, scores[task.name], record) for task in tasks},
        scores={
            task.name: dict(
                zip(task.labels or ("value",), map(float, scores[task.name]), strict=True)
            )
            for task in tasks
        },
        cut=cut,
    )


def label_of(task: Task, names: Sequence[str], values: np.ndarray, record: Record) -> Label:
    """The label that the reported scores `[C]` of a record stand for; no slots.

    Raises NonFiniteError where they are NaN or infinite.
    """
    check_scores(values, f"task {task.name} for record {record.id!r}")
    if task.kind == "regression":
        return float(values[0])
    if task.kind == "multilabel":
        return tuple(name for name, value in zip(names, values, strict=True) if value > 0.5)
    return names[int(np.argmax(values))]
