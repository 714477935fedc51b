"""Masks, grouped-query attention, the kernels of each backend, and the key/value cache."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Bool, Float, Int, Key
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import constrain
from jaxclf.models import shared_prefix_attention
from jaxclf.models.layers import dropout
from jaxclf.models.log_sum_exp import NOTHING, merge
from jaxclf.models.masks import Implementation, Outer, Segments, SharedSegments, Visible, near
from jaxclf.models.shared_prefix_attention import SharedMask

# What scores get beside: `[_, N, T, S]`, or that of so many (int) queries from a place on.
Bias = Float[Array, "_ N _ _"] | Callable[[Int[Array, ""], int], Float[Array, "_ N _ _"]]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Visible,
    rate: float = 0.0,
    random_key: Key[Array, ""] | None = None,
    *,
    bias: Bias | None = None,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention scaled by 1/sqrt(H), or by `scale`; each key head serves N/K query heads.

    Scores and softmax are float32; a key turns dropout of the weights on. `bias` is added to scores
    after scaling. These three take a mask, or segments. A query that may see nothing gets a finite
    value that means nothing. `cap`: scores s become cap · tanh(s / cap). `sinks`: a score of each
    head that takes its share of the weights and has no value. Source: Xiao et al. 2023.
    """
    query = constrain(query, "batch", "length", "heads", None)
    key, value = (constrain(each, "batch", None, "heads", None) for each in (key, value))
    drops = random_key is not None and rate > 0
    is_bare = not drops and bias is None and scale is None
    assert is_bare or not isinstance(mask, SharedMask | SharedSegments)
    by_kernels = is_bare and not cap and sinks is None
    if isinstance(mask, Segments) and mask.window is not None and not mask.causal:
        is_whole = sharding.sizes()["sequence"] == 1
        by_kernels = by_kernels and mask.implementation == "splash" and is_whole
    plainly = partial(_plain, rate=rate, scale=scale, cap=cap, sinks=sinks)
    if isinstance(mask, Segments) and not by_kernels:
        found = _by_blocks(query, key, value, mask, random_key, bias, plainly)
    elif isinstance(mask, Segments):
        found = _within(query, key, value, mask)
    elif isinstance(mask, SharedSegments):
        assert by_kernels, "kernels have no capped scores and no sinks"
        found = _within_shared(query, key, value, mask)
    elif isinstance(mask, SharedMask):
        found = shared_prefix_attention.attend(query, key, value, mask, cap, sinks)
    else:
        assert not callable(bias), "a mask needs all of the bias"
        found = plainly(query, key, value, mask, random_key=random_key, bias=bias)
    return sharding.heads(found)


