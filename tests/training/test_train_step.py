"""One compiled train step: what it computes, what it leaves alone, and what it never builds."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclf.adapters.partition import choose_trained
from jaxclf.config import defaults
from jaxclf.data import batching
from jaxclf.data.batching import ANSWER
from jaxclf.models import layers, registry
from jaxclf.models.unstacked import join_tables
from jaxclf.training import losses, optim, train_step
from tests.tiny import CONFIG, examples, random_params, shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "train_step.json"
# Label lengths differ between the four micro-batches of two that the accumulating test makes.
SIZES = [(3, 5, 1), (3, 9, 2), (3, 2, 1), (3, 11, 1), (3, 4, 9), (3, 8, 7), (3, 3, 2), (3, 7, 4)]


def batch_of(micro_batches: int) -> batching.Batch:
    """Eight examples `[micro, 8 / micro, …]`, on the device."""
    batch = batching.padded([batching.row(example) for example in examples(SIZES)])
    return jax.tree.map(
        lambda rows: jnp.asarray(rows.reshape(micro_batches, -1, rows.shape[1])), batch
    )


def filled(batch: batching.Batch) -> batching.Batch:
    """The same with empty rows and micro-batches added, `[4, 8, …]`: one compiled shape for all."""

    def fill(rows):
        micro, each, _ = rows.shape
        return jnp.pad(rows, ((0, 4 - micro), (0, 8 - each), (0, 0)))

    return jax.tree.map(fill, batch)


class Steps:
    """A partition, an optimizer and the compiled step over them."""

    def __init__(
        self, model, trained="all", optimizer=None, schedule=None, objective=losses.GENERATION
    ):
        self.partition = choose_trained(model.abstract, trained)
        self.optimizer = optimizer or optax.sgd(1.0)
        schedule = schedule or optax.constant_schedule(1.0)
        self.function = train_step.make_train_step(
            model, self.partition, self.optimizer, schedule, objective
        )
        self.run = jax.jit(self.function)

    def start(self, params):
        trained, frozen = self.partition.split(params)
        return train_step.init_state(trained, self.optimizer, jax.random.key(0)), frozen


@pytest.fixture(scope="module")
def plain(model):
    """Gradient descent at rate 1: the change of a parameter is minus its gradient."""
    return Steps(model)


@pytest.fixture(scope="module")
def last(model):
    """AdamW on the last layer."""
    config = defaults.default().train
    config.update({"weight_decay": 0.1, "learning_rate": 0.1})
    return Steps(model, "last:1", optim.optimizer(config))


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_accumulating_equals_one_batch(plain, params):
    state, frozen = plain.start(params)
    whole, whole_metrics = plain.run(state, frozen, filled(batch_of(1)))
    parts, parts_metrics = plain.run(state, frozen, filled(batch_of(4)))
    counts = batch_of(4).targets[ANSWER].mask.sum(axis=(1, 2))
    assert len(set(counts.tolist())) == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
        parts.trained,
        whole.trained,
    )
    assert any(
        np.max(np.abs(a - b)) > 0.1
        for a, b in zip(jax.tree.leaves(whole.trained), jax.tree.leaves(params), strict=True)
    )
    np.testing.assert_allclose(parts_metrics, whole_metrics, rtol=1e-6)


def test_metrics_are_means_over_label_tokens(plain, model, params):
    state, frozen = plain.start(params)
    after, metrics = plain.run(state, frozen, filled(batch_of(1)))
    batch = jax.tree.map(lambda rows: rows[0], batch_of(1))
    logits = jax.jit(lambda: losses.label_logits(model.bind(params), batch))()
    logits, mask = np.asarray(logits, np.float64), np.asarray(batch.targets[ANSWER].mask)
    picked = np.take_along_axis(
        logits, np.asarray(batch.targets[ANSWER].labels)[..., None], axis=-1
    )[..., 0]
    loss = np.log(np.exp(logits).sum(axis=-1)) - picked
    correct = logits.argmax(axis=-1) == batch.targets[ANSWER].labels
    assert mask.sum() == sum(label for _, _, label in SIZES)
    np.testing.assert_allclose(metrics.loss, loss[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.accuracy, correct[mask].mean(), rtol=1e-6)
    change = jax.tree.map(lambda new, old: new - old, after.trained, params)
    np.testing.assert_allclose(metrics.gradient_norm, optax.tree.norm(change), rtol=1e-5)
    assert int(after.step) == 1
    assert int(metrics.skipped) == 0


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(last, params):
    state, frozen = last.start(params)
    state, _ = last.run(state, frozen, batch_of(1))
    broken = {**frozen, "norm": {"scale": jnp.full_like(frozen["norm"]["scale"], jnp.inf)}}

    once, metrics = last.run(state, broken, batch_of(1))
    assert not math.isfinite(metrics.loss)
    assert int(metrics.skipped) == int(once.skipped) == 1
    twice, _ = last.run(once, broken, batch_of(1))
    assert int(twice.skipped) == 2
    assert int(twice.step) == int(state.step) + 2
    same((twice.trained, twice.opt_state), (state.trained, state.opt_state))

    again, metrics = last.run(twice, frozen, batch_of(1))
    assert int(metrics.skipped) == int(again.skipped) == 0
    expected, _ = last.run(state, frozen, batch_of(1))
    same(again.trained, expected.trained)
    assert last.run._cache_size() == 1, "compiled again on the way"


class _Steep(losses.Objective):
    """A square root has an infinite slope at 0."""

    def sums(self, *arguments):
        sums = super().sums(*arguments)
        return sums._replace(loss=sums.loss + jnp.sqrt(0.0 * sums.loss))


def test_a_gradient_that_is_not_finite_is_skipped_although_the_loss_is(model, params):
    steep = _Steep(losses.GENERATION.scores, losses.GENERATION.terms)
    some = Steps(model, "norm/scale", objective=steep)
    state, frozen = some.start(params)
    after, metrics = some.run(state, frozen, batch_of(1))
    assert math.isfinite(metrics.loss)
    assert not math.isfinite(metrics.gradient_norm)
    assert int(metrics.skipped) == 1
    same(after.trained, state.trained)


def test_frozen_parameters_stay_bitwise_and_have_no_moments(last, params):
    state, frozen = last.start(params)
    for _ in range(2):
        state, _ = last.run(state, frozen, batch_of(1))
    after = last.partition.join(state.trained, frozen)

    def check(path, new, old):
        name = optim.path_name(path)
        if name.startswith("layers/"):
            np.testing.assert_array_equal(new[:-1], old[:-1], err_msg=name)
            assert np.any(new[-1] != old[-1]), name
        else:
            np.testing.assert_array_equal(new, old, err_msg=name)

    jax.tree_util.tree_map_with_path(check, after, params)
    trained_size = sum(leaf.size for leaf in jax.tree.leaves(state.trained))
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert held == 2 * trained_size + 2  # both moments, and the two counters of steps


def after_two_steps(model, params, partition, **changes):
    """The state after two steps of AdamW, and the whole tree then."""
    config = defaults.default().train
    config.update(changes)
    optimizer, schedule = optim.optimizer(config), optim.schedule(config)
    step = jax.jit(
        train_step.make_train_step(model, partition, optimizer, schedule, losses.GENERATION)
    )
    trained, frozen = partition.split(params)
    state = train_step.init_state(trained, optimizer, jax.random.key(0))
    for _ in range(2):
        state, _ = step(state, frozen, filled(batch_of(1)))
    return state, join_tables(partition.join(state.trained, frozen))


def same_but_for_rounding(actual, expected):
    """Within four units in the last place of the largest value: processors sum in other orders."""
    unit = np.spacing(np.max(np.abs(expected)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * unit)


def test_training_the_used_rows_of_a_table_equals_training_all_without_decay(model, params):
    used = np.unique(np.asarray(filled(batch_of(1)).tokens))
    assert len(used) < CONFIG.vocab_size
    _, whole = after_two_steps(model, params, choose_trained(model.abstract, "all"))
    state, some = after_two_steps(model, params, choose_trained(model.abstract, "all", used))
    jax.tree.map(same_but_for_rounding, some, whole)
    moved = np.any(some["embed"]["embedding"] != params["embed"]["embedding"], axis=1)
    assert set(np.flatnonzero(moved)) <= set(used)
    assert moved.sum() >= len(used) - 1  # padding's row has no gradient
    held = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2]
    assert (len(used), CONFIG.hidden_size) in held
    assert (CONFIG.vocab_size, CONFIG.hidden_size) not in held


def test_layers_apart_train_as_a_stack_does(model, params):
    changes = {"weight_decay": 0.5, "learning_rate": 1e-2}
    stacked = choose_trained(model.abstract, "all")
    _, whole = after_two_steps(model, params, stacked, **changes)
    state, apart = after_two_steps(model, params, stacked._replace(unstacked=True), **changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), apart, whole)
    kernel = state.trained["layers"]["mlp"]["up"]["kernel"]
    assert [part.ndim for part in kernel.parts] == [2] * CONFIG.num_layers


def test_bfloat16_parameters_keep_their_dtype(params):
    model = registry.create(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    some = Steps(model, "norms", optim.optimizer(defaults.default().train))
    state, frozen = some.start(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    after, metrics = jax.eval_shape(some.function, state, frozen, batch_of(2))
    assert {leaf.dtype for leaf in jax.tree.leaves(after.trained)} == {jnp.dtype("bfloat16")}
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}
    assert metrics.loss.dtype == metrics.gradient_norm.dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


class _Summed(losses.Objective):
    """The loss summed, not averaged: a micro-batch's gradient is the same beside others."""

    def totals(self, batch):
        return dict.fromkeys(self.terms, jnp.ones(()))


