"""The Llama 2 / 3 decoder.

Source: Touvron et al. 2023, Grattafiori et al. 2024; checked against LlamaForCausalLM of
transformers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import silu

from jaxclf.core.types import AnyArray, Array, Float, Int, Key, Prefixes
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import between, gathered
from jaxclf.models import layers
from jaxclf.models.attention import attend
from jaxclf.models.kv_cache import Before, Cache
from jaxclf.models.layers import RopeScaling
from jaxclf.models.masks import Implementation, Visible, at_places, visible, visible_after
from jaxclf.models.soft_prefix import soft_prefix


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Dimensions and constants of one decoder.

    `dropout`: of embeddings and of what each layer adds; the released models have none. `prefix`:
    trained keys and values before every layer's own.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    max_position: int = 2048
    tie_embeddings: bool = False
    initializer_std: float = 0.02
    dropout: float = 0.0
    prefix: int = 0


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, *, dtype: Any, rngs: nnx.Rngs):
        def linear(size_in, size_out):
            std = config.initializer_std
            return layers.Linear(size_in, size_out, std=std, dtype=dtype, rngs=rngs)

        width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.q = linear(config.hidden_size, width)
        self.k = linear(config.hidden_size, kv_width)
        self.v = linear(config.hidden_size, kv_width)
        self.o = linear(width, config.hidden_size)
        self.head_dim = config.head_dim

    def query(self, x: Float[Array, "B T D"], cos: Array, sin: Array) -> Float[Array, "B T N H"]:
        """Rotated queries, split into heads."""
        return layers.rotate(self._heads(self.q, x), cos, sin)

    def keys(self, x: Float[Array, "B T D"], cos: Array, sin: Array):
        """Rotated keys, and values, split into heads."""
        return layers.rotate(self._heads(self.k, x), cos, sin), self._heads(self.v, x)

    def _heads(self, linear: layers.Linear, x: Float[Array, "B T D"]) -> Float[Array, "B T K H"]:
        return linear(x).reshape(*x.shape[:2], -1, self.head_dim)

    def combine(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return self.o(heads.reshape(*heads.shape[:2], -1))


class MLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: LlamaConfig, *, dtype: Any, rngs: nnx.Rngs):
        def linear(size_in, size_out):
            std = config.initializer_std
            return layers.Linear(size_in, size_out, std=std, dtype=dtype, rngs=rngs)

        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(sharding.inner(silu(self.gate(x)) * self.up(x), x.shape[-1]))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: LlamaConfig, *, dtype: Any, rngs: nnx.Rngs):
        def norm():
            return layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.prefix = soft_prefix(
            config.prefix,
            config.num_kv_heads,
            config.head_dim,
            std=config.initializer_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T 1 H"],
        sin: Float[Array, "B T 1 H"],
        mask: Visible,
        random_key: Key[Array, ""] | None = None,
        at: Int[AnyArray, "B J"] | None = None,
    ) -> Float[Array, "B J D"]:
        """The next hidden states, of all places (J = T) or of those `at` alone (by a mask)."""
        normal = gathered(self.attention_norm(x))
        key, value = self.attention.keys(normal, cos, sin)
        if at is not None:
            x, normal, cos, sin = (layers.take_places(each, at) for each in (x, normal, cos, sin))
            mask = at_places(mask, at)
        query = self.attention.query(normal, cos, sin)
        if self.prefix is not None:
            key, value, mask = self.prefix.before(key, value, mask)
        return self.finish(x, attend(query, key, value, mask), random_key)

    def cached(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T 1 H"],
        sin: Float[Array, "B T 1 H"],
        mask: Visible,
        cache: Cache,
        layer: Int[Array, ""],
        slot: Int[Array, ""] | int | None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """The same, with this call's keys and values put into the cache and all of it attended.

        Where `slot` is None they are its first, and attend to each other alone.
        """
        normal = self.attention_norm(x)
        query = self.attention.query(normal, cos, sin)
        key, value = self.attention.keys(normal, cos, sin)
        cache = cache.write(layer, 0 if slot is None else slot, key, value)
        if slot is not None:
            key, value = cache.key[layer].astype(x.dtype), cache.value[layer].astype(x.dtype)
        if self.prefix is not None:
            key, value, mask = self.prefix.before(key, value, mask)
        return self.finish(x, attend(query, key, value, mask)), cache

    def finish(
        self,
        x: Float[Array, "B T D"],
        heads: Float[Array, "B T N H"],
        random_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Residuals and feed-forward after the heads' outputs."""
        first, second = layers.split_key(random_key, 2)
        x = x + layers.dropout(self.attention.combine(heads), self.dropout, first)
        x = between(x)
        x = x + layers.dropout(self.mlp(gathered(self.mlp_norm(x))), self.dropout, second)
        return between(x)


