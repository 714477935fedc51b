"""Every config's model, optimizer and train step, by shape alone: nothing is allocated."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import tuning
from jaxclf.config import loading
from jaxclf.data.batching import ANSWER, Batch, Targets
from jaxclf.models import registry
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.heads import HeadConfig
from jaxclf.training import losses, optim, train_step
from jaxclf.training.losses import Objective, Term

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs").glob("*.py")
    if "def get_config" in path.read_text() and not path.stem.startswith("gpt")
)


def variants(path: Path) -> tuple[str, ...]:
    """Adapters of those that have a base; their models on 20 Newsgroups are those on MASSIVE."""
    adapters = "qlora" in path.read_text() and not path.stem.endswith("_20ng")
    return ("", ":smoke", ":lora", ":qlora") if adapters else ("", ":smoke")


@pytest.mark.parametrize(
    ("path", "variant"),
    [(path, variant) for path in CONFIGS for variant in variants(path)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_train_step_keeps_every_shape_and_dtype(path, variant):
    config = loading.load(f"{path}{variant}")
    dimensions = registry.find(config.model.name)
    names, objective = [ANSWER], losses.GENERATION
    if isinstance(dimensions, EncoderConfig):
        names = ["intent", "slots"]
        heads = HeadConfig("intent", "sequence", 60), HeadConfig("slots", "token", 56)
        dimensions = dataclasses.replace(dimensions, heads=heads)
        objective = Objective(losses.head_scores, dict.fromkeys(names, Term()))
    model = create_model(config, dimensions)
    tokens = np.arange(9) if config.train.vocabulary == "used" else None
    tuned = tuning.choose(config, model.abstract, tokens)
    optimizer = optim.optimizer(config.train, config.lora.loraplus_lr_ratio)
    key = jax.eval_shape(lambda: jax.random.key(0))
    trained, frozen = jax.eval_shape(tuned.start, model.abstract, key)
    state = jax.eval_shape(lambda t, k: train_step.init_state(t, optimizer, k), trained, key)
    rows = jax.ShapeDtypeStruct((1, 2, 64), jnp.int32)
    labels = jax.ShapeDtypeStruct((1, 2, 8), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2, 8), jnp.bool_)
    batch = Batch(rows, rows, rows, rows, dict.fromkeys(names, Targets(labels, labels, mask)))
    schedule = optim.schedule(config.train)
    step = train_step.make_train_step(model, tuned, optimizer, schedule, objective)
    new_state, metrics = jax.eval_shape(step, state, frozen, batch)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, new_state))
    assert described[0] == described[1]
    assert metrics.loss.shape == ()
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}
