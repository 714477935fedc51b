"""Blocks of keys that kernels attend apart, met in one softmax by their log-sum-exps.

Source: the identity that flash attention rests on (Milakov & Gimelshein 2018, Dao et al. 2022).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.core.types import Array, Float

NOTHING = -1e30  # log-sum-exp of a block that a query sees nothing of: its weight is exactly 0


def with_log_sum(forward: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`forward(query, key, value, *ids)` → (outputs, log-sum-exps) with gradients through both.

    forward: kernels that give both refuse gradients. plain: the same attention that gives outputs
    alone, and their gradients. Both scale scores by 1/sqrt(H) and may have fewer key heads than
    query heads. Log-sum-exps are natural, of the scaled scores: float32 [B, T, N].

    The gradient of a query's log-sum-exp is the mean key, weighted as values are: that of keys is
    what values would get if outputs had the gradient that queries are to be multiplied by.
    """

    @jax.custom_vjp
    def attended(query, key, value, *ids):
        return forward(query, key, value, *ids)

    def kept(query, key, value, *ids):
        return forward(query, key, value, *ids), (query, key, value, ids)

    def gradients(kept, wanted):
        query, key, value, ids = kept
        of_found, of_log_sum = wanted
        _, pull = jax.vjp(lambda *arrays: plain(*arrays, *ids), query, key, value)
        of_query, of_key, of_value = pull(of_found)
        mean_key, pull = jax.vjp(lambda values: plain(query, key, values, *ids), key)
        scaled = of_log_sum[..., None] * query.shape[-1] ** -0.5
        (more,) = pull((scaled * query).astype(mean_key.dtype))
        of_query = (of_query + scaled * mean_key).astype(query.dtype)
        return of_query, of_key + more, of_value, *[None] * len(ids)

    attended.defvjp(kept, gradients)
    return attended


def merge(
    parts: Sequence[tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]],
) -> Float[Array, "B T N H"]:
    """Outputs of one softmax over all blocks of keys, from (outputs, log-sum-exps) of each.

    What a block gave queries that see nothing of it, of log-sum-exp `NOTHING`, counts for nothing
    and gets no gradient.
    """
    total = functools.reduce(jnp.logaddexp, [log_sum for _, log_sum in parts])
    found = sum(found * jnp.exp(log_sum - total)[..., None] for found, log_sum in parts)
    return jnp.asarray(found).astype(parts[0][0].dtype)