class Llama(nnx.Module):
    """Tokens to final hidden states; `unembed` turns chosen ones into logits.

    `dtype` is that of the matmuls, `param_dtype` that of the stored parameters.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
        unroll: int = 1,
        attention: Implementation = "plain",
        rngs: nnx.Rngs,
    ):
        std = config.initializer_std
        self.embed = layers.Embed(
            config.vocab_size, config.hidden_size, std=std, dtype=param_dtype, rngs=rngs
        )
        self.layers = layers.stacked(
            lambda rngs: Block(config, dtype=param_dtype, rngs=rngs), config.num_layers, rngs
        )
        self.norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=param_dtype)
        if not config.tie_embeddings:
            self.unembed = layers.Linear(
                config.hidden_size, config.vocab_size, std=std, dtype=param_dtype, rngs=rngs
            )
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
        if prefixes is None:
            mask = visible(segment_ids, True, self.attention, lengths)
        else:
            lead = prefixes.tokens.shape[1]
            tokens = jnp.concatenate([prefixes.tokens, tokens], axis=1)
            positions = jnp.concatenate([prefixes.positions, positions], axis=1)
            mask = visible_after(prefixes, positions, segment_ids, self.attention)
            own = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
            at = (own if at is None else at) + lead
        x, cos, sin = self.start(tokens, positions)
        # Once for all layers: XLA would compute them again in each fusion that reads them.
        cos, sin, mask = jax.lax.optimization_barrier((cos, sin, mask))
        first, key = layers.split_key(key, 2)
        x = layers.dropout(x, self.config.dropout, first)

        def body(block, x, index, at):
            return block(x, cos, sin, mask, layers.fold_key(key, index), at)

        alone = self.attention == "plain"  # kernels that make none compute all places
        x = layers.scan_layers(self.layers, body, x, self.remat, self.unroll, at, alone)
        return self.norm(x)

    def begin(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        slots: int,
        before: Before | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of prompts, and a cache of `slots` that begins with these T tokens."""
        mask = visible(segment_ids, True, self.attention)
        cache = self.empty_cache(len(tokens), slots)
        return self.extend(tokens, positions, mask, cache, None, before)

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
        x, cos, sin = self.start(tokens, positions)

        def body(block, carry, layer, _):
            x, cache = carry
            seen = mask if before is None else before.mask(mask, layer)
            return block.cached(x, cos, sin, seen, cache, layer, slot)

        x, cache = layers.scan_layers(self.layers, body, (x, cache), remat=False)
        return self.norm(x), cache

    def start(self, tokens: Int[AnyArray, "B T"], positions: Int[AnyArray, "B T"]):
        config = self.config
        frequencies = layers.rope_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling
        )
        cos, sin = layers.rope_angles(positions, frequencies, self.dtype)
        return self.embed(tokens).astype(self.dtype), cos, sin

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Unembed chosen hidden states; float32, so that a loss over V stays exact."""
        unembed = self.embed.attend if self.config.tie_embeddings else self.unembed
        if hidden.ndim == 3:
            hidden = gathered(hidden)
        return unembed(hidden).astype(jnp.float32)

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache for `rows` sequences of up to `slots` tokens."""
        config = self.config
        shape = (config.num_layers, rows, slots, config.num_kv_heads, config.head_dim)
        return Cache.empty(shape, self.dtype)
