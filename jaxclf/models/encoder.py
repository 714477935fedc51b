"""BERT, RoBERTa, DistilBERT and ELECTRA: one post-norm encoder with four sets of dimensions.

Source: Devlin et al. 2019, Liu et al. 2019, Sanh et al. 2019, Clark et al. 2020; checked against
the models of transformers.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int, Key
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import between, gathered
from jaxclf.models import layers
from jaxclf.models.attention import attend, filled_blocks
from jaxclf.models.heads import Head, HeadConfig
from jaxclf.models.masks import Implementation, Visible, at_places, visible
from jaxclf.models.soft_prefix import soft_prefix

EncoderFamily = Literal["bert", "roberta", "distilbert", "electra"]

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Dimensions and constants of one encoder with its heads.

    `embedding_size` other than `hidden_size` adds a projection (ELECTRA). `max_position` counts
    the tokens of a text; the table of positions has `position_offset` more rows before them
    (RoBERTa). `type_vocab_size` 0: no token types (DistilBERT). `pooler`: BERT's layer between the
    first token and its sequence heads. `prefix`: trained keys and values before every layer's own.
    """

    family: EncoderFamily
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    embedding_size: int
    max_position: int = 512
    position_offset: int = 0
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    initializer_std: float = 0.02
    pooler: bool = False
    heads: tuple[HeadConfig, ...] = ()
    prefix: int = 0


class Embeddings(nnx.Module):
    """Token, position and type embeddings, normalised."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        def embed(count):
            return layers.Embed(
                count, config.embedding_size, std=config.initializer_std, dtype=dtype, rngs=rngs
            )

        self.tokens = embed(config.vocab_size)
        self.positions = embed(config.max_position + config.position_offset)
        self.types = embed(config.type_vocab_size) if config.type_vocab_size else None
        self.norm = layers.LayerNorm(config.embedding_size, eps=config.layer_norm_eps, dtype=dtype)
        self.offset = config.position_offset

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        types: Int[AnyArray, "B T"] | None,
        dtype: Any,
    ) -> Float[Array, "B T E"]:
        x = self.tokens(tokens) + self.positions(positions + self.offset)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(tokens) if types is None else types)
        return self.norm(x.astype(dtype))


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        def linear(size_in, size_out):
            std = config.initializer_std
            return layers.Linear(size_in, size_out, std=std, dtype=dtype, rngs=rngs, bias=True)

        def norm():
            return layers.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, dtype=dtype)

        hidden = config.hidden_size
        self.attention = nnx.Dict({name: linear(hidden, hidden) for name in "qkvo"})
        self.attention_norm = norm()
        self.mlp = nnx.Dict(
            {
                "up": linear(hidden, config.intermediate_size),
                "down": linear(config.intermediate_size, hidden),
            }
        )
        self.mlp_norm = norm()
        self.prefix = soft_prefix(
            config.prefix,
            config.num_heads,
            hidden // config.num_heads,
            std=config.initializer_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Visible,
        key: Key[Array, ""] | None,
        at: Int[AnyArray, "B J"] | None = None,
    ) -> Float[Array, "B J D"]:
        """The next hidden states, of all places (J = T) or of those `at` alone (by a mask)."""
        config = self.config
        keys = layers.split_key(key, 3)

        def heads_of(name, x):
            return self.attention[name](x).reshape(*x.shape[:2], config.num_heads, -1)

        whole = gathered(x)
        key_heads, value = heads_of("k", whole), heads_of("v", whole)
        if at is not None:
            x, mask = layers.take_places(x, at), at_places(mask, at)
        query = heads_of("q", x if at is not None else whole)
        if self.prefix is not None:
            key_heads, value, mask = self.prefix.before(key_heads, value, mask)
        heads = attend(query, key_heads, value, mask, config.attention_dropout, keys[0])
        heads = self.attention["o"](heads.reshape(x.shape))
        if config.family != "distilbert":  # which drops only what feed-forward adds
            heads = layers.dropout(heads, config.dropout, keys[1])
        x = between(self.attention_norm(x + heads))
        inner = self.mlp["up"](gathered(x))
        inner = sharding.inner(ACTIVATIONS[config.activation](inner), config.hidden_size)
        x = self.mlp_norm(x + layers.dropout(self.mlp["down"](inner), config.dropout, keys[2]))
        return between(x)


class Encoder(nnx.Module):
    """Tokens to hidden states, and chosen ones of these to the scores of a head.

    `dtype` is that of the matmuls, `param_dtype` that of the stored parameters. A key turns
    dropout on.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: int = 0,
        unroll: int = 1,
        attention: Implementation = "plain",
        rngs: nnx.Rngs,
    ):
        def linear(size_in):
            return layers.Linear(
                size_in,
                config.hidden_size,
                std=config.initializer_std,
                dtype=param_dtype,
                rngs=rngs,
                bias=True,
            )

        self.embed = Embeddings(config, dtype=param_dtype, rngs=rngs)
        projects = config.embedding_size != config.hidden_size
        self.project = linear(config.embedding_size) if projects else None
        self.layers = layers.stacked(
            lambda rngs: Block(config, dtype=param_dtype, rngs=rngs), config.num_layers, rngs
        )
        self.pooler = linear(config.hidden_size) if config.pooler else None
        self.heads = nnx.Dict(
            {
                head.name: Head(
                    config.family,
                    head.kind,
                    config.hidden_size,
                    head.size,
                    dropout=config.head_dropout,
                    std=config.initializer_std,
                    dtype=param_dtype,
                    rngs=rngs,
                )
                for head in config.heads
            }
        )
        self.config, self.dtype, self.remat, self.unroll = config, dtype, remat, unroll
        self.attention: Implementation = attention

    def hidden(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        types: Int[AnyArray, "B T"] | None = None,
        key: Key[Array, ""] | None = None,
        at: Int[AnyArray, "B J"] | None = None,
        lengths: Int[AnyArray, "B 1"] | None = None,
    ) -> Float[Array, "B J D"]:
        """Last hidden states, of all tokens (J = T) or of those `at` alone.

        Tokens see all tokens of their own segment and nothing else. `lengths`: of rows that hold
        one text each, from their start.
        """
        config, count = self.config, tokens.shape[1]
        if key is not None and config.attention_dropout > 0:
            tokens, positions, segment_ids, types = filled_blocks(
                self.attention, tokens, positions, segment_ids, types
            )
        mask = visible(segment_ids, False, self.attention, lengths)
        x = self.embed(tokens, positions, types, self.dtype)
        first, key = layers.split_key(key, 2)
        x = layers.dropout(x, config.dropout, first)
        if self.project is not None:
            x = self.project(x)
        x = between(x)

        def body(block, x, index, at):
            return block(x, mask, layers.fold_key(key, index), at)

        alone = isinstance(mask, jax.Array)  # kernels that make none compute all places
        x = layers.scan_layers(self.layers, body, x, self.remat, self.unroll, at, alone)
        return x[:, :count] if at is None else x

    def scores(
        self, name: str, hidden: Float[Array, "*batch D"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch C"]:
        """The head's float32 scores for hidden states chosen for it."""
        if self.pooler is not None and self._kind(name) == "sequence":
            hidden = jnp.tanh(self.pooler(hidden))
        return self.heads[name](hidden, key)

    def _kind(self, name: str) -> str:
        return next(head.kind for head in self.config.heads if head.name == name)
