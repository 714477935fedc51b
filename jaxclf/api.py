"""Labels in Python: a trained classifier as an object.

clf = jaxclf.load("runs/quickstart")
clf.predict(["wake me at five am", "is it raining"])
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclf import opening
from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers.opening import Opened
from jaxclf.config import loading
from jaxclf.core import compiler, logs
from jaxclf.core.errors import InputError
from jaxclf.data import records as data_records
from jaxclf.data.predictions import Prediction
from jaxclf.data.readers import RawRow
from jaxclf.data.records import Defects, Schema
from jaxclf.data.tasks import Record, SlotFormat, Task, words
from jaxclf.decoding.parsing import tag_per_word
from jaxclf.distributed import sharding

Texts = str | Iterable[Any]
"""A text, or texts: strings, or pairs of strings."""


def load(
    source: str | Path,
    *,
    step: Which = "best",
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> "LoadedClassifier":
    """Load a classifier that labels texts, on all devices that are here.

    source: the folder of a run (of an ensemble, too), a step of one, a classifier in Hugging Face's
    format (a folder such as `jaxclf.convert.to_hf` writes, or a hub id), or what
    `TextClassifier.save` wrote; several with commas between: the mean of their probabilities. step:
    "best", "last" or a number, of a run that kept several.
    overrides: fields of the run's config to change, such as `{"eval.decoding": "score"}`.

    Raises InputError where there is no classifier, ArtifactError where a part is missing or
    damaged, StorageError where the hub does not give it.

    >>> clf = jaxclf.load("runs/smoke")
    >>> clf.tasks[0].name
    'intent'
    """
    compiler.configure()
    lines = loading.as_lines(overrides)
    path = Path(source).expanduser()
    with logs.quiet():  # what is converted on the way is of no interest
        if opening.is_run(path):
            lines = [*_mesh_that_fits(path), *lines]
        return LoadedClassifier(opening.open_source(source, step, lines))


def _mesh_that_fits(path: Path) -> list[str]:
    """Overrides for a run that was trained on more or fewer devices than are here."""
    folder = path if (path / "config.json").is_file() else path.absolute().parent.parent
    if not (folder / "config.json").is_file():
        return []
    try:
        sharding.complete(loading.read(folder / "config.json").mesh, jax.device_count())
    except InputError:
        return [f"mesh.{axis}={-1 if axis == 'fsdp' else 1}" for axis in sharding.AXES]
    return []


class LoadedClassifier:
    """A classifier that labels texts: its parameters lie on the devices, nothing else is needed.

    What it says of texts comes one item a text, in their order: as it is where there is one task,
    as a dict from each task's name where there are several. `opened` holds the parts: classifier,
    config and where the parameters came from.

    >>> clf = jaxclf.load("runs/smoke")
    >>> sorted(clf.predict(["wake me at five am", "is it raining"]))
    ['intent', 'slots']
    """

    def __init__(self, opened: Opened):
        self.opened = opened

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What texts are asked: names, kinds and labels."""
        return self.opened.classifier.recipe.tasks

    @property
    def classes_(self) -> Any:
        """The labels `[C]`, in the order of the columns of `predict_proba`; of a number none.

        With several tasks a dict from each task's name.
        """
        return self._one_or_all({task.name: np.array(task.labels, object) for task in self.tasks})

    def predict(self, texts: Texts, *, batch_size: int = 0, progress: bool = False) -> Any:
        """The label of each text: an array of N, a list for slots; of a text alone, its label.

        texts: one text, or a sequence of texts or of pairs of texts. batch_size: texts at once; 0:
        the run's. progress: show how far it is.

        A label is a class's name; for several labels a tuple of names; a number; for slots a list
        of (word, tag), one for each word: a word that the model gave no tag has "Other" ("O" in a
        run of BIO tags). It is None where a model wrote something that is no label. With several
        tasks the result is a dict from each task's name. Raises InputError naming the texts that
        cannot be labelled.

        >>> clf = jaxclf.load("runs/smoke")
        >>> words = clf.predict("wake me at five am")["slots"]
        >>> words is None or len(words) == 5
        True
        """
        predictions = self.predictions(texts, batch_size=batch_size, progress=progress)
        slot_format = self.opened.classifier.recipe.slot_format
        found = {
            task.name: [_label(each, task, slot_format) for each in predictions]
            for task in self.tasks
        }
        if isinstance(texts, str):
            return self._one_or_all({name: label for name, (label,) in found.items()})
        return self._one_or_all({task.name: _column(found[task.name], task) for task in self.tasks})

    def predict_proba(self, texts: Texts, *, batch_size: int = 0, progress: bool = False) -> Any:
        """Probabilities `[N, C]` in the order of `classes_`, tempered as the run found best.

        Arguments are those of `predict`; a text alone gives `[C]`. Of several labels each has a
        probability of its own. With several tasks the result is a dict, without slots and numbers,
        which have none. Raises InputError where the model gives no probabilities.

        >>> clf = jaxclf.load("runs/smoke", overrides={"eval.decoding": "score"})
        >>> clf.predict_proba(["is it raining"])["intent"].shape == (1, len(clf.classes_["intent"]))
        True
        """
        tasks = [task for task in self.tasks if task.kind in ("class", "multilabel")]
        if not tasks:
            kinds = ", ".join(f"{task.name} ({task.kind})" for task in self.tasks)
            raise InputError(f"probabilities are of classes; the tasks are {kinds}. Use predict")
        predictions = self.predictions(texts, batch_size=batch_size, progress=progress)
        found = {task.name: _probabilities(predictions, task) for task in tasks}
        if isinstance(texts, str):
            found = {name: rows[0] for name, rows in found.items()}
        return self._one_or_all(found)

    def predictions(
        self, texts: Texts, *, batch_size: int = 0, progress: bool = False
    ) -> list[Prediction]:
        """All that is known of each text: labels, scores, and what the model wrote.

        >>> clf = jaxclf.load("runs/smoke")
        >>> clf.predictions(["is it raining"])[0].text
        'is it raining'
        """
        records = read_texts(texts)
        classifier = self.opened.classifier
        if batch_size < 0:
            raise InputError(f"batch_size is {batch_size}; expected 1 or more, or 0 for the run's")
        if classifier.recipe.prompt is not None and any(record.pair for record in records):
            raise InputError(
                "the texts come in pairs, which prompts have no place for. Put both into one text"
            )
        if not records:
            return []
        size, prompt = batch_size or self.opened.config.eval.batch_size, self.opened.prompt
        if not progress:
            return classifier.predict(records, size, prompt=prompt)
        with logs.count("labelling", len(records)) as advance:
            return classifier.predict(records, size, prompt=prompt, progress=advance)

    def _one_or_all(self, found: dict[str, Any]) -> Any:
        """What there is of each task; of a single task it alone."""
        return found[self.tasks[0].name] if len(self.tasks) == 1 else found

    def __repr__(self) -> str:
        """`<LoadedClassifier of intent (class, 60 labels), slots (slots, 55 labels)>`."""
        tasks = (f"{task.name} ({task.kind}, {len(task.labels)} labels)" for task in self.tasks)
        return f"<LoadedClassifier of {', '.join(tasks)}>"


