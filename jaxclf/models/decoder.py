"""One decoder by attributes: Llama and what others changed of it.

Sources: Touvron et al. 2023, Grattafiori et al. 2024 (Llama), Jiang et al. 2023 (Mistral), Yang et
al. 2024 and 2025 (Qwen2, Qwen3), the Gemma reports of 2024 and 2025, Abdin et al. 2024 (Phi-3),
OLMo et al. 2024, the Granite 3.0 report of 2024, OpenAI 2025 (gpt-oss); checked against the models
of transformers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int, Key, Prefixes
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import between, gathered
from jaxclf.models import heads, layers, scan
from jaxclf.models.attention import attend
from jaxclf.models.decoder_config import ALIKE, DecoderConfig
from jaxclf.models.experts import Experts, Routing
from jaxclf.models.heads import Headed
from jaxclf.models.kv_cache import Before, Cache
from jaxclf.models.layers import Rope, Temperature
from jaxclf.models.masks import (
    EVERYTHING,
    Implementation,
    Sight,
    Visible,
    at_places,
    causal_mask,
    visible,
    visible_after,
)
from jaxclf.models.shared_prefix_attention import SharedMask
from jaxclf.models.soft_prefix import soft_prefix

# What places a layer's queries and keys; None: nothing does.
Placing = Rope | Temperature | None


class _Parts:
    """The linear layers and norms of one decoder, all by its constants."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.config, self.dtype, self.rngs = config, dtype, rngs

    def linear(self, size_in: int, size_out: int, bias: bool = False) -> layers.Linear:
        options = {"std": self.config.initializer_std, "dtype": self.dtype, "rngs": self.rngs}
        return layers.Linear(size_in, size_out, bias=bias, **options)

    def norm(self, size: int) -> layers.RMSNorm:
        options = {"eps": self.config.rms_norm_eps, "offset": self.config.norm_offset}
        return layers.RMSNorm(size, dtype=self.dtype, **options)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        parts = _Parts(config, dtype, rngs)
        width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.q = parts.linear(config.hidden_size, width, config.qkv_bias)
        self.k = parts.linear(config.hidden_size, kv_width, config.qkv_bias)
        self.v = parts.linear(config.hidden_size, kv_width, config.qkv_bias)
        self.o = parts.linear(width, config.hidden_size, config.out_bias)
        sizes = {"head": (config.head_dim,) * 2, "whole": (width, kv_width)}
        query_size, key_size = sizes.get(config.query_norm, (0, 0))
        self.q_norm = parts.norm(query_size) if query_size else None
        self.k_norm = parts.norm(key_size) if key_size else None
        if config.sinks:
            sinks = jax.random.normal(rngs.params(), (config.num_heads,), jnp.float32)
            self.sinks = nnx.Param((sinks * config.initializer_std).astype(dtype))
        self.config = config

    def query(self, x: Float[Array, "B T D"], rope: Placing) -> Float[Array, "B T N H"]:
        """Rotated queries, split into heads, scaled so that 1/sqrt(H) is left to do."""
        found = self._placed(self.q(x), self.q_norm, rope)
        if isinstance(rope, Temperature):
            found *= rope.factor
        if self.config.attention_scale:
            found *= self.config.attention_scale * self.config.head_dim**0.5
        return found

    def keys(self, x: Float[Array, "B T D"], rope: Placing):
        """Rotated keys, and values, split into heads."""
        return self._placed(self.k(x), self.k_norm, rope), self._heads(self.v(x))

    def _placed(
        self, x: Float[Array, "B T KH"], norm: layers.RMSNorm | None, rope: Placing
    ) -> Float[Array, "B T K H"]:
        kind = self.config.query_norm
        if norm is not None and kind == "whole":
            x = norm(x)
        found = self._heads(x)
        if norm is not None and kind == "head":
            found = norm(found)
        if rope is None or isinstance(rope, Temperature):
            return found
        found = layers.rotate(found, *rope, self.config.rotary_interleaved)
        if kind == "l2":
            found = layers.rms_normalised(found, self.config.rms_norm_eps).astype(found.dtype)
        return found

    def _heads(self, x: Float[Array, "B T KH"]) -> Float[Array, "B T K H"]:
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)

    def combine(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return self.o(heads.reshape(*heads.shape[:2], -1))

    def attend(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        mask: Visible,
    ) -> Float[Array, "B T N H"]:
        sinks = self.sinks.get_value() if self.config.sinks else None
        return attend(query, key, value, mask, cap=self.config.attention_cap, sinks=sinks)


class MLP(nnx.Module):
    """`down(gated(gate(x), up(x)))`."""

    def __init__(self, config: DecoderConfig, size: int, *, dtype: Any, rngs: nnx.Rngs):
        parts, bias = _Parts(config, dtype, rngs), config.mlp_bias
        self.gate = parts.linear(config.hidden_size, size, bias)
        self.up = parts.linear(config.hidden_size, size, bias)
        self.down = parts.linear(size, config.hidden_size, bias)
        self.gated = config.gate

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        inner = self.gated(self.gate(x), self.up(x))
        return self.down(sharding.inner(inner, x.shape[-1]))


def _feed_forward(
    config: DecoderConfig, has_experts: bool, dtype: Any, rngs: nnx.Rngs
) -> MLP | Experts:
    options = {"dtype": dtype, "rngs": rngs}
    if not has_experts:
        return MLP(config, config.intermediate_size, **options)
    shared = config.shared_expert_size
    return Experts(
        config.hidden_size,
        config.expert_size,
        config.experts,
        Routing(
            config.experts_per_token,
            config.routing,
            config.normalised_experts,
            config.weighted_inputs,
        ),
        gate=config.gate,
        bias=config.mlp_bias,
        std=config.initializer_std,
        shared=MLP(config, shared, **options) if shared else None,
        **options,
    )


class Block(nnx.Module):
    """Attention and feed-forward with residuals, and norms before or after them, or both."""

    def __init__(self, config: DecoderConfig, has_experts: bool, *, dtype: Any, rngs: nnx.Rngs):
        def norm(is_there: bool):
            return _Parts(config, dtype, rngs).norm(config.hidden_size) if is_there else None

        before, after = config.norms != "after", config.norms != "before"
        self.attention_norm, self.mlp_norm = norm(before), norm(before)
        self.after_attention_norm, self.after_mlp_norm = norm(after), norm(after)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp = _feed_forward(config, has_experts, dtype, rngs)
        self.prefix = soft_prefix(
            config.prefix,
            config.num_kv_heads,
            config.head_dim,
            std=config.initializer_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.dropout, self.scale = config.dropout, config.residual_scale

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Placing,
        mask: Visible,
        random_key: Key[Array, ""] | None = None,
        at: Int[AnyArray, "B J"] | None = None,
    ) -> Float[Array, "B J D"]:
        """The next hidden states, of all places (J = T) or of those `at` alone (by a mask)."""
        normal = gathered(_normed(self.attention_norm, x))
        key, value = self.attention.keys(normal, rope)
        if at is not None:
            x, normal, rope = jax.tree.map(
                lambda each: layers.take_places(each, at), (x, normal, rope)
            )
            mask = at_places(mask, at)
        query = self.attention.query(normal, rope)
        if self.prefix is not None:
            key, value, mask = self.prefix.before(key, value, mask)
        return self.finish(x, self.attention.attend(query, key, value, mask), random_key)

    def cached(
        self,
        x: Float[Array, "B T D"],
        rope: Placing,
        mask: Visible,
        cache: Cache,
        layer: Int[Array, ""],
        slot: Int[Array, ""] | int | None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """The same, with this call's keys and values put into the cache and all of it attended.

        Where `slot` is None they are its first, and attend to each other alone.
        """
        normal = _normed(self.attention_norm, x)
        query = self.attention.query(normal, rope)
        key, value = self.attention.keys(normal, rope)
        cache = cache.write(layer, 0 if slot is None else slot, key, value)
        if slot is not None:
            key, value = cache.key[layer].astype(x.dtype), cache.value[layer].astype(x.dtype)
        if self.prefix is not None:
            key, value, mask = self.prefix.before(key, value, mask)
        return self.finish(x, self.attention.attend(query, key, value, mask)), cache

    def finish(
        self,
        x: Float[Array, "B T D"],
        heads: Float[Array, "B T N H"],
        random_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Residuals and feed-forward after the heads' outputs."""
        first, second = layers.split_key(random_key, 2)
        added = _normed(self.after_attention_norm, self.attention.combine(heads))
        x = between(self._plus(x, added, first))
        added = self.mlp(gathered(_normed(self.mlp_norm, x)))
        return between(self._plus(x, _normed(self.after_mlp_norm, added), second))

    def _plus(
        self, x: Float[Array, "B T D"], added: Float[Array, "B T D"], key: Key[Array, ""] | None
    ) -> Float[Array, "B T D"]:
        if self.scale != 1:
            added = added * self.scale
        return x + layers.dropout(added, self.dropout, key)


def _normed(norm: layers.RMSNorm | None, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return x if norm is None else norm(x)


class Decoder(Headed):
    """Tokens to final hidden states; `unembed` turns chosen ones into logits, or heads do.

    `dtype` is that of the matmuls, `param_dtype` that of the stored parameters.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: int = 0,
        unroll: int = 1,
        attention: Implementation = "plain",
        rngs: nnx.Rngs,
    ):
        std = config.initializer_std
        self.embed = layers.Embed(
            config.vocab_size, config.hidden_size, std=std, dtype=param_dtype, rngs=rngs
        )
        order = config.order

        def blocks(has_experts: bool, count: int) -> nnx.Module:
            return scan.stacked(
                lambda rngs: Block(config, has_experts, dtype=param_dtype, rngs=rngs), count, rngs
            )

        if order:
            sparse, dense = order.count("sparse"), order.count("dense")
            self.layers = nnx.Dict(sparse=blocks(True, sparse), dense=blocks(False, dense))
        else:
            self.layers = blocks(config.experts > 0, config.num_layers)
        parts = _Parts(config, param_dtype, rngs)
        self.norm = parts.norm(config.hidden_size)
        if not config.tie_embeddings and not config.heads:
            self.unembed = parts.linear(config.hidden_size, config.vocab_size)
        self.heads = heads.of_model(config, dtype=param_dtype, rngs=rngs)
        self.config, self.dtype, self.remat, self.unroll = config, dtype, remat, unroll
        self.attention: Implementation = attention

    def hidden(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        key: Key[Array, ""] | None = None,
        at: Int[AnyArray, "B J"] | None = None,
        prefixes: Prefixes | None = None,
        lengths: Int[AnyArray, "B 1"] | None = None,
    ) -> Float[Array, "B J D"]:
        """Normalised last hidden states, of all tokens (J = T) or of those `at` alone.

        Tokens see earlier tokens of their own segment, and the shared prefix that it continues. A
        key turns dropout on. `lengths`: of rows that hold one text each, from their start.
        """
        own, lead = segment_ids, 0
        if prefixes is not None:
            lead = prefixes.tokens.shape[1]
            tokens = jnp.concatenate([prefixes.tokens, tokens], axis=1)
            positions = jnp.concatenate([prefixes.positions, positions], axis=1)
            places = jnp.broadcast_to(jnp.arange(own.shape[1]), own.shape)
            at = (places if at is None else at) + lead

        def mask(sight: Sight) -> Visible:
            form = self._form(sight, prefixes is not None)
            if prefixes is not None:
                return visible_after(prefixes, positions, own, form, sight)
            return _seen(own, positions, form, sight, lengths)

        x, ropes = self.start(tokens, positions)
        sights = self._sights()
        masks = [mask(sight) for sight in sights]
        # Once for all layers: XLA would compute them again in each fusion that reads them.
        ropes, masks = jax.lax.optimization_barrier((ropes, masks))
        first, key = layers.split_key(key, 2)
        x = layers.dropout(x, self.config.dropout, first)

        def body(block, x, index, at, kind=ALIKE):
            rope, seen = ropes.get(kind.rope), masks[sights.index(kind.sight)]
            return block(x, rope, seen, layers.fold_key(key, index), at)

        alone = all(isinstance(seen, jax.Array | SharedMask) for seen in masks)
        options = {"kinds": self.config.kinds, "order": self.config.order}
        x = scan.scan_layers(self.layers, body, x, self.remat, self.unroll, at, alone, **options)
        return self.norm(x)

    def _sights(self) -> Sequence[Sight]:
        """What layers see, each once."""
        return list(dict.fromkeys(kind.sight for kind in self.config.kinds)) or [EVERYTHING]

    def _form(self, sight: Sight, shares: bool) -> Implementation:
        """How layers that see so much attend: kernels know windows, but not beside a prefix."""
        config = self.config
        lacks = sight.chunk is not None or (sight.window is not None and shares)
        lacks |= shares and (config.attention_cap > 0 or config.sinks)
        return "plain" if lacks else self.attention

    def begin(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        slots: int,
        before: Before | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of prompts, and a cache of `slots` that begins with these T tokens."""
        masks: dict[Sight, Visible] = {
            sight: _seen(segment_ids, positions, self._form(sight, before is not None), sight)
            for sight in self._sights()
        }
        cache = self.empty_cache(len(tokens), slots)
        return self._extend(tokens, positions, masks, cache, None, before)

    def extend(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        mask: Visible,
        cache: Cache,
        slot: Int[Array, ""] | int | None,
        before: Before | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of T tokens put at `slot` of a cache of S slots, which `mask` selects.

        Slot None: at its start, with a mask of these tokens alone. `before`: prefixes that rows
        share and see before these.
        """
        masks: dict[Sight, Visible] = dict.fromkeys(self._sights(), mask)
        return self._extend(tokens, positions, masks, cache, slot, before)

    def _extend(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        masks: dict[Sight, Visible],
        cache: Cache,
        slot: Int[Array, ""] | int | None,
        before: Before | None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """`masks`: what layers of each sight may see; of slots those that are near are left."""
        x, ropes = self.start(tokens, positions)
        positions = jnp.asarray(positions)
        if cache.positions is not None:
            start = (0, 0 if slot is None else slot)
            placed = jax.lax.dynamic_update_slice(cache.positions, positions, start)
            cache = cache._replace(positions=placed)
            if slot is not None:
                masks = {
                    sight: jnp.asarray(seen) & sight.reaches(positions, placed)[:, None]
                    for sight, seen in masks.items()
                }

        def body(block, carry, layer, _, kind=ALIKE):
            x, cache = carry
            seen, rope = masks[kind.sight], ropes.get(kind.rope)
            if before is not None:
                seen = before.mask(seen, layer, positions, kind.sight)
            return block.cached(x, rope, seen, cache, layer, slot)

        options = {"kinds": self.config.kinds, "order": self.config.order}
        x, cache = scan.scan_layers(self.layers, body, (x, cache), remat=False, **options)
        return self.norm(x), cache

    def start(
        self, tokens: Int[AnyArray, "B T"], positions: Int[AnyArray, "B T"]
    ) -> tuple[Float[Array, "B T D"], dict[str, Placing]]:
        """Embeddings, and what places queries and keys of each kind of layer."""
        config = self.config
        rotated, scaling = int(config.head_dim * config.rotary_share), config.rope_scaling
        used = {kind.rope for kind in config.kinds or (ALIKE,)}
        ropes: dict[str, Placing] = {}
        if "global" in used:
            given = config.rope_theta, scaling, self.dtype
            ropes["global"] = layers.rope(positions, rotated, *given)
        if "local" in used:
            given = config.local_rope_theta, None, self.dtype
            ropes["local"] = layers.rope(positions, rotated, *given)
        if "none" in used and config.temperature_scale:
            given = config.temperature_floor, config.temperature_scale, self.dtype
            ropes["none"] = layers.temperature(positions, *given)
        x = self.embed(tokens).astype(self.dtype)
        if config.embed_scale != 1:
            x *= jnp.asarray(config.embed_scale, self.dtype)
        return x, ropes

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Unembed chosen hidden states; float32, so that a loss over V stays exact."""
        unembed = self.embed.attend if self.config.tie_embeddings else self.unembed
        if hidden.ndim == 3:
            hidden = gathered(hidden)
        found = unembed(hidden).astype(jnp.float32)
        if self.config.logit_scale != 1:
            found *= self.config.logit_scale
        cap = self.config.logit_cap
        return cap * jnp.tanh(found / cap) if cap else found

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache for `rows` sequences of up to `slots` tokens."""
        config = self.config
        shape = (config.num_layers, rows, slots, config.num_kv_heads, config.head_dim)
        cache = Cache.empty(shape, self.dtype)
        if any(sight != EVERYTHING for sight in self._sights()):
            cache = cache._replace(positions=jnp.zeros((rows, slots), jnp.int32))
        return cache


def _seen(
    segment_ids: Int[AnyArray, "B T"],
    positions: Int[AnyArray, "B T"],
    form: Implementation,
    sight: Sight,
    lengths: Int[AnyArray, "B 1"] | None = None,
) -> Visible:
    """What tokens see of their own row."""
    if form != "plain":
        return visible(segment_ids, True, form, lengths, sight.window)
    mask = causal_mask(segment_ids)
    if sight == EVERYTHING:
        return mask
    return mask & sight.reaches(positions, positions)[:, None]
