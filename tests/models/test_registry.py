"""Names stand for the released dimensions; nothing is allocated to find out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.core.errors import InputError
from jaxclf.models import registry


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3.1_8b", 8_030_261_248),
        ("llama3.2_1b", 1_235_814_400),
        ("llama3.2_3b", 3_212_749_824),
        ("flan_t5_small", 76_961_152),
        ("flan_t5_base", 247_577_856),
        ("flan_t5_large", 783_150_080),
        ("flan_t5_xl", 2_849_757_184),
        ("flan_t5_xxl", 11_135_332_352),
    ],
)
def test_parameter_counts_are_those_of_the_released_checkpoints(name, published):
    shapes = jax.tree.leaves(registry.create(name).abstract)
    assert sum(math.prod(leaf.shape) for leaf in shapes) == published


def test_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match=r"llama3_8B.*nearest: llama3_8b"):
        registry.create("llama3_8B")


def test_initialisation_is_by_key_and_layers_differ():
    model = registry.create("llama_smoke")
    init = jax.jit(model.init)
    first, again = init(jax.random.key(3)), init(jax.random.key(3))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model.abstract
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["layers"]["attention"]["q"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])
    np.testing.assert_allclose(jnp.std(kernel), model.config.initializer_std, rtol=0.1)
    other = init(jax.random.key(4))["embed"]["embedding"]
    assert not np.array_equal(first["embed"]["embedding"], other)
