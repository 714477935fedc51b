"""Flash attention within segments: a Pallas kernel for GPUs, for what cuDNN's has no form.

A query sees the keys of its own segment, earlier ones alone if causal. Nothing of the size of
queries times keys is ever stored, and blocks of keys of which a block of queries sees nothing are
not read: a packed row costs what its texts cost. Log-sum-exps are float32 and have gradients, so
that several blocks of keys meet in one softmax (`log_sum_exp.merge`).

Source: Dao 2023 (FlashAttention-2), algorithms 1 and 2.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxclf.core.types import Array, Float, Int
from jaxclf.distributed import sharding
from jaxclf.models.layers import filled
from jaxclf.models.log_sum_exp import NOTHING

_LOG2_E = math.log2(math.e)  # GPUs have a fast power of two
_LEAST = 16  # rows and columns of a matrix product in Triton

Found = tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]


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
    """Outputs of rows that attend to themselves; with `log_sums` those of their scores too.

    Scores are scaled by 1/sqrt(H). Ids are those of segments; keys of id 0 are seen by none. What
    a query that sees nothing gets is 0, its log-sum-exp `NOTHING`. `window`: the most tokens of a
    causal order that a query sees, itself among them.
    """
    places = jnp.arange(query.shape[1], dtype=jnp.int32) if causal else None
    cut = sharding.activation(query.shape, _DIMS, sharding.sizes())
    rows, by_token, by_head, _ = cut
    of_keys, of_ids = jax.P(rows, None, by_head, None), jax.P(rows, None)
    specs = (cut, of_keys, of_keys, jax.P(rows, by_token), of_ids, jax.P(by_token))
    own = functools.partial(_attend, window=window)
    found = _over_mesh(own, query, key, value, query_ids, key_ids, places, specs=specs)
    return found if log_sums else found[0]


def against(
    query: Float[Array, "B T N H"],
    key: Float[Array, "P K H"],
    value: Float[Array, "P K H"],
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, " P"],
    places: Int[Array, "B T"] | None = None,
) -> Found:
    """The same, log-sum-exps always, of all rows over the same keys: those of a query's id.

    places: of the queries among the keys, of which they then see the earlier ones alone.
    """

    def own(query, key, value, query_ids, key_ids, places):
        # One row of all queries: keys, and what their gradients become, are there once.
        found, log_sums = _attend(
            query.reshape(1, -1, *query.shape[2:]),
            key[None],
            value[None],
            query_ids.reshape(1, -1),
            key_ids[None],
            None if places is None else places.reshape(-1),
        )
        return found.reshape(query.shape), log_sums.reshape(query.shape[:3])

    cut = sharding.activation(query.shape, _DIMS, sharding.sizes())
    rows, by_token, by_head, _ = cut
    of_keys, of_query_ids = jax.P(None, by_head, None), jax.P(rows, by_token)
    specs = (cut, of_keys, of_keys, of_query_ids, jax.P(None), of_query_ids)
    return _over_mesh(own, query, key, value, query_ids, key_ids, places, specs=specs)


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
    places = jnp.arange(numbers.size, dtype=jnp.int32).reshape(numbers.shape)
    found = against(query, key, value, numbers, jnp.ravel(numbers), places)
    return found if log_sums else found[0]


_DIMS = ("batch", "length", "heads", None)


def _over_mesh(own: Any, query, key, value, *numbers, specs: tuple[jax.P, ...]) -> Found:
    """`own` on every device for its rows, queries and heads, as `specs` divide them."""
    key, value = sharding.of_queries(query, key, value)
    if sharding.is_cut():
        cut, *_ = specs
        of_all = (*specs[:-1], None) if numbers[-1] is None else specs
        results = (cut, jax.P(*cut[:3]))
        own = jax.shard_map(own, in_specs=of_all, out_specs=results, check_vma=False)
    return own(query, key, value, *numbers)


def _attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, "B S"],
    places: Int[Array, " T"] | None,
    window: int | None = None,
) -> Found:
    """On one device. `places`: of the queries among the keys, for a causal order."""
    count, size = query.shape[1], query.shape[-1]
    blocks = _Blocks.of(count, key.shape[1], size * query.dtype.itemsize)
    width = max(_LEAST, 1 << (size - 1).bit_length())
    query, key, value = (filled(each, 3, width) for each in (query, key, value))
    query, query_ids = filled(query, 1, blocks.query), filled(query_ids, 1, blocks.query)
    key, value = (filled(each, 1, blocks.key) for each in (key, value))
    key_ids = filled(key_ids, 1, blocks.key)
    causal = places is not None
    places = jnp.zeros(count, jnp.int32) if places is None else places
    places = filled(places, 0, blocks.query)
    options = _Options(causal, window, size**-0.5, blocks, sharding.platform() != "gpu")
    results: Any = _flash(options, query, key, value, query_ids, key_ids, places)
    found, log_sums = results
    return found[:, :count, :, :size], jnp.swapaxes(log_sums, 1, 2)[:, :count]


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Queries and keys of one step of a kernel: few enough for the shared memory of every GPU."""

    query: int
    key: int

    @classmethod
    def of(cls, queries: int, keys: int, width: int) -> "_Blocks":
        """For so many of each; `width`: the bytes of one."""

        def power(count: int, most: int) -> int:
            return min(most, max(_LEAST, 1 << (count - 1).bit_length()))

        most = 64 if width <= 256 else 32
        return cls(power(queries, most), power(keys, most))


