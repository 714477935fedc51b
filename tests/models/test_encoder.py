"""What must hold for any weights: who sees whom, that every path computes the same, dropout."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclf.models import layers, registry
from jaxclf.models.attention import attend
from jaxclf.models.encoder import Surroundings
from jaxclf.models.masks import full_mask
from tests.tiny import random_params, shapes
from tests.tiny_encoders import ENCODERS, HEADS, inputs, with_heads


def random_key(seed: int):
    """Of the kind that compiles fastest."""
    return jax.random.key(seed, impl="rbg")


def one_row(*lengths: int, padding: int = 0):
    """Distinct tokens with positions that restart in each segment, `[1, T]` each."""
    total = sum(lengths) + padding
    tokens = jax.random.permutation(jax.random.key(1), ENCODERS["bert"].vocab_size)[None, :total]
    positions = np.concatenate([np.arange(count) for count in (*lengths, padding)])[None]
    segments = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, padding])[None]
    return tokens, positions, segments


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_a_token_sees_all_of_its_segment_and_nothing_else(family):
    model = registry.create(ENCODERS[family])
    params = random_params(model)
    arrays = one_row(5, 4, padding=3)
    segments = arrays[2][0]

    @jax.jit
    @jax.grad
    def gradient(params, position):
        return jnp.sum(model.bind(params).hidden(*arrays)[0, position] ** 3)

    for position in range(9):
        # Tokens are distinct, so each row of the table stands for one position.
        table = gradient(params, position)["embed"]["tokens"]["embedding"]
        seen = np.any(np.asarray(table)[arrays[0][0]] != 0, axis=1)
        np.testing.assert_array_equal(seen, segments == segments[position])
        assert np.count_nonzero(np.any(table, axis=1)) == seen.sum()


@pytest.mark.parametrize("family", ENCODERS)
def test_packed_texts_equal_each_alone(family):
    model = registry.create(ENCODERS[family])
    params = random_params(model)
    lengths = (7, 2, 11)
    row = one_row(*lengths)
    types = np.arange(sum(lengths))[None] % 2
    widest = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    place = starts[:, None] + np.minimum(np.arange(widest), np.array(lengths)[:, None] - 1)
    is_text = np.arange(widest) < np.array(lengths)[:, None]
    apart = [np.asarray(array)[0][place] * is_text for array in (*row, types)]
    apart[2] = is_text.astype(np.int64)

    @jax.jit
    def both(params):
        module = model.bind(params)
        return module.hidden(*row, types), module.hidden(*apart)

    together, alone = both(params)
    np.testing.assert_allclose(together[0][place[is_text]], alone[is_text], rtol=0, atol=1e-5)


def test_types_left_out_are_zeros():
    model = registry.create(ENCODERS["bert"])
    params = random_params(model)
    tokens, positions, segments, types = inputs()

    @jax.jit
    def three(params):
        hidden = model.bind(params).hidden
        zeros = np.zeros_like(types)
        return [hidden(tokens, positions, segments, given) for given in (None, zeros, types)]

    without, with_zeros, with_types = three(params)
    np.testing.assert_array_equal(without, with_zeros)
    assert np.max(np.abs(without - with_types)) > 0.1


def test_scanned_layers_equal_a_loop_over_them():
    config = ENCODERS["electra"]
    model = registry.create(config)
    tokens, positions, segments, types = inputs()

    @jax.jit
    def both(params):
        module = model.bind(params)
        x = module.project(module.embed(tokens, positions, types, jnp.float32))
        graphdef, stacked = nnx.split(module.layers)
        for index in range(config.num_layers):
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=index: leaf[i], stacked))
            x = block(x, Surroundings(full_mask(segments)), None)
        return module.hidden(tokens, positions, segments, types), x

    np.testing.assert_allclose(*both(random_params(model)), rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", ENCODERS)
def test_states_of_some_places_are_those_of_the_whole(family):
    config = ENCODERS[family]
    plain, wanted = registry.create(config), registry.create(config, unroll=config.num_layers)
    arrays = inputs()
    rows, count = arrays[0].shape
    at = np.random.default_rng(3).integers(0, count, (rows, 2))
    params = random_params(plain)
    some = jax.jit(lambda params: wanted.bind(params).hidden(*arrays, at=at))
    whole = jax.jit(lambda params: plain.bind(params).hidden(*arrays))(params)
    expected = np.take_along_axis(np.asarray(whole), at[..., None], axis=1)
    np.testing.assert_allclose(some(params), expected, rtol=0, atol=5e-6)
    assert (*at.shape, config.intermediate_size) in shapes(some, params)


def test_rematerialisation_changes_no_gradient():
    config = ENCODERS["bert"]
    arrays = inputs()
    params = random_params(registry.create(config))
    key = random_key(2)

    def gradient(remat: bool):
        model = registry.create(config, remat=remat)

        def loss(params):
            return jnp.mean(model.bind(params).hidden(*arrays, key=key) ** 3)

        # Without it the feed-forward's activations of all layers are kept for the backward pass.
        kept = (config.num_layers, *arrays[0].shape, config.intermediate_size)
        assert (kept in shapes(jax.grad(loss), params)) != remat
        return jax.jit(jax.grad(loss))(params)

    def assert_same(actual, expected):
        scale = max(1.0, float(jnp.max(jnp.abs(expected))))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * scale)

    jax.tree.map(assert_same, gradient(True), gradient(False))


def test_bfloat16_stays_near_float32_and_padding_stays_finite():
    config = with_heads("bert", "sequence")
    arrays = inputs()
    half = registry.create(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.abstract)} == {jnp.dtype(jnp.bfloat16)}
    params = random_params(half)

    def loss(table, params, model):
        embed = {**params["embed"], "tokens": {"embedding": table}}
        module = model.bind({**params, "embed": embed})
        hidden = module.hidden(*arrays)
        return jnp.mean(module.scores("sequence", hidden[:, 0]) ** 2), hidden

    program = jax.jit(jax.value_and_grad(functools.partial(loss, model=half), has_aux=True))
    (value, hidden), gradient = program(params["embed"]["tokens"]["embedding"], params)
    assert value.dtype == jnp.float32
    assert hidden.dtype == jnp.bfloat16
    assert gradient.dtype == jnp.bfloat16
    assert jnp.all(jnp.isfinite(gradient))
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    _, expected = jax.jit(functools.partial(loss, model=registry.create(config)))(
        whole["embed"]["tokens"]["embedding"], whole
    )
    assert jnp.max(jnp.abs(hidden - expected)) < 0.15


# Dropout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate, dtype):
    x = jnp.ones((300, 700), dtype)
    dropped = np.asarray(layers.dropout(x, rate, jax.random.key(0)), np.float64)
    deviation = math.sqrt(rate * (1 - rate) / x.size)
    assert abs(np.mean(dropped == 0) - rate) < 4 * deviation
    assert abs(dropped.mean() - 1) < 4 * deviation / (1 - rate) + (dtype == jnp.bfloat16) * 0.004
    assert len(np.unique(dropped)) == 2
    assert layers.dropout(x, rate, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x


def attention_inputs():
    random = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(random.normal(size=(4, 16, 3, 8)), jnp.float32) for _ in range(3)
    )
    return query, key, value, full_mask(inputs()[2])


def test_attention_without_dropped_weights_is_attention():
    query, key, value, mask = attention_inputs()
    is_text = inputs()[2] > 0
    actual = attend(query, key, value, mask, 1e-9, random_key(0))
    expected = attend(query, key, value, mask)
    np.testing.assert_allclose(actual[is_text], expected[is_text], rtol=0, atol=1e-6)


def test_attention_with_dropped_weights_is_attention_on_average():
    query, key, value, mask = attention_inputs()
    is_text = inputs()[2] > 0
    keys = jax.random.split(random_key(0), 4000)
    samples = jax.lax.map(lambda k: attend(query, key, value, mask, 0.3, k), keys, batch_size=100)
    error = jnp.mean(samples, axis=0) - attend(query, key, value, mask)
    noise = jnp.std(samples, axis=0) / math.sqrt(len(keys))
    assert jnp.max(noise) > 0.001
    assert jnp.max(jnp.abs(error / noise)[is_text]) < 5.5  # of 800 normal values


def hidden_states(**rates):
    """A function of a dropout key to all hidden states, with these rates and no others."""
    config = dataclasses.replace(ENCODERS["bert"], dropout=0.0, attention_dropout=0.0)
    model = registry.create(dataclasses.replace(config, **rates))
    params, arrays = random_params(model), inputs()
    return jax.jit(lambda key: model.bind(params).hidden(*arrays, key=key))


@pytest.mark.parametrize("name", ["dropout", "attention_dropout"])
def test_each_dropout_acts_with_a_key_alone(name):
    is_text = inputs()[2] > 0
    plain = hidden_states()(None)
    some = hidden_states(**{name: 0.2})
    np.testing.assert_array_equal(some(None), plain)
    first, again, other = (some(random_key(seed))[is_text] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.all(jnp.max(jnp.abs(first - other), axis=-1) > 0.01)
    assert jnp.all(jnp.max(jnp.abs(first - plain[is_text]), axis=-1) > 0.01)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_distilbert_alone_keeps_all_that_attention_adds(family):
    nearly_all = 1 - 2**-16
    config = dataclasses.replace(ENCODERS[family], dropout=nearly_all, attention_dropout=0.0)
    model = registry.create(config)
    params = random_params(model)

    @jax.jit
    def hidden(bias):
        attention = params["layers"]["attention"]
        attention = {**attention, "o": {**attention["o"], "bias": bias}}
        layers = {**params["layers"], "attention": attention}
        return model.bind({**params, "layers": layers}).hidden(*inputs(), key=random_key(0))

    bias = params["layers"]["attention"]["o"]["bias"]
    moved = jnp.mean(hidden(bias) != hidden(-bias))
    assert moved > 0.9 if family == "distilbert" else moved < 0.1


def test_dropout_of_rate_zero_is_none():
    some = hidden_states()
    np.testing.assert_allclose(some(random_key(0)), some(None), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_heads_dropout_acts_with_a_key_alone(family, name):
    model = registry.create(with_heads(family, name))
    module = model.bind(random_params(model))
    hidden = jax.random.normal(jax.random.key(9), (40, model.config.hidden_size))
    plain, first, other = (
        module.scores(name, hidden, key) for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert plain.shape == (40, HEADS[name].size)
    assert jnp.mean(first != other) > 0.9
    assert jnp.mean(first != plain) > 0.9


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("bert_base", 109_482_240),
        ("bert_large", 335_141_888),
        ("minilm_l6", 22_713_216),
        ("roberta_base", 124_055_040),  # without the pooler, of 590,592
        ("roberta_large", 354_310_144),  # of 1,049,600
        ("distilbert", 66_362_880),
        ("electra_small", 13_483_008),
        ("electra_base", 108_891_648),
    ],
)
def test_parameter_counts_are_those_of_the_released_checkpoints(name, published):
    config = registry.CONFIGS[name]
    config = dataclasses.replace(config, pooler=config.family == "bert")
    leaves = jax.tree.leaves(registry.create(config).abstract)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == published
