"""Predictions as probabilities of labels, `[1 C]` of a text or `[words C]` of its words.

Columns are in the order of `tasks.head_labels`; a number is its own only column. Words that a
classifier did not see have zeros.
"""

from collections.abc import Sequence

import numpy as np

from jaxclf.core.types import Float
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import SlotFormat, Task, head_labels, words

Probabilities = Float[np.ndarray, "places C"]


def of_prediction(
    prediction: Prediction, task: Task, slot_format: SlotFormat
) -> Probabilities | None:
    """What a prediction says of a task: its probabilities, else its label with all of them.

    None where the output was no label, whatever replaced it.
    """
    names, value = head_labels(task, slot_format), prediction.predicted.get(task.name)
    if value is None or task.name in prediction.unparsed:
        return None
    if task.kind == "slots":
        assert isinstance(value, tuple)
        scores = (prediction.slot_scores or {}).get(task.name)
        if scores is not None:
            return scores
        found = np.zeros((len(words(prediction.text)), len(names)), np.float32)
        found[np.arange(len(value)), [names.index(name) for name in value]] = 1
        return found
    scores = (prediction.scores or {}).get(task.name)
    if scores is not None:
        return np.array([[scores[name] for name in names or ("value",)]], np.float32)
    if task.kind == "regression":
        return np.array([[value]], np.float32)
    chosen = {value} if isinstance(value, str) else {*value} if isinstance(value, tuple) else ()
    return np.array([[name in chosen for name in names]], np.float32)


def mean(task: Task, found: Sequence[Probabilities]) -> Probabilities | None:
    """The mean of several classifiers, in float64; of a word over those that saw it. None of none.

    They have the same columns.
    """
    if not found:
        return None
    total = np.sum([each.astype(np.float64) for each in found], axis=0)
    if task.kind != "slots":
        return total / len(found)
    return total / np.maximum(1, np.sum([each.any(axis=1, keepdims=True) for each in found], 0))
