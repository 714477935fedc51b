"""Logits, loss and every gradient against transformers' classifiers, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.models import encoder, zoo
from tests.parity import helpers
from tests.parity.helpers import TOLERANCE, assert_close
from tests.tiny import random_params
from tests.tiny_encoders import ENCODERS, inputs, with_head

torch = pytest.importorskip("torch")

UNLABELLED = -100


def ours(config, params, arrays, targets):
    """Mean loss, gradient tree and scores: [B, C] of a sequence head, [B, T, C] of a token head.

    Integer targets are classes or UNLABELLED, floats what the score should be.
    """
    model = zoo.create(config)
    (head,) = config.heads

    def both(params):
        module = model.bind(params)
        hidden = module.hidden(*arrays)
        scores = module.scores(head.name, hidden[:, 0] if head.kind == "sequence" else hidden)
        if targets.dtype == np.float32:
            return jnp.mean(jnp.square(scores[:, 0] - targets)), scores
        labelled = targets != UNLABELLED
        logarithms = jax.nn.log_softmax(scores)
        chosen = jnp.take_along_axis(logarithms, (targets * labelled)[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * labelled) / np.sum(labelled), scores

    (loss, scores), gradient = jax.jit(jax.value_and_grad(both, has_aux=True))(params)
    return loss, gradient, scores


def theirs(hf, arrays, targets):
    """Mean loss, with gradients left in `hf`, and scores; positions are transformers' own."""
    tokens, _, segment_ids, types = arrays
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


def some_targets(kind: str, config, segment_ids) -> np.ndarray:
    random = np.random.default_rng(5)
    rows, size = len(segment_ids), config.heads[0].size
    if kind == "regression":
        return random.normal(size=rows).astype(np.float32)
    if kind == "sequence":
        return random.integers(0, size, rows).astype(np.int32)
    classes = random.integers(0, size, segment_ids.shape).astype(np.int32)
    first_of_word = random.random(segment_ids.shape) < 0.6
    return np.where(segment_ids * first_of_word, classes, UNLABELLED)


def assert_same_gradients(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias of the keys adds the same to all scores of a query, which softmax takes out.
        if name != "layers/attention/k/bias":
            assert np.max(np.abs(other)) > 0.01, f"{name}: too small a gradient to compare"
        assert_close(leaf, other, name)


@pytest.mark.parametrize("kind", ["sequence", "token", "regression"])
@pytest.mark.parametrize("family", ENCODERS)
def test_classifiers(family, kind):
    head = "sequence" if kind == "regression" else kind
    config = with_head(ENCODERS[family], head, 1 if kind == "regression" else None)
    arrays = inputs()
    if config.type_vocab_size == 0 or kind == "regression":
        arrays = (*arrays[:3], None)  # which stands for zeros
    targets = some_targets(kind, config, arrays[2])
    hf = helpers.hf_encoder(config, seed=1)
    params = helpers.encoder_tree(helpers.hf_tensors(hf), config)
    loss, gradient, scores = ours(config, params, arrays, targets)
    hf_loss, hf_scores = theirs(hf, arrays, targets)

    assert_close(loss, hf_loss, "loss")
    assert np.abs(hf_scores).max() > 1
    seen = arrays[2] > 0 if kind == "token" else ...
    assert_close(scores[seen], hf_scores[seen], "scores")
    expected = helpers.hf_tensors(hf, gradients=True)
    assert_same_gradients(gradient, helpers.encoder_tree(expected, config))


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_activations(name):
    from transformers.activations import ACT2FN

    from conversion.encoders import ACTIVATIONS

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    expected = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(
        encoder.ACTIVATIONS[ACTIVATIONS[name]](x), expected, rtol=0, atol=1e-6
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
    params = random_params(zoo.create(config))

    def hidden(config):
        model = zoo.create(config)
        return jax.jit(lambda params: model.bind(params).hidden(*arrays))(params)

    difference = hidden(config) - hidden(dataclasses.replace(config, **change))
    assert jnp.max(jnp.abs(difference)) > 10 * TOLERANCE