def test_bfloat16_gradients_are_summed_in_float32(params):
    """In bfloat16 the sum of four would be off by some 1e-3 of its size."""
    model = registry.create(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    keep = optax.trace(decay=0.0)  # its state is the last gradient
    summed = _Summed(losses.GENERATION.scores, losses.GENERATION.terms)
    some = Steps(model, "norm/scale", keep, objective=summed)
    state, frozen = some.start(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))

    def gradient(batch):
        after, _ = some.run(state, frozen, filled(batch))
        return np.asarray(after.opt_state.trace["norm"]["scale"])

    batch = batch_of(4)
    alone = [gradient(jax.tree.map(lambda rows, i=i: rows[i : i + 1], batch)) for i in range(4)]
    scale = np.max(np.abs(np.sum(alone, axis=0)))
    np.testing.assert_allclose(gradient(batch), np.sum(alone, axis=0), rtol=0, atol=1e-5 * scale)


def test_no_array_of_all_tokens_by_vocabulary():
    """Numbers are chosen so that V is no other size, and all else with V in it is smaller."""
    V, T = 257, 48
    model = registry.create(dataclasses.replace(CONFIG, vocab_size=V))
    some = Steps(model)
    batch = batching.padded([batching.row(example) for example in examples([(0, 40, 3)] * 2)])
    batch = jax.tree.map(lambda rows: jnp.asarray(rows[None]), batch)
    assert batch.tokens.shape == (1, 2, T)

    def large(function, *arguments):
        found = shapes(function, *arguments)
        return {shape for shape in found if V in shape and math.prod(shape) >= T * V}

    state, frozen = some.start(random_params(model))
    found = set(shapes(some.function, state, frozen, batch))
    assert (2, 4, V) in found, "the label logits themselves"
    assert not large(some.function, state, frozen, batch)

    def all_logits(params, batch):
        module = model.bind(params)
        return module.logits(module.hidden(batch.tokens, batch.positions, batch.segment_ids))

    one = jax.tree.map(lambda rows: rows[0], batch)
    assert (2, T, V) in large(all_logits, state.trained, one), "such arrays would be found"


