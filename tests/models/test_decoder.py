"""What must hold for any weights: who sees whom, and that every path computes the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclf.data import batching, loader
from jaxclf.models import layers, registry
from jaxclf.models.layers import RopeScaling
from jaxclf.models.masks import causal_mask
from jaxclf.training import losses
from tests.tiny import CONFIG, examples, random_params, shapes, summed_loss


def whole_row(length: int):
    """Distinct tokens with their positions and one segment, `[1, length]` each."""
    tokens = jax.random.permutation(jax.random.key(1), CONFIG.vocab_size)[None, :length]
    return tokens, jnp.arange(length)[None], jnp.ones((1, length), jnp.int32)


def test_a_token_sees_itself_and_earlier_tokens_of_its_segment_only(model, params):
    tokens, _, _ = whole_row(12)
    segment_ids = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.array([[*range(5), *range(4), 0, 0, 0]])

    @jax.jit
    @functools.partial(jax.grad, argnums=0)
    def gradient(table, position):
        module = model.bind({**params, "embed": {"embedding": table}})
        return jnp.sum(module.hidden(tokens, positions, segment_ids)[0, position] ** 3)

    for position in range(9):
        # Tokens are distinct, so each row of the table stands for one position.
        rows = gradient(params["embed"]["embedding"], position)[tokens[0]]
        seen = np.asarray(jnp.any(rows != 0, axis=1))
        start = 0 if position < 5 else 5
        assert np.flatnonzero(seen).tolist() == list(range(start, position + 1))


def test_packed_rows_sum_to_the_same_loss_as_single_rows(model, params):
    documents = examples([(0, 3, 2), (4, 9, 5), (4, 2, 1), (4, 13, 3), (1, 1, 4)])
    packed = next(loader.train_batches(documents, batch_size=3, seed=0, row_length=40))
    of_row = [row.max() for row in packed.segment_ids]
    assert max(of_row) > 1

    single = []
    for row, count in enumerate(of_row):
        for segment in range(1, count + 1):
            read = packed.tokens[row][packed.segment_ids[row] == segment]
            (example,) = (e for e in documents if np.array_equal(batching.row(e)["tokens"], read))
            single.append(batching.row(example))
    unpacked = batching.padded(single)

    @jax.jit
    def sums(batch):
        return summed_loss(model.bind(params), batch)

    together, apart = sums(packed), sums(unpacked)
    assert together.count == apart.count == sum(len(row["answer/labels"]) for row in single)
    assert together.correct == apart.correct
    np.testing.assert_allclose(together.loss, apart.loss, rtol=1e-6)


def test_label_logits_are_slices_of_all_logits(model, params):
    documents = examples([(0, 3, 2), (4, 9, 5), (4, 2, 1)])
    batch = jax.tree.map(jnp.asarray, batching.padded([batching.row(e) for e in documents]))

    @jax.jit
    def both(params):
        module = model.bind(params)
        hidden = module.hidden(batch.tokens, batch.positions, batch.segment_ids)
        return losses.label_logits(module, batch), module.logits(hidden)

    chosen, everywhere = both(params)
    for row, example in enumerate(documents):
        count, end = len(example.label), len(batching.row(example)["tokens"])
        expected = everywhere[row, end - count : end]
        np.testing.assert_allclose(chosen[row, :count], expected, rtol=0, atol=1e-6)


def test_scanned_layers_equal_a_loop_over_them(model, params):
    tokens, positions, segment_ids = whole_row(9)

    @jax.jit
    def both(params):
        module = model.bind(params)
        x, ropes = module.start(tokens, positions)
        graphdef, stacked = nnx.split(module.layers)
        for index in range(CONFIG.num_layers):
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=index: leaf[i], stacked))
            x = block(x, ropes["global"], causal_mask(segment_ids))
        return module.hidden(tokens, positions, segment_ids), module.norm(x)

    np.testing.assert_allclose(*both(params), rtol=0, atol=5e-6)


@pytest.mark.parametrize("unroll", [1, CONFIG.num_layers])
@pytest.mark.parametrize("remat", [False, True])
def test_states_of_some_places_are_those_of_the_whole(params, unroll, remat):
    tokens, positions, segment_ids = whole_row(9)
    at = np.array([[8, 3, 0]])
    wanted, plain = registry.create(CONFIG, remat=remat, unroll=unroll), registry.create(CONFIG)

    def some(params):
        return wanted.bind(params).hidden(tokens, positions, segment_ids, at=at)

    def all_(params):
        return plain.bind(params).hidden(tokens, positions, segment_ids)[:, at[0]]

    def both(function):
        return jax.jit(lambda params: (function(params), jax.grad(cubed)(params, function)))(params)

    def cubed(params, function):
        return jnp.mean(function(params) ** 3)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), both(some), both(all_)
    )
    # One by one, the last layer's feed-forward is computed for three places and no others.
    few = (*at.shape, CONFIG.intermediate_size)
    assert (few in shapes(some, params)) == (unroll > 1)


def test_rematerialisation_changes_no_gradient():
    config = dataclasses.replace(CONFIG, num_layers=4)
    params = random_params(registry.create(config))
    tokens, positions, segment_ids = whole_row(9)

    def gradient(remat: int):
        model = registry.create(config, remat=remat)

        def loss(params):
            return jnp.mean(model.bind(params).hidden(tokens, positions, segment_ids) ** 3)

        # Without it the feed-forward's activations of all layers are kept for the backward pass.
        kept = (config.num_layers, *tokens.shape, config.intermediate_size)
        assert (kept in shapes(jax.grad(loss), params)) != bool(remat)
        # Of a group only the first layer's input is, beside those of the layers at work.
        inputs = (config.num_layers, *tokens.shape, config.hidden_size)
        assert (inputs in shapes(jax.grad(loss), params)) == (remat < 2)
        return jax.jit(jax.grad(loss))(params)

    def assert_same(actual, expected):
        scale = max(1.0, float(jnp.max(jnp.abs(expected))))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * scale)

    jax.tree.map(assert_same, gradient(1), gradient(0))
    jax.tree.map(assert_same, gradient(2), gradient(0))


def test_extending_a_cache_in_pieces_equals_one_pass(model, params):
    tokens, positions, segment_ids = whole_row(11)

    @jax.jit
    def both(params):
        module = model.bind(params)
        mask, cache = causal_mask(segment_ids), module.empty_cache(1, 11)
        pieces = []
        for start, end in [(0, 7), (7, 11)]:
            hidden, cache = module.extend(
                tokens[:, start:end], positions[:, start:end], mask[:, :, start:end], cache, start
            )
            pieces.append(hidden)
        return jnp.concatenate(pieces, axis=1), module.hidden(tokens, positions, segment_ids)

    np.testing.assert_allclose(*both(params), rtol=0, atol=5e-6)


def test_bfloat16_stays_near_float32_and_padding_stays_finite(model, params):
    documents = examples([(0, 3, 2), (4, 9, 5)])
    batch = jax.tree.map(jnp.asarray, batching.padded([batching.row(e) for e in documents]))
    half = registry.create(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    half_params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.abstract)} == {jnp.dtype(jnp.bfloat16)}

    def loss(table, params, model):
        module = model.bind({**params, "embed": {"embedding": table}})
        sums = summed_loss(module, batch)
        return sums.loss / sums.count

    table = half_params["embed"]["embedding"]
    value, gradient = jax.jit(functools.partial(jax.value_and_grad(loss), model=half))(
        table, half_params
    )
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert bool(jnp.all(jnp.isfinite(gradient)))
    expected = jax.jit(functools.partial(loss, model=model))(params["embed"]["embedding"], params)
    np.testing.assert_allclose(value, expected, rtol=0.03)


def test_rope_scaling_stretches_long_waves_only():
    scaling = RopeScaling(8.0, 1.0, 4.0, original_max_position=8192)
    plain = layers.rope_frequencies(128, 500_000.0)
    ratio = np.asarray(layers.rope_frequencies(128, 500_000.0, scaling) / plain)
    waves = 2 * np.pi / np.asarray(plain)
    np.testing.assert_allclose(ratio[waves < 8192 / 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[waves > 8192], 1 / 8, rtol=1e-6)
    assert np.all(np.diff(ratio) <= 0)
    assert 1 / 8 < ratio[(waves > 8192 / 4) & (waves < 8192)].mean() < 1
