"""Greedy decoding with a key/value cache, compiled once per prompt shape."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxclf import sharding
from jaxclf.data.pack import PromptBatch
from jaxclf.models.attention import Cache
from jaxclf.models.zoo import Model
from jaxclf.shapes import Array, Bool, Int, Params


def make_greedy(
    model: Model, max_new_tokens: int, eos_id: int
) -> Callable[[Params, PromptBatch], Int[Array, "B new"]]:
    """A function (params, prompts) → generated ids `[B, max_new_tokens]`, to be jitted.

    Each row continues its own prompt with the likeliest token at every step, until `eos_id`
    (which is kept) or the limit; what follows is filled with `eos_id`. The loop ends when every
    row has ended. Ties go to the lower id.

    >>> greedy = jax.jit(make_greedy(model, max_new_tokens=3, eos_id=2))
    >>> greedy(params, prompts)            # [[8, 2, 2], [8, 9, 2]]
    """

    def greedy(params: Params, prompt: PromptBatch) -> Int[Array, "B new"]:
        module = model.bind(params)
        rows, width = prompt.tokens.shape
        prompt_slots: Bool[Array, "B T"] = jnp.asarray(prompt.segment_ids) > 0

        def pick(hidden) -> Int[Array, "B"]:
            return jnp.argmax(module.logits(hidden[:, -1:]), axis=-1)[:, 0].astype(jnp.int32)

        hidden, cache = module.begin(
            prompt.tokens, prompt.positions, prompt.segment_ids, width + max_new_tokens
        )
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
            hidden, cache = module.extend(token[:, None], positions, mask, cache, width + count - 1)
            token = jnp.where(done, eos_id, pick(hidden))
            generated = generated.at[:, count].set(token)
            return count + 1, token, cache, done | (token == eos_id), generated

        start: tuple[Array, Array, Cache, Array, Array] = (
            jnp.ones((), jnp.int32),
            token,
            cache,
            token == eos_id,
            generated,
        )
        return sharding.everywhere(jax.lax.while_loop(unfinished, append, start)[-1])

    return greedy
