"""The kernels of each backend against the plain one, with and without shared prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.models import zoo
from jaxclf.models.attention import attend, visible, visible_after
from jaxclf.shapes import Prefixes
from tests.tiny import CONFIG, random_params


def inputs(count=160, heads=4, kv_heads=2, size=128, seed=0):
    random = np.random.default_rng(seed)

    def draw(number):
        return jnp.asarray(random.normal(size=(2, count, number, size)), jnp.float32)

    # Three texts and padding in one row, one text that is padded on the left in the other.
    ids = np.zeros((2, count), np.int32)
    ids[0, :50], ids[0, 50:120], ids[0, 120:150] = 1, 2, 3
    ids[1, 40:] = 1
    return draw(heads), draw(kv_heads), draw(kv_heads), ids


def outputs_and_gradients(implementation, causal, arrays, ids):
    real = jnp.asarray(ids > 0)[..., None, None]

    def total(query, key, value):
        found = attend(query, key, value, visible(ids, causal, implementation))
        weights = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        return jnp.sum(jnp.where(real, found * weights, 0)), jnp.where(real, found, 0)

    (_, found), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*arrays)
    return found, gradients


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_kernels_equal_the_plain_one(implementation, causal):
    *arrays, ids = inputs()
    expected = outputs_and_gradients("plain", causal, arrays, ids)
    actual = outputs_and_gradients(implementation, causal, arrays, ids)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5), actual, expected)


def shared_inputs(rows=3, lead=7, count=24, heads=4, kv_heads=2, size=128):
    """Queries, keys and values, and whose they are: two prefixes and what continues them."""
    random = np.random.default_rng(1)

    def draw(number):
        return jnp.asarray(random.normal(size=(rows, lead + count, number, size)), jnp.float32)

    numbers, firsts = np.zeros((2, rows * lead), np.int32)
    numbers[:8], numbers[8:17] = 1, 2
    firsts[:17] = *range(8), *range(9)
    ids, seen, positions = np.zeros((3, rows, count), np.int32)
    texts = ((0, 0, 9, 1), (0, 9, 20, 2), (1, 0, 5, 0), (1, 5, 24, 1), (2, 6, 24, 2))
    for number, (row, start, end, prefix) in enumerate(texts, 1):  # the third shares none
        ids[row, start:end], seen[row, start:end] = number, prefix
        positions[row, start:end] = np.arange(end - start) + (0, 8, 9)[prefix]
    tokens = random.integers(1, CONFIG.vocab_size, (rows, lead + count))
    firsts, numbers = firsts.reshape(rows, lead), numbers.reshape(rows, lead)
    prefixes = Prefixes(tokens[:, :lead], firsts, numbers, seen)
    arrays = draw(heads), draw(kv_heads), draw(kv_heads)
    return arrays, prefixes, (tokens[:, lead:], positions, ids)


def shared_outputs_and_gradients(implementation, arrays, prefixes, texts):
    _, positions, ids = texts
    positions = np.concatenate([prefixes.positions, positions], axis=1)
    real = np.concatenate([prefixes.numbers, ids], axis=1)[..., None, None] > 0

    def total(query, key, value):
        mask = visible_after(prefixes, positions, ids, implementation)
        found = jnp.where(real, attend(query, key, value, mask), 0)
        weights = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        return jnp.sum(found * weights), found

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays)
    return found, gradients


@pytest.mark.parametrize("scale", [1, 10])  # of queries: scores of 40 and weights of 1e-30
@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_kernels_share_prefixes_as_the_plain_one(implementation, scale):
    (query, *arrays), *rest = shared_inputs()
    arrays = query * scale, *arrays
    expected = shared_outputs_and_gradients("plain", arrays, *rest)
    actual = shared_outputs_and_gradients(implementation, arrays, *rest)
    assert np.abs(expected[1][1]).max() > 1
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5 * scale), actual, expected)


@pytest.mark.parametrize("at", [None, np.array([[8, 19], [4, 23], [23, 6]])])
def test_a_model_shares_prefixes_by_kernels(at):
    _, prefixes, texts = shared_inputs()
    params = random_params(zoo.create(CONFIG))

    def hidden(implementation):
        model = zoo.create(CONFIG, attention=implementation)

        def total(params):
            found = model.bind(params).hidden(*texts, at=at, prefixes=prefixes)
            real = texts[2] > 0 if at is None else np.ones(at.shape, bool)
            found = jnp.where(real[..., None], found, 0)
            return jnp.sum(jnp.sin(found)), found

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    actual, expected = hidden("splash"), hidden("plain")
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-4), actual, expected)