def _plain(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"],
    *,
    rate: float,
    random_key: Key[Array, ""] | None,
    bias: Float[Array, "_ N T S"] | None,
    scale: float | None,
    cap: float,
    sinks: Float[Array, " N"] | None,
) -> Float[Array, "B T N H"]:
    rows, count, heads, size = query.shape
    group = heads // key.shape[2]
    # Heads before tokens, and the queries of a group below each other: matmuls of whole blocks.
    # XLA on a CPU takes a seventh longer for a step with heads or groups between them.
    query, key, value = (jnp.swapaxes(each, 1, 2) for each in (query, key, value))
    query = query.reshape(rows, -1, group * count, size)
    scores = jnp.einsum("bkth,bksh->bkts", query, key, preferred_element_type=jnp.float32)
    mask = jnp.tile(mask, (1, 1, group, 1))
    scores = scores * (size**-0.5 if scale is None else scale)
    if bias is not None:
        scores += bias.reshape(len(bias), -1, group * count, bias.shape[-1])
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        sink = jnp.repeat(sinks.astype(jnp.float32).reshape(-1, group), count, axis=1)
        sink = jnp.broadcast_to(sink[..., None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    if sinks is not None:
        weights = weights[..., :-1]
    weights = dropout(weights, rate, random_key)
    found = jnp.einsum("bkts,bksh->bkth", weights.astype(value.dtype), value)
    return jnp.swapaxes(found.reshape(rows, heads, count, size), 1, 2)


# Queries whose scores are there at once where no kernel attends, at most.
QUERIES = 128


def _by_blocks(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Segments,
    random_key: Key[Array, ""] | None,
    bias: Bias | None,
    plainly: Callable[..., Float[Array, "B T N H"]],
) -> Float[Array, "B T N H"]:
    """What no kernel computes, such as dropout of weights, a block of queries at a time.

    Kernels with dropout of their own do not qualify: cuDNN's masks count the calls of a compiled
    program, so that under a scan the backward pass draws others than the forward pass, and a
    resumed run others than an unbroken one.
    """
    rows, count, heads, size = query.shape
    filled = in_blocks(count) - count
    block = (count + filled) // -(-count // QUERIES)
    ids, lead, dtype = jnp.asarray(segments.ids), 0, query.dtype
    query_ids = _looking(segments)
    for outer in segments.outer:  # those of prefix tuning, which are few
        lead += len(outer.key)
        key, value = (
            jnp.concatenate([jnp.broadcast_to(each, (rows, *each.shape)), own], axis=1)
            for each, own in ((outer.key, key), (outer.value, value))
        )
    # In float32, in which the gradients of all blocks are added up.
    key, value = key.astype(jnp.float32), value.astype(jnp.float32)

    def parts(x):
        """[blocks, B, block, ...] of [B, T, ...]."""
        x = jnp.pad(x, [(0, filled if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(x.reshape(rows, -1, block, *x.shape[2:]), 1, 0)

    def attend_block(index, part):
        query, query_ids = part
        seen = (query_ids[:, :, None] == ids[:, None]) & (ids > 0)[:, None]
        place = index * block + jnp.arange(block)
        if segments.causal:
            seen &= place[:, None] >= jnp.arange(count)
        if segments.window is not None:
            seen &= near(place, count, segments.window, segments.causal)
        seen = jnp.pad(seen, ((0, 0), (0, 0), (lead, 0)), constant_values=True)
        added = None
        if bias is not None:
            assert callable(bias), "blocks of queries take their own part of a bias"
            added = bias(index * block, block)
            added = jnp.pad(added, ((0, 0), (0, 0), (0, 0), (lead, 0)))
        own_key = None if random_key is None else jax.random.fold_in(random_key, index)
        query = constrain(query, "batch", "length", "heads", None)
        arrays = query, key.astype(dtype), value.astype(dtype)
        return index + 1, plainly(*arrays, seen[:, None], random_key=own_key, bias=added)

    step = jax.checkpoint(attend_block, prevent_cse=False)
    _, found = jax.lax.scan(step, jnp.int32(0), (parts(query), parts(query_ids)))
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1, heads, size)[:, :count]


def in_blocks(count: int) -> int:
    """`count` queries, filled up to blocks of one even size."""
    blocks = -(-count // QUERIES)
    return 2 * blocks * -(-count // (2 * blocks))


def filled_blocks(implementation: Implementation, *arrays: AnyArray | None) -> list[Any]:
    """Arrays [B, T] with zeros at the end of their rows where these are computed by blocks.

    Filled up within a layer, they would be cut again between the matrix products around it: XLA's
    compiler for GPUs finds no tiles for such products.
    """

    def filled(x):
        return jnp.pad(jnp.asarray(x), ((0, 0), (0, in_blocks(x.shape[1]) - x.shape[1])))

    if implementation == "plain":
        return [*arrays]
    return [None if each is None else filled(each) for each in arrays]


def _looking(segments: Segments) -> Int[Array, "B T"]:
    """The segment that each query looks at: its own.

    Where tokens see later ones, padding looks at the row's last text, as it does at all texts of
    the row by `full_mask`.
    """
    ids = jnp.asarray(segments.ids)
    return ids if segments.causal else jnp.where(ids > 0, ids, jnp.max(ids, axis=1, keepdims=True))


def _kernels(implementation: Implementation) -> ModuleType:
    """The kernels of a backend for rows of any kind: a module with within, against, leading."""
    if implementation == "splash":
        from jaxclf.models import splash  # Pallas takes a second to import

        return splash
    from jaxclf.models import flash

    return flash


def _within(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """By a kernel, tokens of each segment alone, and what they see beside."""
    ids, causal, outer = jnp.asarray(segments.ids), segments.causal, segments.outer
    window = segments.window
    if segments.implementation == "cudnn" and segments.lengths is not None and not outer:
        from jaxclf.models import cudnn

        if cudnn.fits(query):
            return cudnn.attend(
                query, key, value, jnp.asarray(segments.lengths)[:, 0], causal, window
            )
    own = query, key, value, _looking(segments), ids, causal, window
    kernels = _kernels(segments.implementation)
    if not outer:
        return kernels.within(*own).astype(value.dtype)
    return _met(kernels, query, kernels.within(*own, log_sums=True), outer)


def _met(
    kernels: ModuleType,
    query: Float[Array, "B T N H"],
    own: tuple[Float[Array, "B T N H"], Float[Array, "B T N"]],
    outer: tuple[Outer, ...],
) -> Float[Array, "B T N H"]:
    """One softmax over what queries see of `own`, attended already, and beside."""
    found = [own]
    for each in outer:
        beside, log_sums = kernels.against(query, each.key, each.value, each.seen, each.numbers)
        found.append((beside, jnp.where(each.seen[..., None] > 0, log_sums, NOTHING)))
    return merge(found)


def _within_shared(
    query: Float[Array, "B CT N H"],
    key: Float[Array, "B CT K H"],
    value: Float[Array, "B CT K H"],
    mask: SharedSegments,
) -> Float[Array, "B CT N H"]:
    """By a kernel, prefixes alone and then what continues them."""
    lead = mask.numbers.shape[1]
    numbers, seen, own = jnp.asarray(mask.numbers), jnp.asarray(mask.seen), mask.own
    kernels = _kernels(own.implementation)
    prefix_key, prefix_value = (
        shared_prefix_attention.laid(each[:, :lead]) for each in (key, value)
    )
    leading = query[:, :lead], prefix_key, prefix_value, numbers
    if own.outer:
        everywhere = tuple(each._replace(seen=jnp.ones_like(numbers)) for each in own.outer)
        found = kernels.leading(*leading, log_sums=True)
        first = _met(kernels, query[:, :lead], found, everywhere)
    else:
        first = kernels.leading(*leading).astype(value.dtype)
    prefixes = Outer(prefix_key, prefix_value, jnp.ravel(numbers), seen)
    own = dataclasses.replace(own, outer=(*own.outer, prefixes))
    rest = _within(query[:, lead:], key[:, lead:], value[:, lead:], own)
    return jnp.concatenate([first, rest], axis=1)