def test_no_transfer_inside_the_step(plain, params):
    state, frozen = plain.start(params)
    batch = filled(batch_of(1))
    with jax.transfer_guard("disallow"):
        state, _ = plain.run(state, frozen, batch)
        plain.run(state, frozen, batch)
        with pytest.raises(Exception, match="[Dd]isallowed"):
            plain.run(state, frozen, jax.tree.map(np.asarray, jax.device_get(batch)))


def golden_run() -> dict[str, float]:
    """Two AdamW steps of a tied model with all settings away from their defaults."""
    config = defaults.default().train
    config.update(
        {
            "steps": 10,
            "learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup_steps": 1,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "adam_beta1": 0.85,
            "adam_beta2": 0.97,
            "adam_epsilon": 1e-4,
        }
    )
    model = registry.create(
        dataclasses.replace(CONFIG, tie_embeddings=True, rms_norm_eps=1e-3), remat=True
    )
    some = Steps(model, "last:2", optim.optimizer(config), optim.schedule(config))
    state, frozen = some.start(random_params(model, seed=7))
    figures = {}
    for step in range(3):
        state, metrics = some.run(state, frozen, batch_of(2))
        figures |= {f"{name} {step}": float(value) for name, value in metrics._asdict().items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.trained):
        weights = np.cos(np.arange(leaf.size))  # a sum that tells positions apart
        figures[optim.path_name(path)] = float(np.dot(np.ravel(leaf), weights))
    return figures


