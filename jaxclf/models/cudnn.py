"""cuDNN's flash attention for rows that hold one text each, over a mesh."""

import functools

import jax
import jax.numpy as jnp

from jaxclf.core.types import Array, Float, Int
from jaxclf.distributed import sharding


def fits(query: Float[Array, "B T N H"]) -> bool:
    """Whether cuDNN computes it: whole rows, in 16 bits, heads of a size that it has.

    Where there is no GPU, XLA stands in for it (tests).
    """
    if sharding.sizes()["sequence"] > 1:
        return False
    size = query.shape[-1]
    narrow = query.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128
    return narrow or sharding.platform() != "gpu"


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    lengths: Int[Array, " B"],
    causal: bool,
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of each row's first `lengths` tokens; 0 elsewhere.

    `window`: the most tokens of a causal order that each sees.

    Every device attends for its own rows and heads: cuDNN's own partitioner refuses more of them
    than it must.
    """
    own = functools.partial(_attend, causal=causal, window=window)
    if not sharding.is_cut():
        return own(query, key, value, lengths)
    key, value = sharding.of_queries(query, key, value)
    dims = "batch", None, "heads", None
    cut = sharding.activation(query.shape, dims, sharding.sizes())
    specs = (cut, cut, cut, jax.P(cut[0]))
    return jax.shard_map(own, in_specs=specs, out_specs=cut, check_vma=False)(
        query, key, value, lengths
    )


def _attend(
    query, key, value, lengths, *, causal: bool, window: int | None
) -> Float[Array, "B T N H"]:
    # What lies beyond a text is undefined, and so is its gradient: neither gets out of here.
    inside = (jnp.arange(query.shape[1]) < lengths[:, None])[..., None, None]
    query, key, value = (jnp.where(inside, each, 0) for each in (query, key, value))
    lengths = jnp.maximum(lengths, 1).astype(jnp.int32)  # a softmax over nothing is no number
    found = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn" if sharding.platform() == "gpu" else "xla",
    )
    return jnp.where(inside, found, 0)