@dataclasses.dataclass(frozen=True)
class _Options:
    causal: bool
    window: int | None
    scale: float
    blocks: _Blocks
    interpret: bool  # slow: for tests

    def call(self, kernel: Any, grid: tuple[int, ...], size: int, **specs: Any) -> Any:
        """`kernel` with these options, over the grid."""
        return pl.pallas_call(
            functools.partial(kernel, options=self),
            grid=grid,
            compiler_params=triton.CompilerParams(num_warps=4 if size <= 64 else 8, num_stages=2),
            interpret=self.interpret,
            name=kernel.__name__.strip("_"),
            **specs,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(options: _Options, query, key, value, query_ids, key_ids, places):
    """Outputs [B, T, N, H] and log-sum-exps [B, N, T]."""
    return _forward(options, query, key, value, query_ids, key_ids, places)[0]


def _forward(options: _Options, query, key, value, query_ids, key_ids, places):
    rows, queries, heads, size = query.shape
    keys, group, block = key.shape[1], heads // key.shape[2], options.blocks.query
    first, last = _ranges(options, query_ids, key_ids, places)
    found, log_sums = options.call(
        _attend_block,
        (queries // block, heads, rows),
        size,
        in_specs=[
            pl.BlockSpec((None, block, None, size), lambda i, n, b: (b, i, n, 0)),
            pl.BlockSpec((None, keys, None, size), lambda i, n, b: (b, 0, n // group, 0)),
            pl.BlockSpec((None, keys, None, size), lambda i, n, b: (b, 0, n // group, 0)),
            pl.BlockSpec((None, block), lambda i, n, b: (b, i)),
            pl.BlockSpec((None, keys), lambda i, n, b: (b, 0)),
            pl.BlockSpec((block,), lambda i, n, b: (i,)),
            pl.BlockSpec((None, None), lambda i, n, b: (b, i)),
            pl.BlockSpec((None, None), lambda i, n, b: (b, i)),
        ],
        out_specs=[
            pl.BlockSpec((None, block, None, size), lambda i, n, b: (b, i, n, 0)),
            pl.BlockSpec((None, None, block), lambda i, n, b: (b, n, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((rows, heads, queries), jnp.float32),
        ],
    )(query, key, value, query_ids, key_ids, places, first, last)
    return (found, log_sums), (query, key, value, query_ids, key_ids, places, found, log_sums)


def _backward(options: _Options, kept, gradients):
    query, key, value, query_ids, key_ids, places, found, log_sums = kept
    of_found, of_log_sums = gradients
    rows, queries, heads, size = query.shape
    keys, of_keys = key.shape[1:3]
    group, blocks = heads // of_keys, options.blocks
    of_found = of_found.astype(query.dtype)
    # Of a score's gradient p (dp - inner); a log-sum-exp's own is p times its gradient.
    inner = jnp.einsum("btnh,btnh->bnt", of_found, found, preferred_element_type=jnp.float32)
    inner = inner - of_log_sums
    first, last = _ranges(options, query_ids, key_ids, places)
    of_block = pl.BlockSpec((None, blocks.query, None, size), lambda i, n, b: (b, i, n, 0))
    of_row = pl.BlockSpec((None, keys, None, size), lambda i, n, b: (b, 0, n // group, 0))
    numbers = pl.BlockSpec((None, None, blocks.query), lambda i, n, b: (b, n, i))
    of_query = options.call(
        _query_gradient,
        (queries // blocks.query, heads, rows),
        size,
        in_specs=[
            of_block,
            of_row,
            of_row,
            of_block,
            numbers,
            numbers,
            pl.BlockSpec((None, blocks.query), lambda i, n, b: (b, i)),
            pl.BlockSpec((None, keys), lambda i, n, b: (b, 0)),
            pl.BlockSpec((blocks.query,), lambda i, n, b: (i,)),
            pl.BlockSpec((None, None), lambda i, n, b: (b, i)),
            pl.BlockSpec((None, None), lambda i, n, b: (b, i)),
        ],
        out_specs=of_block,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    )(query, key, value, of_found, log_sums, inner, query_ids, key_ids, places, first, last)
    first, last = _ranges(options, query_ids, key_ids, places, of_keys=True)
    of_block = pl.BlockSpec((None, blocks.key, None, size), lambda j, k, b: (b, j, k, 0))
    of_group = pl.BlockSpec((None, queries, group, size), lambda j, k, b: (b, 0, k, 0))
    numbers = pl.BlockSpec((None, group, queries), lambda j, k, b: (b, k, 0))
    of_key, of_value = options.call(
        _key_gradients,
        (keys // blocks.key, of_keys, rows),
        size,
        in_specs=[
            of_group,
            of_block,
            of_block,
            of_group,
            numbers,
            numbers,
            pl.BlockSpec((None, queries), lambda j, k, b: (b, 0)),
            pl.BlockSpec((None, blocks.key), lambda j, k, b: (b, j)),
            pl.BlockSpec((queries,), lambda j, k, b: (0,)),
            pl.BlockSpec((None, None), lambda j, k, b: (b, j)),
            pl.BlockSpec((None, None), lambda j, k, b: (b, j)),
        ],
        out_specs=[of_block, of_block],
        out_shape=[jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (key, value)],
    )(query, key, value, of_found, log_sums, inner, query_ids, key_ids, places, first, last)
    return of_query, of_key, of_value, None, None, None


_flash.defvjp(_forward, _backward)


def _ranges(
    options: _Options,
    query_ids: Int[Array, "B T"],
    key_ids: Int[Array, "B S"],
    places: Int[Array, " T"],
    of_keys: bool = False,
) -> tuple[Int[Array, "B blocks"], Int[Array, "B blocks"]]:
    """For every block of queries the first block of keys that it may see, and one after the last.

    `of_keys`: for every block of keys, of the queries that may see it. A block's ids count as all
    between the least and the largest: too much is masked, nothing is left out.
    """
    query, key = options.blocks.query, options.blocks.key
    query_ids = query_ids.reshape(len(query_ids), -1, query)
    key_ids = key_ids.reshape(len(key_ids), -1, key)

    def least(ids):
        return jnp.min(jnp.where(ids > 0, ids, jnp.iinfo(jnp.int32).max), axis=-1)

    meet = (least(query_ids)[:, :, None] <= jnp.max(key_ids, axis=-1)[:, None]) & (
        least(key_ids)[:, None] <= jnp.max(query_ids, axis=-1)[:, :, None]
    )
    if options.causal:
        starts = key * jnp.arange(key_ids.shape[1])
        places = places.reshape(-1, query)
        meet &= starts <= jnp.max(places, axis=-1)[:, None]
        if options.window is not None:
            meet &= starts + key + options.window > jnp.min(places, axis=-1)[:, None] + 1
    if of_keys:
        meet = jnp.swapaxes(meet, 1, 2)
    count = meet.shape[2]
    first, last = jnp.argmax(meet, axis=2), count - jnp.argmax(meet[..., ::-1], axis=2)
    some = jnp.any(meet, axis=2)
    first, last = (jnp.where(some, each, 0).astype(jnp.int32) for each in (first, last))
    return first, last


# The kernels --------------------------------------------------------------------------------------


def _attend_block(
    query_ref,
    key_ref,
    value_ref,
    query_ids_ref,
    key_ids_ref,
    places_ref,
    first_ref,
    last_ref,
    found_ref,
    log_sums_ref,
    *,
    options: _Options,
):
    """One block of queries of one head, over all blocks of keys that it may see."""
    query, ids, places = query_ref[...], query_ids_ref[...], places_ref[...]

    def step(number, carry):
        found, top, total = carry
        part = pl.ds(number * options.blocks.key, options.blocks.key)
        scores, seen = _scores(
            options, query, key_ref[part, :], ids, key_ids_ref[part], places, number
        )
        new_top = jnp.maximum(top, jnp.max(jnp.where(seen, scores, NOTHING), axis=1))
        # Where nothing was seen yet, every score is far below the top.
        weights = jnp.where(seen, jnp.exp2(scores - new_top[:, None]), 0.0)
        fade = jnp.exp2(top - new_top)
        value = value_ref[part, :]
        found = found * fade[:, None] + _product(weights.astype(value.dtype), value)
        return found, new_top, total * fade + jnp.sum(weights, axis=1)

    start = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full(len(query), NOTHING, jnp.float32),
        jnp.zeros(len(query), jnp.float32),
    )
    found, top, total = jax.lax.fori_loop(first_ref[...], last_ref[...], step, start)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    found_ref[...] = (found / total[:, None]).astype(found_ref.dtype)
    log_sums_ref[...] = jnp.where(some, (top + jnp.log2(total)) / _LOG2_E, NOTHING)


def _query_gradient(
    query_ref,
    key_ref,
    value_ref,
    of_found_ref,
    log_sums_ref,
    inner_ref,
    query_ids_ref,
    key_ids_ref,
    places_ref,
    first_ref,
    last_ref,
    of_query_ref,
    *,
    options: _Options,
):
    """One block of queries of one head, over all blocks of keys that it may see."""
    query, ids, places = query_ref[...], query_ids_ref[...], places_ref[...]
    of_found, log_sums, inner = of_found_ref[...], log_sums_ref[...], inner_ref[...]

    def step(number, total):
        part = pl.ds(number * options.blocks.key, options.blocks.key)
        key, key_ids = key_ref[part, :], key_ids_ref[part]
        scores, seen = _scores(options, query, key, ids, key_ids, places, number)
        weights = jnp.where(seen, jnp.exp2(scores - _LOG2_E * log_sums[:, None]), 0.0)
        of_scores = weights * (_product(of_found, value_ref[part, :].T) - inner[:, None])
        return total + _product(of_scores.astype(key.dtype), key)

    start = jnp.zeros(query.shape, jnp.float32)
    total = jax.lax.fori_loop(first_ref[...], last_ref[...], step, start)
    of_query_ref[...] = (options.scale * total).astype(of_query_ref.dtype)


def _key_gradients(
    query_ref,
    key_ref,
    value_ref,
    of_found_ref,
    log_sums_ref,
    inner_ref,
    query_ids_ref,
    key_ids_ref,
    places_ref,
    first_ref,
    last_ref,
    of_key_ref,
    of_value_ref,
    *,
    options: _Options,
):
    """One block of keys, over the heads that it serves and all blocks of their queries."""
    key, value, ids = key_ref[...], value_ref[...], key_ids_ref[...]
    block, group, number_of_keys = options.blocks.query, query_ref.shape[1], pl.program_id(0)

    def of_head(head, carry):
        def step(number, carry):
            of_key, of_value = carry
            part = pl.ds(number * block, block)
            query, of_found = query_ref[part, head, :], of_found_ref[part, head, :]
            scores, seen = _scores(
                options, query, key, query_ids_ref[part], ids, places_ref[part], number_of_keys
            )
            log_sums, inner = log_sums_ref[head, part], inner_ref[head, part]
            weights = jnp.where(seen, jnp.exp2(scores - _LOG2_E * log_sums[:, None]), 0.0)
            of_value += _product(weights.astype(query.dtype).T, of_found)
            of_scores = weights * (_product(of_found, value.T) - inner[:, None])
            return of_key + _product(of_scores.astype(query.dtype).T, query), of_value

        return jax.lax.fori_loop(first_ref[...], last_ref[...], step, carry)

    zeros = jnp.zeros(key.shape, jnp.float32)
    of_key, of_value = jax.lax.fori_loop(0, group, of_head, (zeros, zeros))
    of_key_ref[...] = (options.scale * of_key).astype(of_key_ref.dtype)
    of_value_ref[...] = of_value.astype(of_value_ref.dtype)


def _scores(options: _Options, query, key, query_ids, key_ids, places, number):
    """Scores of a block of keys in powers of two, and which of them count."""
    scores = _product(query, key.T) * (options.scale * _LOG2_E)
    seen = (query_ids[:, None] == key_ids[None, :]) & (key_ids > 0)[None, :]
    if options.causal:
        later = number * options.blocks.key + jnp.arange(options.blocks.key)
        seen &= places[:, None] >= later[None, :]
        if options.window is not None:
            seen &= places[:, None] - later[None, :] < options.window
    return scores, seen


def _product(first: Float[Array, "..."], second: Float[Array, "..."]) -> Float[Array, "..."]:
    # Without it Triton would cut float32 to 10 bits of mantissa.
    precision = jax.lax.Precision.HIGHEST if first.dtype == jnp.float32 else None
    return jnp.dot(first, second, precision=precision, preferred_element_type=jnp.float32)
