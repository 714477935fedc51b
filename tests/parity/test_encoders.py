"""Logits, loss and every gradient against transformers' classifiers, in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.core.tree import flatten, nest
from jaxclf.models import layers, registry
from tests.parity import helpers
from tests.parity.helpers import TOLERANCE, assert_close
from tests.tiny import random_params
from tests.tiny_encoders import ENCODERS, HEADS, inputs, with_heads

torch = pytest.importorskip("torch")

UNLABELLED = -100


@functools.cache
def compiled(family: str):
    """(parameters, inputs, targets, name of a head) → its mean loss, all gradients, its scores.

    One program for a model with all heads. Scores are [B, C] of the first tokens, or [B, T, C].
    """
    model = registry.create(with_heads(family, *HEADS))

    def losses(params, arrays, targets, weights):
        module = model.bind(params)
        hidden = module.hidden(*arrays)
        scores = {
            name: module.scores(name, hidden if head.kind == "token" else hidden[:, 0])
            for name, head in HEADS.items()
        }
        loss = {
            "sequence": cross_entropy(scores["sequence"], targets["sequence"]),
            "token": cross_entropy(scores["token"], targets["token"]),
            "regression": jnp.mean(jnp.square(scores["regression"][:, 0] - targets["regression"])),
        }
        return sum(weights[name] * loss[name] for name in loss), scores

    program = jax.jit(jax.value_and_grad(losses, has_aux=True))

    def run(params, arrays, targets, name):
        weights = {head: float(head == name) for head in HEADS}
        (loss, scores), gradient = program(params, arrays, targets, weights)
        return loss, gradient, scores[name]

    return model, run


def cross_entropy(scores, targets):
    """The mean over labelled places."""
    labelled = targets != UNLABELLED
    logarithms = jax.nn.log_softmax(scores)
    chosen = jnp.take_along_axis(logarithms, (targets * labelled)[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * labelled) / jnp.sum(labelled)


def theirs(hf, tokens, segment_ids, types, targets):
    """Mean loss, with gradients left in `hf`, and scores; positions are transformers' own."""
    given = {} if types is None else {"token_type_ids": torch.tensor(types)}
    labels = torch.tensor(targets if targets.dtype == np.float32 else targets.astype(np.int64))
    output = hf(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(segment_ids),
        labels=labels,
        **given,
    )
    output.loss.backward()
    return output.loss.item(), output.logits.detach().numpy()


def some_targets(segment_ids) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    rows = len(segment_ids)
    classes = random.integers(0, HEADS["token"].size, segment_ids.shape).astype(np.int32)
    first_of_word = random.random(segment_ids.shape) < 0.6
    return {
        "sequence": random.integers(0, HEADS["sequence"].size, rows).astype(np.int32),
        "token": np.where(segment_ids * first_of_word, classes, UNLABELLED),
        "regression": random.normal(size=rows).astype(np.float32),
    }


def with_zeros(tree, model):
    """The tree of a model with one head as that of a model with all: the rest is zero."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.abstract)
    return nest(flatten(zeros) | flatten(tree))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("family", ENCODERS)
def test_classifiers(family, name):
    config = with_heads(family, name)
    model, run = compiled(family)
    tokens, positions, segment_ids, types = inputs()
    given = types if config.type_vocab_size and name != "regression" else None
    types = np.zeros_like(types) if given is None else types
    targets = some_targets(segment_ids)
    hf = helpers.hf_encoder(config, seed=1)
    params = with_zeros(helpers.encoder_tree(helpers.hf_tensors(hf), config), model)
    loss, gradient, scores = run(params, (tokens, positions, segment_ids, types), targets, name)
    hf_loss, hf_scores = theirs(hf, tokens, segment_ids, given, targets[name])

    assert_close(loss, hf_loss, "loss")
    assert np.abs(hf_scores).max() > 0.5
    seen = segment_ids > 0 if name == "token" else ...
    assert_close(scores[seen], hf_scores[seen], "scores")

    hf_gradient = helpers.encoder_tree(helpers.hf_tensors(hf, gradients=True), config)
    for path, leaf in flatten(hf_gradient).items():
        # A bias of the keys adds the same to all scores of a query, which softmax takes out.
        if path != "layers/attention/k/bias":
            assert np.max(np.abs(leaf)) > 0.01, f"{path}: too small a gradient to compare"
    expected = flatten(with_zeros(hf_gradient, model))
    for path, leaf in flatten(gradient).items():
        assert_close(leaf, expected[path], path)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_activations(name):
    from transformers.activations import ACT2FN

    from jaxclf.convert.encoders import ACTIVATIONS

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    expected = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(
        layers.ACTIVATIONS[ACTIVATIONS[name]](x), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    "change",
    [{"layer_norm_eps": 1e-12}, {"activation": "gelu_tanh"}, {"num_heads": 4}],
    ids=lambda change: "-".join(change),
)
def test_every_constant_moves_the_hidden_states(change):
    """So that the comparisons above would fail if a field were ignored."""
    arrays = inputs()
    config = ENCODERS["bert"]
    params = random_params(registry.create(config))

    def hidden(config):
        model = registry.create(config)
        return jax.jit(lambda params: model.bind(params).hidden(*arrays))(params)

    difference = hidden(config) - hidden(dataclasses.replace(config, **change))
    assert jnp.max(jnp.abs(difference)) > 10 * TOLERANCE
