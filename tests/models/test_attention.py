"""The kernels of each backend against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.models.attention import attend, visible


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