def read_texts(texts: Texts) -> list[Record]:
    """Texts as records, by the rules for texts of files; raises InputError naming the first bad."""
    schemas = Schema("text"), Schema("text", pair="pair")
    defects = Defects()
    found: list[Record] = []
    for index, item in enumerate([texts] if isinstance(texts, str) else texts):
        is_pair = isinstance(item, tuple | list | np.ndarray) and len(item) == 2
        fields = {"text": item[0], "pair": item[1]} if is_pair else {"text": item}
        row = RawRow(f"text {index}", {name: _plain(value) for name, value in fields.items()})
        found += data_records.parse([row], schemas[is_pair], defects).get("", [])
    defects.check("Correct them or leave them out.")
    return found


def _plain(value: Any) -> Any:
    """Text of a NumPy array as Python's own."""
    return str(value) if isinstance(value, str) else value


def _label(prediction: Prediction, task: Task, slot_format: SlotFormat) -> Any:
    label = prediction.predicted[task.name]
    if task.kind != "slots" or label is None:
        return label
    assert isinstance(label, tuple)
    found = words(prediction.text)
    return list(zip(found, tag_per_word(label, len(found), task, slot_format), strict=True))


def _column(labels: list[Any], task: Task) -> Any:
    """The labels of all texts; an array where they are no lists."""
    if task.kind == "slots":
        return labels
    if task.kind == "regression":
        return np.array(labels, float)
    found = np.empty(len(labels), object)
    found[:] = labels  # and not an array of tuples' items
    return found


def _probabilities(predictions: Sequence[Prediction], task: Task) -> np.ndarray:
    rows = []
    for prediction in predictions:
        scores = (prediction.scores or {}).get(task.name)
        if scores is None:
            raise InputError(
                f"task {task.name}: the model writes its answer, which has no probabilities. Load "
                'it with overrides={"eval.decoding": "score"}, which reads them for every label'
            )
        rows.append([scores[label] for label in task.labels])
    return np.array(rows, float).reshape(-1, len(task.labels))
