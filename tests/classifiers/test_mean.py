"""Several classifiers as one: the mean of what they say, and what there is no mean of."""

import numpy as np
import pytest

from jaxclf.classifiers.base import LocalClassifier
from jaxclf.classifiers.mean import MeanClassifier
from jaxclf.core.errors import InputError
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record, Task
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from tests.tiny import CONFIG

TASKS = (
    Task("topic", "class", ("a", "b")),
    Task("flags", "multilabel", ("x", "y")),
    Task("size", "regression", ()),
    Task("slots", "slots", ("time",)),
)
RECORD = Record("1", "at five", {})


class Said(LocalClassifier):
    """Says the same of every text."""

    def __init__(self, topic, flags, size, words=None, tasks=TASKS):
        model, tokenizer = registry.create(CONFIG), Tokenizer.train(["at five"], 300)
        super().__init__(model, tokenizer, Recipe(tasks, None, "names", 16, 0))
        self.said = {
            "topic": dict(zip("ab", topic, strict=True)),
            "flags": dict(zip("xy", flags, strict=True)),
            "size": {"value": size},
        }
        self.words, self.cut = words, int(size)

    def _labelled(self, records, batch_size, prompt, progress):
        progress(len(records))
        slots = tuple(("Other", "time")[best] for best in np.argmax(self.words, axis=1))
        labels = {"topic": "a", "flags": (), "size": 0.0, "slots": slots}
        return {
            index: Prediction(
                record.id,
                record.text,
                {},
                labels,
                scores=self.said,
                slot_scores={"slots": self.words},
                cut=index + self.cut,
            )
            for index, record in enumerate(records)
        }


ONE = Said((0.9, 0.1), (0.9, 0.3), 1.0, np.array([[0.9, 0.1], [0.4, 0.6]], np.float32))
TWO = Said((0.0, 1.0), (0.3, 0.6), 4.0, np.array([[0.3, 0.7], [0.0, 0.0]], np.float32))


def test_probabilities_are_the_mean_and_labels_are_read_from_it():
    told = []
    mean = MeanClassifier([ONE, TWO], ["one", "two"])
    first, _ = mean.predict([RECORD, RECORD], 2, progress=told.append)
    assert sum(told) == 2
    assert first.predicted == {
        "topic": "b",
        "flags": ("x",),
        "size": 2.5,
        "slots": ("Other", "time"),  # the second word was seen by one alone
    }
    assert first.scores["topic"] == pytest.approx({"a": 0.45, "b": 0.55})
    assert first.scores["flags"] == pytest.approx({"x": 0.6, "y": 0.45})
    np.testing.assert_allclose(first.slot_scores["slots"], [[0.6, 0.4], [0.4, 0.6]], rtol=1e-6)
    assert first.cut == 4


def test_other_labels_and_written_answers_have_no_mean():
    other = Said((1, 0), (0, 0), 0, tasks=(Task("topic", "class", ("a", "c")), *TASKS[1:]))
    with pytest.raises(InputError, match="two has other tasks or labels than one"):
        MeanClassifier([ONE, other], ["one", "two"])
    writes = Said((1, 0), (0, 0), 0, ONE.words)
    writes.said = None
    with pytest.raises(InputError, match="two writes its answers.*eval.decoding to 'score'"):
        MeanClassifier([ONE, writes], ["one", "two"]).predict([RECORD], 1)
