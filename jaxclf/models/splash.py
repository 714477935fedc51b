"""Splash attention, the Pallas kernel for TPUs that jax ships, over a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)

from jaxclf import sharding
from jaxclf.shapes import Array, Float, Int

_LANES = 128  # of a TPU's vector unit: blocks are multiples of it
_BLOCKS = (512, 384, 256, _LANES)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    causal: bool,
) -> Float[Array, "B T N H"]:
    """Attention within segments, on every device for its own rows, heads and queries."""
    _, count, heads, size = query.shape
    sizes = sharding.sizes()
    if key.shape[2] % sizes["tensor"]:  # each device's queries come with keys of their own
        key, value = (jnp.repeat(each, heads // each.shape[2], axis=2) for each in (key, value))

    def filled(x):
        missing = -count % (_LANES * sizes["sequence"])
        return jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])

    query, key, value = (
        jnp.swapaxes(filled(each), 1, 2) for each in (query * size**-0.5, key, value)
    )
    ids = filled(segment_ids)
    kernel = _kernel(heads, ids.shape[1], causal, sizes)

    def own(kernel, query, key, value, query_ids, key_ids):
        return jax.vmap(lambda q, k, v, of_q, of_k: kernel(q, k, v, SegmentIds(of_q, of_k)))(
            query, key, value, query_ids, key_ids
        )

    if sharding.is_cut():
        dims = ("batch", "heads", "length", None)
        rows, by_head, by_token, _ = cut = sharding.activation(query.shape, dims, sizes)
        of_keys = jax.P(rows, by_head, None, None)
        mesh = jax.sharding.get_abstract_mesh()
        of_kernel = kernel.manual_sharding_spec(jax.NamedSharding(mesh, jax.P(by_head, by_token)))
        specs = (of_kernel, cut, of_keys, of_keys, jax.P(rows, by_token), jax.P(rows, None))
        own = jax.shard_map(own, in_specs=specs, out_specs=cut, check_vma=False)
    found: Any = own(kernel, query, key, value, ids, ids)
    return jnp.swapaxes(found, 1, 2)[:, :count].astype(value.dtype)


def _kernel(heads: int, count: int, causal: bool, sizes: dict[str, int]):
    mask = (CausalMask if causal else FullMask)((count, count))
    own = count // sizes["sequence"]
    block = next(size for size in _BLOCKS if own % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv")
    blocks = dict.fromkeys((*names, "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block)
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        head_shards=1 if heads % sizes["tensor"] else sizes["tensor"],
        q_seq_shards=sizes["sequence"],
        block_sizes=BlockSizes(**blocks),
        interpret=sharding.platform() != "tpu",  # slow: for tests
    )
