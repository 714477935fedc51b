"""What is computed of all texts, batch by batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.ensemble import fitting


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 8])
def test_each_text_has_its_own_result_however_many_are_in_a_batch(batch_size):
    """Seven texts of two arrays: the last batch is filled up, and what fills it is left out."""
    base, module = (np.arange(14.0, dtype=np.float32).reshape(7, 2) + n for n in (0, 100))
    data = fitting.Data([base, module], np.zeros(7, np.int32))
    found = fitting.apply(lambda rows: {"sum": jnp.sum(rows, axis=(1, 2))}, data, batch_size)
    np.testing.assert_array_equal(found["sum"], (base + module).sum(axis=1))
