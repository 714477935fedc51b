"""What distances between tokens add to scores: a number a bucket, or products with their vectors.

Source: Raffel et al. 2020 (buckets), He et al. 2021 (vectors: disentangled attention); checked
against T5, MPNet and DeBERTa of transformers.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int
from jaxclf.distributed import sharding


@functools.lru_cache
def bucket_table(causal: bool, buckets: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """The bucket of each distance (key minus query) from -max_distance to max_distance.

    Farther ones are in the same bucket as the ends. Causal: all later keys are in the query's own
    bucket. Source: T5Attention of transformers, in its float32 arithmetic.
    """
    distances = np.arange(-max_distance, max_distance + 1)
    side = buckets if causal else buckets // 2
    far = np.maximum(-distances, 0) if causal else np.abs(distances)
    exact = side // 2
    share = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    rough = np.minimum(exact + share.astype(np.int32), side - 1)
    found = np.where(far < exact, far, rough)
    return (found if causal else found + side * (distances > 0)).astype(np.int32)


class Distances(nnx.Module):
    """A learned number for each head and bucket of distances, which scores of attention get."""

    def __init__(
        self,
        heads: int,
        buckets: int,
        max_distance: int,
        *,
        causal: bool,
        std: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        drawn = jax.random.normal(rngs.params(), (buckets, heads), jnp.float32) * std
        self.embedding = nnx.Param(drawn.astype(dtype))
        self.causal, self.buckets, self.max_distance = causal, buckets, max_distance

    def of(self, distances: Int[Array, "*any"]) -> Float[Array, "*any N"]:
        """What distances add, in float32."""
        table, far = self.table()
        bucket = table[jnp.clip(distances, -far, far) + far]
        return self.embedding.get_value().astype(jnp.float32)[bucket]

    def between(
        self, query: Int[AnyArray, "B T"], key: Int[AnyArray, "B S"]
    ) -> Float[Array, "B N T S"]:
        """What scores of tokens at these positions get."""
        distances = jnp.asarray(key)[:, None, :] - jnp.asarray(query)[:, :, None]
        return jnp.moveaxis(self.of(distances), -1, 1)

    def along(self, count: int) -> Float[Array, "1 N T T"]:
        """What scores of a row's tokens get; all rows, and segments in them, are alike.

        Each row of the square is the one above, moved by a place: laid one after the other, with
        one place less than their period, they move by themselves. A gather of T x T places, and
        its gradient, would take far longer.
        """
        distances = np.arange(2 * count)
        distances = np.where(distances < count, distances, distances - 2 * count)
        period = self.of(jnp.asarray(distances)).T
        square = jnp.tile(period, (1, count))[:, : count * (2 * count - 1)]
        square = square.reshape(-1, count, 2 * count - 1)[:, :, :count]
        return sharding.constrain(square[None], None, "heads", None, None)

    def part(self, count: int, start: Int[Array, ""], size: int) -> Float[Array, "1 N size T"]:
        """The rows of `along(count)` from `start` on, `size` (2 or more) of them."""
        period = self.of(jnp.arange(1 - size, count) - start).T
        width = period.shape[1] - 1
        rows = jnp.tile(period, (1, size + 1))[:, size - 1 : size - 1 + size * width]
        rows = rows.reshape(-1, size, width)[:, :, :count]
        return sharding.constrain(rows[None], None, "heads", None, None)

    def table(self) -> tuple[Array, int]:
        table = bucket_table(self.causal, self.buckets, self.max_distance)
        return jnp.asarray(table), len(table) // 2


# Vectors ------------------------------------------------------------------------------------------


@functools.lru_cache
def vector_table(count: int, buckets: int, longest: int) -> Int[np.ndarray, " distances"]:
    """Which of 2 * `buckets` vectors each distance (query minus key) has, from 1 - `count` on.

    Distances below a half of the buckets have their own, farther ones share them by their
    logarithm, up to `longest`. Source: DebertaV2 of transformers, in its float32 arithmetic.
    """
    distances = np.arange(1 - count, count)
    half = buckets // 2
    far = np.maximum(np.abs(distances), half).astype(np.float32)
    share = np.log(far / np.float32(half)) / np.log(np.float32((longest - 1) / half))
    rough = (np.ceil(share * np.float32(half - 1)) + half) * np.sign(distances)
    found = np.where(np.abs(distances) <= half, distances, rough).astype(np.int32)
    return np.clip(found + buckets, 0, 2 * buckets - 1)


def disentangled(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    key_vectors: Float[Array, "V N H"],
    query_vectors: Float[Array, "V N H"],
    longest: int,
) -> Float[Array, "B N T T"]:
    """Products of queries with the vectors of distances as keys, and of keys with those as queries.

    `longest`: see `vector_table`. Not scaled, float32.
    """
    count = query.shape[1]
    table = vector_table(count, len(key_vectors) // 2, longest)

    def of_distances(x, vectors):
        """[B N T 2T-1]: of each token, for every distance."""
        return jnp.einsum("btnh,dnh->bntd", x, vectors[table], preferred_element_type=jnp.float32)

    to_places = _by_key(of_distances(query, key_vectors))
    # A key's products are for the distance of each query to it: those reversed, of key to query.
    from_places = _by_key(of_distances(key, query_vectors)[..., ::-1])
    return to_places + jnp.swapaxes(from_places, 2, 3)


def _by_key(x: Float[Array, "B N T D"]) -> Float[Array, "B N T T"]:
    """Of each token's numbers by distance (from 1 - T on) those for every other token.

    Token i wants those of the distances i, i - 1, ... 1 + i - T: reversed, each row begins a place
    earlier than the one above, which rows laid one after the other, with one place less than their
    period, do by themselves. A gather, and its gradient, would take far longer.
    """
    rows, heads, count, width = x.shape
    x = jnp.pad(x[..., ::-1], ((0, 0), (0, 0), (0, 0), (0, 1)))
    flat = x.reshape(rows, heads, -1)[..., : count * width]
    return flat.reshape(rows, heads, count, width)[..., count - 1 :]
