"""Splash attention, the Pallas kernel for TPUs that jax ships, over a mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)

from jaxclf.core.types import Array, Float, Int
from jaxclf.distributed import sharding
from jaxclf.models.layers import filled
from jaxclf.models.log_sum_exp import with_log_sum
from jaxclf.models.shared_prefix_attention import laid

_LANES = 128  # of a TPU's vector unit: blocks are multiples of it
_BLOCKS = (512, 384, 256, _LANES)
_DIMS = ("batch", "length", "heads", None)


def within(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, "B T"],
    causal: bool,
    window: int | None = None,
    *,
    log_sums: bool = False,
) -> Any:
    """Outputs of rows that attend to themselves, within segments; with `log_sums` those too.

    Every device attends for its own rows, heads and queries. `window`: a query sees tokens fewer
    than so many places before it, or, not causal and where rows are whole, to both sides.
    """
    block = functools.partial(_within, causal=causal, window=window)
    return _found(block, log_sums)(query, key, value, query_ids, key_ids)


def against(
    query: Float[Array, "B T N H"],
    key: Float[Array, "P K H"],
    value: Float[Array, "P K H"],
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, " P"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Outputs and log-sum-exps of all rows over the same keys: those of a query's id."""
    return _found(_against, True)(query, key, value, query_ids, key_ids)


def leading(
    query: Float[Array, "B C N H"],
    key: Float[Array, "P K H"],
    value: Float[Array, "P K H"],
    numbers: Int[Array, "B C"],
    *,
    log_sums: bool = False,
) -> Any:
    """Outputs of the tokens of prefixes, of which each row holds a part; as of `within`.

    They see the earlier ones of their `numbers`. Keys and values are of all, row after row.
    """
    rows, count = numbers.shape
    first, ids = laid(query)[None], jnp.ravel(numbers)[None]
    found = within(first, key[None], value[None], ids, ids, True, log_sums=log_sums)

    def apart(x):
        x = x.reshape(rows, count, *x.shape[2:])
        return sharding.constrain(x, "batch", None, "heads", *[None] * (x.ndim - 3))

    return jax.tree.map(apart, found)


def _found(block: Any, log_sums: bool) -> Any:
    return with_log_sum(functools.partial(block, log_sums=True), block) if log_sums else block


def _within(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, "B T"],
    *,
    causal: bool,
    window: int | None,
    log_sums: bool = False,
) -> Any:
    """As `within`; with `log_sums` without a gradient."""
    _, count, heads, _ = query.shape
    sizes = sharding.sizes()
    query, key, value, query_ids, key_ids = (
        filled(each, 1, _LANES * sizes["sequence"])
        for each in (*_prepared(query, key, value), query_ids, key_ids)
    )
    rows, by_token, by_head, _ = cut = sharding.activation(query.shape, _DIMS, sizes)
    of_keys = jax.P(rows, None, by_head, None)
    specs = (cut, of_keys, of_keys, jax.P(rows, by_token), jax.P(rows, None))
    each_row = jax.vmap(_call, in_axes=(None, 0, 0, 0, 0, 0))
    arrays = query, key, value, query_ids, key_ids
    mask: Any = CausalMask if causal else FullMask
    if window is not None:
        after = 0 if causal else window - 1
        mask = functools.partial(LocalMask, window_size=(window - 1, after), offset=0)
    if causal:  # every device has its part of the kernel, which knows where its queries stand
        size = key_ids.shape[1]
        kernel = _kernel(heads, size, size, mask, sizes, log_sums)
        own: Any = each_row
        if sharding.is_cut():
            lies = jax.NamedSharding(jax.sharding.get_abstract_mesh(), jax.P(by_head, by_token))
            of_kernel = kernel.manual_sharding_spec(lies)
            own = _over_mesh(own, (of_kernel, *specs), cut, log_sums)
        found = own(kernel, *arrays)
    else:  # which splash does not divide: one for the queries of a device

        def of_device(query, *others):
            sizes_here = query.shape[2], query.shape[1], others[0].shape[1]
            kernel = _kernel(*sizes_here, mask, dict.fromkeys(sizes, 1), log_sums)
            return each_row(kernel, query, *others)

        own = _over_mesh(of_device, specs, cut, log_sums) if sharding.is_cut() else of_device
        found = own(*arrays)
    return jax.tree.map(lambda x: x[:, :count], found)


def _against(
    query: Float[Array, "B T N H"],
    key: Float[Array, "P K H"],
    value: Float[Array, "P K H"],
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, " P"],
    *,
    log_sums: bool = False,
) -> Any:
    """As `against`; with `log_sums` without a gradient."""
    sizes = sharding.sizes()
    query, key, value = _prepared(query, key, value)
    key, value, key_ids = (filled(each, 0, _LANES) for each in (key, value, key_ids))

    def own(query, key, value, query_ids, key_ids):
        # One row of all queries: keys, and what their gradients become, are there once.
        rows, count, heads, _ = query.shape
        query, ids = (
            filled(each.reshape(rows * count, *each.shape[2:]), 0, _LANES)
            for each in (query, query_ids)
        )
        alone = dict.fromkeys(sizes, 1)
        kernel = _kernel(heads, len(ids), len(key_ids), FullMask, alone, log_sums)
        found = _call(kernel, query, key, value, ids, key_ids)
        return jax.tree.map(lambda x: x[: rows * count].reshape(rows, count, *x.shape[1:]), found)

    if sharding.is_cut():
        rows, by_token, by_head, _ = cut = sharding.activation(query.shape, _DIMS, sizes)
        of_keys = jax.P(None, by_head, None)
        specs = (cut, of_keys, of_keys, jax.P(rows, by_token), jax.P(None))
        own = _over_mesh(own, specs, cut, log_sums)
    return own(query, key, value, query_ids, key_ids)


def _prepared(query, key, value):
    """Scaled queries; keys and values of which each device has those of its own queries."""
    return query * query.shape[-1] ** -0.5, *sharding.of_queries(query, key, value)


def _call(
    kernel: Any,
    query: Float[Array, "T N H"],
    key: Float[Array, "S K H"],
    value: Float[Array, "S K H"],
    query_ids: Int[Array, " T"],
    key_ids: Int[Array, " S"],
) -> Any:
    heads_first = (jnp.swapaxes(each, 0, 1) for each in (query, key, value))
    found = kernel(*heads_first, SegmentIds(query_ids, key_ids))
    if isinstance(found, tuple):
        found, (log_sums,) = found
        found = found, log_sums
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)


def _over_mesh(own: Any, specs: tuple, cut: jax.P, log_sums: bool) -> Any:
    results = (cut, jax.P(*cut[:3])) if log_sums else cut
    return jax.shard_map(own, in_specs=specs, out_specs=results, check_vma=False)


def _kernel(heads: int, queries: int, keys: int, mask: Any, sizes: dict[str, int], log_sums: bool):
    mask = mask((queries, keys))
    of_queries, of_keys = (
        next(size for size in _BLOCKS if count % size == 0)
        for count in (queries // sizes["sequence"], keys)
    )
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        head_shards=1 if heads % sizes["tensor"] else sizes["tensor"],
        q_seq_shards=sizes["sequence"],
        block_sizes=BlockSizes(
            **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), of_queries),
            **dict.fromkeys(("block_kv", "block_kv_compute"), of_keys),
            **dict.fromkeys(("block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"), of_keys),
        ),
        save_residuals=log_sums,
        interpret=sharding.platform() != "tpu",  # slow: for tests
    )
