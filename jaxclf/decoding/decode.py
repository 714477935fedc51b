"""Greedy decoding with a key/value cache, compiled once per prompt shape."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxclf.core.types import Array, Bool, Int, Params
from jaxclf.data.batching import PromptBatch
from jaxclf.distributed import sharding
from jaxclf.models.kv_cache import Before, Cache
from jaxclf.models.registry import Model


class ComputedPrefix(NamedTuple):
    """Shared prefixes, computed: keys and values, and the number of the one each token is of."""

    cache: Cache
    numbers: Int[Array, " P"]

    def before(self, prompt: PromptBatch) -> Before:
        """What the prompts see of it: the prefix that each continues."""
        assert prompt.seen is not None, "prompts beside a prefix say which they continue"
        return Before(self.cache, self.numbers, jnp.asarray(prompt.seen))


def make_prefix(model: Model) -> Callable[[Params, PromptBatch], ComputedPrefix]:
    """A function (params, one row of prefixes, a segment each) → them computed, to be jitted."""

    def compute(params: Params, row: PromptBatch) -> ComputedPrefix:
        count = row.tokens.shape[1]
        _, cache = model.bind(params).begin(row.tokens, row.positions, row.segment_ids, count)
        return ComputedPrefix(cache, jnp.asarray(row.segment_ids)[0])

    return compute


def make_greedy(
    model: Model, max_new_tokens: int, eos_id: int
) -> Callable[..., Int[Array, "B new"]]:
    """A function (params, prompts[, prefix]) → generated ids `[B, max_new_tokens]`, to be jitted.

    Each row continues its own prompt with the likeliest token at every step, until `eos_id`
    (which is kept) or the limit; what follows is filled with `eos_id`. The loop ends when every
    row has ended. Ties go to the lower id. A row whose likeliest token has a score that is NaN or
    infinite ends with the id -1.

    >>> greedy = jax.jit(make_greedy(model, max_new_tokens=3, eos_id=2))
    >>> greedy(params, prompts)            # [[8, 2, 2], [8, 9, 2]]
    """

    def greedy(
        params: Params, prompt: PromptBatch, prefix: ComputedPrefix | None = None
    ) -> Int[Array, "B new"]:
        module = model.bind(params)
        before = prefix.before(prompt) if prefix else None
        rows, width = prompt.tokens.shape

        def pick(hidden) -> Int[Array, " B"]:
            logits = module.logits(hidden[:, -1:])[:, 0]
            best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), best, -1)

        def is_last(token) -> Bool[Array, " B"]:
            return (token == eos_id) | (token < 0)

        hidden, cache = module.begin(
            prompt.tokens, prompt.positions, prompt.segment_ids, width + max_new_tokens, before
        )
        # What an encoder read takes no slots: there is one for the token its decoder starts with.
        width = cache.key.shape[2] - max_new_tokens
        prompt_slots: Bool[Array, "B T"] = jnp.asarray(prompt.segment_ids)[:, -width:] > 0
        token = pick(hidden)
        generated = jnp.full((rows, max_new_tokens), eos_id, jnp.int32).at[:, 0].set(token)

        def unfinished(carry) -> Bool[Array, ""]:
            count, _, _, done, _ = carry
            return (count < max_new_tokens) & ~jnp.all(done)

        def append(carry):
            count, token, cache, done, generated = carry
            new_slots = jnp.broadcast_to(jnp.arange(max_new_tokens) < count, (rows, max_new_tokens))
            mask = jnp.concatenate([prompt_slots, new_slots], axis=1)[:, None, None]
            positions = prompt.positions[:, -1:] + count
            slot = width + count - 1
            hidden, cache = module.extend(token[:, None], positions, mask, cache, slot, before)
            token = jnp.where(done, eos_id, pick(hidden))
            generated = generated.at[:, count].set(token)
            return count + 1, token, cache, done | is_last(token), generated

        start: tuple[Array, Array, Cache, Array, Array] = (
            jnp.ones((), jnp.int32),
            token,
            cache,
            is_last(token),
            generated,
        )
        return sharding.everywhere(jax.lax.while_loop(unfinished, append, start)[-1])

    return greedy
