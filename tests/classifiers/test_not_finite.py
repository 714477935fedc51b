"""NaN and infinity, in parameters and in scores: an error, never a label."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters.lora import Spec
from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.checkpoint.model_dir import AdapterInfo
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.classifiers.heads import HeadClassifier, whole_text_prediction
from jaxclf.convert import hf_export
from jaxclf.core import finite
from jaxclf.core.errors import ArtifactError, NonFiniteError
from jaxclf.core.tree import flatten, nest
from jaxclf.data.tasks import Record, Task, head_labels
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.heads import HeadConfig
from jaxclf.prompts.builder import Piece, Prompt
from tests import tiny
from tests.tiny_adapters import random_adapters
from tests.tiny_encoders import ENCODERS

NAN, INF = float("nan"), float("inf")
TASKS = {
    "class": Task("topic", "class", ("a", "b", "c")),
    "multilabel": Task("topic", "multilabel", ("a", "b", "c")),
    "regression": Task("topic", "regression", ()),
    "slots": Task("topic", "slots", ("x", "y")),
}
RECORDS = [Record(str(number), text, {}) for number, text in enumerate(["wake me", "play", "a b"])]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([record.text for record in RECORDS] * 3, 280)


def with_leaf(params, path, change):
    leaves = dict(flatten(params))
    leaves[path] = change(leaves[path])
    return nest(leaves)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", list(TASKS))
def test_a_head_gives_no_label_of_scores_that_are_no_numbers(tokenizer, kind, value):
    task = TASKS[kind]
    head = HeadConfig("topic", "token" if kind == "slots" else "sequence", 1)
    head = dataclasses.replace(head, size=max(1, len(head_labels(task, "names"))))
    config = dataclasses.replace(
        ENCODERS["electra"], vocab_size=tokenizer.vocab_size, num_layers=1, heads=(head,)
    )
    model = registry.create(config)
    recipe = Recipe((task,), None, "names", max_length=16, max_new_tokens=0)
    classifier = HeadClassifier(model, tokenizer, recipe)
    params = tiny.random_params(model)
    assert len(classifier.with_params(params).predict(RECORDS, 2)) == 3
    broken = with_leaf(params, "heads/topic/out/bias", lambda leaf: leaf.at[-1].set(value))
    with pytest.raises(NonFiniteError, match=r"task topic for record '\d'.*model.dtype=float32"):
        classifier.with_params(broken).predict(RECORDS, 2)


def test_an_ensemble_gives_no_label_either():
    scores = {"topic": np.array([0.1, NAN, 0.2])}
    with pytest.raises(NonFiniteError, match="task topic for record '0'"):
        whole_text_prediction(RECORDS[0], (TASKS["class"],), scores, 0)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "decoding",
    [
        {"mode": "free"},
        {"mode": "constrained"},
        {"mode": "score"},
        {"mode": "score", "score_bound": 0.0, "normalise": "contextual"},
    ],
    ids=["free", "constrained", "score", "contextual"],
)
def test_a_decoder_gives_no_label_of_scores_that_are_no_numbers(tokenizer, decoding, value):
    config = dataclasses.replace(tiny.CONFIG, vocab_size=tokenizer.vocab_size, num_layers=1)
    model = registry.create(config)
    prompt = Prompt((), (Piece("\nLabel:", is_data=False),))
    recipe = Recipe((TASKS["class"],), prompt, "names", max_length=32, max_new_tokens=4)
    classifier = GenerativeClassifier(model, tokenizer, recipe, Decoding(**decoding))
    params = tiny.random_params(model)
    assert len(classifier.with_params(params).predict(RECORDS, 2)) == 3
    broken = with_leaf(params, "norm/scale", lambda leaf: leaf.at[0].set(value))
    with pytest.raises(NonFiniteError, match=r"model.dtype=float32") as caught:
        classifier.with_params(broken).predict(RECORDS, 2)
    assert caught.value.exit_code == 5


# Parameters ---------------------------------------------------------------------------------------


def save_run(directory, params, **state):
    with Checkpoints(directory) as saved:
        saved.save(1, params, {"n": jnp.int32(1), **state}, None, {"score": 1.0})
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_that_are_no_numbers_are_named_when_they_are_opened(tmp_path, dtype):
    model = registry.create(tiny.CONFIG, param_dtype=jnp.dtype(dtype))
    params = tiny.random_params(model)
    path = "layers/mlp/up/kernel"
    broken = with_leaf(params, path, lambda leaf: leaf.at[1, 2, 3:5].set(NAN).at[0, 0, 0].set(INF))
    run = save_run(tmp_path / "run", broken)
    model_dir.write_model(run / "model.json", tiny.CONFIG, dtype)
    with pytest.raises(ArtifactError, match=rf"NaN or infinite:\n  {path}: 3 of 1,152 values"):
        model_dir.load_params(run, model.abstract)
    with pytest.raises(ArtifactError, match=rf"{path}: 3 of 1,152 values"):
        hf_export.export(run, tmp_path / "out", progress=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_adapters_that_are_no_numbers_are_named_when_they_are_opened(tmp_path):
    params = tiny.random_params(registry.create(tiny.CONFIG))
    adapters = random_adapters(params, Spec(rank=2))
    broken = jax.tree.map(lambda leaf: leaf.at[..., 0].set(-INF), adapters)
    run = save_run(tmp_path / "run", broken)
    model_dir.write_model(run / "model.json", tiny.CONFIG, "float32")
    model_dir.write_adapters(run / "adapters.json", AdapterInfo(Spec(rank=2), "", "0" * 64))
    with pytest.raises(ArtifactError, match="factors/layers/attention/q/a: "):
        model_dir.load_adapters(model_dir.resolve(run), params)


def test_a_training_state_may_hold_infinity(tmp_path):
    """The best score of a run that has none yet, say."""
    state = {"best": jnp.array(-INF)}
    run = save_run(tmp_path / "run", {"w": jnp.ones(3)}, **state)
    found = Checkpoints(run).restore(1, {"w": jnp.ones(3)}, {"n": jnp.int32(0), **state})
    assert found.state["best"] == -INF


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_values_that_are_no_numbers_are_counted_by_their_bits(dtype):
    values = np.random.default_rng(0).standard_normal((300, 500)).astype(dtype)
    largest = np.array(1.0, dtype) / np.array(3.0, dtype) * np.array(2.0**15, dtype)
    values[0, :4] = [0.0, -0.0, largest, -largest]
    assert finite.count_not_finite(values) == 0
    values[1, 5], values[299, 499], values[7, 7:9] = NAN, -NAN, [INF, -INF]
    assert finite.count_not_finite(values) == 4
    assert finite.count_not_finite(np.zeros(0, dtype)) == 0
    assert finite.count_not_finite(np.full(3, -1, "int8")) == 0


def test_what_is_written_leaf_by_leaf_is_finite(tmp_path):
    layers = np.zeros((3, 4, 5), np.float32)
    layers[1, 0, 0] = NAN
    with (
        pytest.raises(ArtifactError, match=r"theirs: weights.*\n  up/kernel/1: 1 of 20 values"),
        tree_store.TreeWriter(tmp_path / "params", "theirs") as writer,
    ):
        writer.write("up/kernel", layers.shape, "float32", list(layers))