@pytest.mark.parametrize("prng", ["threefry2x32", "rbg"])
def test_dropout_is_drawn_by_the_generator_asked_for_anew_in_every_step(prng, model, params):
    met = set()

    def scores(module, batch, key):
        met.add(str(jax.random.key_impl(key)))
        rows = losses.label_logits(module, batch)
        return {ANSWER: layers.dropout(rows, 0.5, key)}

    objective = losses.Objective(scores, losses.GENERATION.terms)
    partition, optimizer = choose_trained(model.abstract, "all"), optax.sgd(0.0)
    step = train_step.make_train_step(
        model, partition, optimizer, optax.constant_schedule(0.0), objective, prng=prng
    )
    step = jax.jit(step)
    trained, frozen = partition.split(params)
    state = train_step.init_state(trained, optimizer, jax.random.key(0))
    later, first = step(state, frozen, batch_of(1))
    _, again = step(state, frozen, batch_of(1))
    _, second = step(later, frozen, batch_of(1))
    assert met == {prng}
    assert first.loss == again.loss != second.loss


def test_golden_train_step():
    """The figures were written once by `golden_run`; a change to them is a change of training."""
    expected = json.loads(GOLDEN.read_text())
    actual = golden_run()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=2e-5, abs=2e-5), name
    assert expected["loss 2"] < expected["loss 0"] - 0.01


def test_kernels_stored_in_more_bits_than_they_are_multiplied_in():
    """The same step as with a cast beforehand; gradients are those of matmuls in few bits."""
    model = registry.create(CONFIG, dtype=jnp.bfloat16, remat=1)
    params = random_params(model)
    some = Steps(model)
    batch = batch_of(2)
    state, frozen = some.start(params)
    found, metrics = some.run(state, frozen, batch)

    def loss(cast, micro):
        joined = jax.tree.map(lambda cast, leaf: cast, cast, params)
        totals = losses.GENERATION.totals(batch)
        return losses.GENERATION.sums(model.bind(joined), micro, totals, None).loss

    cast = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(jnp.bfloat16) if "kernel" in str(path) else leaf, params
    )
    expected = 0.0
    gradient = jax.tree.map(jnp.zeros_like, params)
    for index in range(2):
        micro = jax.tree.map(lambda rows, index=index: rows[index], batch)
        value, one = jax.jit(jax.value_and_grad(loss))(cast, micro)
        expected += value
        gradient = jax.tree.map(jnp.add, gradient, one)
    assert float(metrics.loss) == pytest.approx(float(expected), rel=1e-3)

    def close(new, old, wanted):
        scale = float(jnp.max(jnp.abs(wanted)))
        np.testing.assert_allclose((old - new) / scale, wanted / scale, atol=0.02)

    jax.tree.map(close, found.trained, params, gradient)
    # Every kernel's gradient is made in the dtype of matmuls, and no stack is cast as a whole.
    text = jax.jit(some.function).lower(state, frozen, batch).as_text()
    up = "x".join(map(str, params["layers"]["mlp"]["up"]["kernel"].shape))
    assert f"tensor<{up}xbf16>" in text
    assert f"(tensor<{up}xf32>) -> tensor<{up}xbf16>" not in text
