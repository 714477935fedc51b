"""Streams of random numbers share nothing: not between seeds, purposes or places."""

import itertools

import jax
import numpy as np
import pytest

from jaxclf.core import streams

SEEDS = (0, 1, 2, 2**32, 2**32 + 1, 2**64, 10**40)


@pytest.mark.parametrize(
    "draw",
    [
        lambda *place: tuple(jax.random.key_data(streams.key(*place)).tolist()),
        lambda *place: tuple(streams.generator(*place).permutation(20).tolist()),
        lambda *place: streams.number(*place),
    ],
    ids=["key", "generator", "number"],
)
def test_no_two_are_alike_and_each_is_always_the_same(draw):
    purposes = ("order", "order0", "dropout")
    places = [(), (0,), (1,), (0, 0), ("0",), ("a", 1)]
    all_of = [(s, p, *place) for s, p, place in itertools.product(SEEDS, purposes, places)]
    found = [draw(*each) for each in all_of]
    assert len(set(found)) == len(found)
    assert found == [draw(*each) for each in all_of]


def test_they_are_the_same_on_every_machine():
    """Written down once: a change to them is a change of every run."""
    assert streams.number(0, "order", 1) == 761_555_960
    assert jax.random.key_data(streams.key(0, "dropout")).tolist() == [3_621_759_717, 748_955_928]
    assert streams.generator(0, "order", 1).integers(1000, size=4).tolist() == [19, 359, 186, 503]


def test_keys_are_of_the_usual_generator_and_numbers_seeds():
    assert streams.key(3, "dropout").dtype == jax.random.key(3).dtype
    assert 0 <= streams.number(3, "module", "glue/rte") < 2**31
    assert np.random.default_rng(streams.number(3, "x")).integers(2) in (0, 1)
