"""Random streams: numbers for one purpose of a run, which share nothing with any other's.

    key(seed, "dropout")                     JAX's
    generator(seed, "order", epoch)          NumPy's
    number(seed, "module", "glue/rte")       another seed

Each is a hash of the seed, the purpose and the place. Sums would meet: with `seed + epoch`, epoch 1
of seed 0 is epoch 0 of seed 1; and one key for two purposes gives both the same numbers.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.types import Array, Key

INITIALIZATION = "initialization"  # of a model's parameters, by whoever makes or opens it


def key(seed: int, purpose: str, *place: int | str) -> Key[Array, ""]:
    """A key of JAX's generator threefry2x32."""
    words = jnp.asarray(_words(seed, purpose, place)[:2], jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def generator(seed: int, purpose: str, *place: int | str) -> np.random.Generator:
    """A generator of NumPy's."""
    return np.random.default_rng(_words(seed, purpose, place))


def number(seed: int, purpose: str, *place: int | str) -> int:
    """A seed below 2**31."""
    return int(_words(seed, purpose, place)[0]) >> 1


def _words(seed: int, purpose: str, place: tuple[int | str, ...]) -> np.ndarray:
    """SHA-256 as eight 32-bit words, the same on every machine."""
    text = json.dumps([int(seed), purpose, *place])
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u4")
