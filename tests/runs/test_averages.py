"""Runs that keep an average of their parameters: what it is, and that it survives a stop."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclf.adapters.partition import choose_trained
from jaxclf.checkpoint.model_dir import resolve
from jaxclf.checkpoint.tree_store import manifest_to_json
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core import streams
from jaxclf.core.tree import flatten
from jaxclf.models import registry
from jaxclf.runs.training import train
from jaxclf.training import losses, train_step
from tests.tiny import CONFIG
from tests.training.test_train_step import batch_of

ROOT = Path(__file__).parents[2]


def tiny(*overrides: str):
    """Six steps of a tiny encoder on 24 built-in utterances, with an average."""
    fields = ["data.name=builtin", "data.task=intent", "model.unroll=9", "train.steps=6"]
    fields += ["train.save_steps=3", "train.learning_rate=0.01", "train.schedule=constant"]
    fields += ["train.max_length=32", "train.average=ema", "train.average_decay=0.5"]
    return loading.load(str(ROOT / "configs/minilm_massive.py:smoke"), [*fields, *overrides])


def test_each_step_moves_the_average_by_its_share():
    model = registry.create(CONFIG)
    partition = choose_trained(model.abstract, "all")
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.abstract)
    trained, frozen = partition.split(zeros)
    # What a step does to the parameters is known: its gradient is nothing, its decay is.
    steady = optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates))
    step = train_step.make_train_step(
        model, partition, steady, optax.constant_schedule(1.0), losses.GENERATION, average_decay=0.2
    )
    state = train_step.init_state(trained, steady, jax.random.key(0), True)
    run, expected = jax.jit(step), 0.0
    for number, decay in enumerate((0.1, 2 / 11, 0.2, 0.2)):  # (1 + t) / (10 + t), then the given
        state, _ = run(state, frozen, batch_of(1))
        expected = decay * expected + (1 - decay) * (number + 1)
        for leaf in jax.tree.leaves(state.average):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)
    assert state.average is not state.trained


def test_the_average_is_what_is_evaluated_and_kept(tmp_path):
    """After one step of decay 0.1 the average is a tenth of the start and 0.9 of the step."""
    fields = ("train.steps=1", "train.eval_steps=1")
    train(tiny(*fields), tmp_path / "averaged")
    train(tiny(*fields, "train.average=none"), tmp_path / "plain")
    averaged, plain = (open_run(tmp_path / name).classifier for name in ("averaged", "plain"))
    found, plain = flatten(averaged.params), flatten(plain.params)
    start = flatten(averaged.model.init(streams.key(0, streams.INITIALIZATION)))
    moved = 0
    for path, leaf in found.items():
        # Adam's first step is 0.01 whatever the gradient; of one that is near 0 it is as it rounds.
        expected = 0.1 * start[path] + 0.9 * plain[path]
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-3 * 0.01)
        moved += not np.array_equal(leaf, plain[path])
    assert moved > 10


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("tune=lora", "lora.rank=2", "lora.dropout=0.1"),
        ("model.param_dtype=bfloat16", "train.stochastic_rounding=True", "model.unroll=1"),
    ],
    ids=["whole", "adapters", "bfloat16"],
)
def test_a_resumed_run_has_the_average_of_an_unbroken_one(fields, tmp_path):
    train(tiny(*fields), tmp_path / "whole")
    train(tiny(*fields, "train.steps=3"), tmp_path / "parts")
    train(tiny(*fields), tmp_path / "parts")
    ends = [resolve(tmp_path / name, "last") for name in ("whole", "parts")]
    assert manifest_to_json(ends[0].manifest) == manifest_to_json(ends[1].manifest)
    assert all(leaf.dtype != "float32" for leaf in ends[0].manifest.values()) == (
        "model.param_dtype=bfloat16" in fields
    )
