"""Labels by the scores of an encoder's heads."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxclf import losses
from jaxclf.data import loader
from jaxclf.data.encode import Encoded, encode
from jaxclf.data.pack import Batch
from jaxclf.data.tasks import Label, Record, Task, head_labels, words
from jaxclf.data.tokenize import Tokenizer
from jaxclf.labels import Prediction
from jaxclf.models.zoo import Model
from jaxclf.recipe import Recipe
from jaxclf.shapes import Params

# From scores to what is reported of them: probabilities, or the number itself.
READ = {
    "class": jax.nn.softmax,
    "slots": jax.nn.softmax,
    "multilabel": jax.nn.sigmoid,
    "regression": lambda scores: scores,
}


class HeadClassifier:
    """Labels texts by the highest score of each head. Compiled programs are kept, one a shape."""

    def __init__(self, model: Model, tokenizer: Tokenizer, recipe: Recipe):
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe

        def scores(params: Params, batch: Batch) -> losses.Scores:
            found = losses.head_scores(model.bind(params), batch)
            return {task.name: READ[task.kind](found[task.name]) for task in recipe.tasks}

        self.scores = jax.jit(scores)

    def predict(
        self,
        params: Params,
        records: Sequence[Record],
        batch_size: int,
        *,
        prompt: Any = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """One prediction a record, in the records' order; an encoder has no `prompt`."""
        recipe = self.recipe
        examples = encode(
            records,
            recipe.tasks,
            self.tokenizer,
            recipe.slot_format,
            recipe.max_length,
            gold=False,
        )
        predictions: dict[int, Prediction] = {}
        for indices, batch in loader.score_batches(examples, batch_size):
            scores = jax.device_get(self.scores(params, jax.device_put(batch)))
            for row, index in enumerate(indices):
                of_row = {name: values[row] for name, values in scores.items()}
                predictions[index] = self.read(records[index], examples[index], of_row)
            progress(len(indices))
        if sorted(predictions) != list(range(len(records))):
            raise RuntimeError(f"{len(predictions)} of {len(records)} records were scored")
        return [predictions[index] for index in range(len(records))]

    def read(self, record: Record, example: Encoded, scores: dict[str, np.ndarray]) -> Prediction:
        """The labels of one text by its scores, `[J, C]` a task."""
        predicted: dict[str, Label] = {}
        shown = {}
        for task in self.recipe.tasks:
            names = head_labels(task, self.recipe.slot_format)
            values = scores[task.name]
            if task.kind == "slots":
                best = np.argmax(values[: len(example.words)], axis=-1)
                found = [names[0]] * len(words(record.text))
                for word, item in zip(example.words, best, strict=True):
                    found[word] = names[item]
                predicted[task.name] = tuple(found)
                continue
            predicted[task.name] = label_of(task, names, values[0])
            shown[task.name] = dict(zip(names or ("value",), map(float, values[0]), strict=True))
        return Prediction(
            record.id, record.text, dict(record.labels), predicted, scores=shown or None
        )


def label_of(task: Task, names: Sequence[str], values: np.ndarray) -> Label:
    """The label that the reported scores `[C]` of one text stand for; no slots."""
    if task.kind == "regression":
        return float(values[0])
    if task.kind == "multilabel":
        return tuple(name for name, value in zip(names, values, strict=True) if value > 0.5)
    return names[int(np.argmax(values))]
