"""One encoder by attributes: BERT and what others changed of it.

Sources: Devlin et al. 2019 (BERT), Liu et al. 2019 (RoBERTa), Conneau et al. 2020 (XLM-R), Sanh et
al. 2019 (DistilBERT), Clark et al. 2020 (ELECTRA), Lan et al. 2020 (ALBERT), Song et al. 2020
(MPNet), He et al. 2021 (DeBERTa-v3), Nussbaum et al. 2024 (NomicBERT), Warner et al. 2024
(ModernBERT), Boizard et al. 2025 (EuroBERT); checked against the models of transformers.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int, Key
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import between, gathered
from jaxclf.models import distances, heads, layers, scan
from jaxclf.models.attention import Bias, attend, filled_blocks
from jaxclf.models.distances import Distances
from jaxclf.models.heads import PLAIN, HeadConfig, Headed, HeadStyle
from jaxclf.models.layers import Rope, RopeScaling
from jaxclf.models.masks import Implementation, Visible, at_places, visible
from jaxclf.models.soft_prefix import soft_prefix


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Dimensions and constants of one encoder with its heads; the defaults are BERT's.

    family: what transformers calls it, for what is read and written in its layout alone.

    `embedding_size` other than `hidden_size` adds a projection (ELECTRA). `type_vocab_size` 0: no
    token types (DistilBERT). embed_norm: a norm of what all embeddings sum up to.

    Positions: max_position: the most tokens of a text. position_table: they have embeddings;
    before them are `position_offset` rows more (RoBERTa). rope_theta: of rotary positions; 0: there
    are none. local_rope_theta: of layers with a window; 0: that of all. distance_buckets: scores
    get a number for each head and bucket of distances. distance_vectors: of each side, with which
    queries and keys are multiplied (He et al. 2021).

    layer_types: of each layer `full` or `window` (tokens fewer than `window` places away, to both
    sides); (): all are full. same_layer: there is one, run through num_layers times.

    Attention and feed-forward: num_kv_heads, head_dim: 0: those of all heads, hidden_size by their
    number. gated: feed-forward is `down(activation(gate) * up)`.

    Norms: `after` the residual, or `before` attention and feed-forward, with a last one after all
    layers. rms: without mean and bias. first_norm: the first layer has one before attention.

    dropped: what a layer adds that gets dropout. pooler: a tanh layer between the first token and
    sequence heads. head: how heads are made. prefix: trained keys and values before every layer's
    own.
    """

    family: str
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
    head: HeadStyle = PLAIN
    embed_norm: bool = True
    position_table: bool = True
    rope_theta: float = 0.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 0.0
    distance_buckets: int = 0
    max_distance: int = 128
    distance_vectors: int = 0
    layer_types: tuple[Literal["full", "window"], ...] = ()
    window: int | None = None
    same_layer: bool = False
    num_kv_heads: int = 0
    head_dim: int = 0
    gated: bool = False
    norms: Literal["after", "before"] = "after"
    rms: bool = False
    first_norm: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    dropped: Literal["both", "attention", "mlp"] = "both"

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def key_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def with_heads(self, found: tuple[HeadConfig, ...]) -> "EncoderConfig":
        """The same with these heads, and the pooler where they read one."""
        pooler = self.head.pooler and any(head.kind == "sequence" for head in found)
        return dataclasses.replace(self, heads=found, pooler=pooler)


_OFFSET = {"position_offset": 2, "type_vocab_size": 1}
_BARE = {"position_table": False, "embed_norm": False, "type_vocab_size": 0}
_NO_BIAS = {"attention_bias": False, "mlp_bias": False}

# What transformers calls those that differ in attributes alone → attributes that the name implies.
FAMILIES: dict[str, dict[str, Any]] = {
    name: {"head": heads.STYLES[name], **implied}
    for name, implied in {
        "bert": {},
        "roberta": _OFFSET,
        "xlm-roberta": _OFFSET,
        "camembert": _OFFSET,
        "distilbert": {"type_vocab_size": 0, "dropped": "mlp"},
        "electra": {},
        "albert": {"same_layer": True, "dropped": "attention"},
        "mpnet": {"position_offset": 2, "type_vocab_size": 0, "distance_buckets": 32},
        "deberta-v2": {"position_table": False, "type_vocab_size": 0},
        "nomic_bert": {"position_table": False, "gated": True, **_NO_BIAS},
        "modernbert": {
            **_BARE,
            **_NO_BIAS,
            "norm_bias": False,
            "norms": "before",
            "first_norm": False,
            "gated": True,
            "embed_norm": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "eurobert": {
            **_BARE,
            **_NO_BIAS,
            "norms": "before",
            "rms": True,
            "gated": True,
            "dropout": 0.0,
        },
    }.items()
}


class Surroundings(NamedTuple):
    """What a layer's attention knows beside hidden states.

    bias: what scores get by distance. vectors: those of distances.
    """

    mask: Visible
    rope: Rope | None = None
    bias: Bias | None = None
    vectors: Float[Array, "V D"] | None = None


class _Parts:
    """The linear layers and norms of one encoder, all by its constants."""

    def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.config, self.dtype, self.rngs = config, dtype, rngs

    def linear(self, size_in: int, size_out: int, bias: bool = True) -> layers.Linear:
        options = {"std": self.config.initializer_std, "dtype": self.dtype, "rngs": self.rngs}
        return layers.Linear(size_in, size_out, bias=bias, **options)

    def norm(self, size: int) -> layers.LayerNorm | layers.RMSNorm:
        eps, bias = self.config.layer_norm_eps, self.config.norm_bias
        if self.config.rms:
            return layers.RMSNorm(size, eps=eps, dtype=self.dtype)
        return layers.LayerNorm(size, eps=eps, dtype=self.dtype, bias=bias)

    def embed(self, count: int, size: int) -> layers.Embed:
        options = {"std": self.config.initializer_std, "dtype": self.dtype, "rngs": self.rngs}
        return layers.Embed(count, size, **options)

    def distances(self) -> Distances:
        return Distances(
            self.config.num_heads,
            self.config.distance_buckets,
            self.config.max_distance,
            causal=False,
            std=self.config.initializer_std,
            dtype=self.dtype,
            rngs=self.rngs,
        )


class Embeddings(nnx.Module):
    """Token, position and type embeddings, normalised."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        parts, size = _Parts(config, dtype, rngs), config.embedding_size
        self.tokens = parts.embed(config.vocab_size, size)
        rows = config.max_position + config.position_offset
        self.positions = parts.embed(rows, size) if config.position_table else None
        self.types = parts.embed(config.type_vocab_size, size) if config.type_vocab_size else None
        self.norm = parts.norm(size) if config.embed_norm else None
        self.offset = config.position_offset

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        types: Int[AnyArray, "B T"] | None,
        dtype: Any,
    ) -> Float[Array, "B T E"]:
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(positions + self.offset)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(tokens) if types is None else types)
        x = x.astype(dtype)
        return x if self.norm is None else self.norm(x)


class Block(nnx.Module):
    """Attention and feed-forward with residuals, and norms before or after them."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        parts, hidden, inner = _Parts(config, dtype, rngs), config.hidden_size, config.head_size
        width, key_width = config.num_heads * inner, config.key_heads * inner
        sizes = {"q": (hidden, width), "k": (hidden, key_width), "v": (hidden, key_width)}
        sizes["o"] = width, hidden
        self.attention = nnx.Dict(
            {name: parts.linear(*size, config.attention_bias) for name, size in sizes.items()}
        )
        self.attention_norm = parts.norm(hidden)
        inner_size = config.intermediate_size
        sizes = {"gate": (hidden, inner_size)} if config.gated else {}
        sizes |= {"up": (hidden, inner_size), "down": (inner_size, hidden)}
        self.mlp = nnx.Dict(
            {name: parts.linear(*size, config.mlp_bias) for name, size in sizes.items()}
        )
        self.mlp_norm = parts.norm(hidden)
        self.prefix = soft_prefix(
            config.prefix,
            config.key_heads,
            inner,
            std=config.initializer_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        around: Surroundings,
        key: Key[Array, ""] | None,
        at: Int[AnyArray, "B J"] | None = None,
        is_first: Array | bool = False,
    ) -> Float[Array, "B J D"]:
        """The next hidden states, of all places (J = T) or of those `at` alone (by a mask).

        `is_first`: of all layers.
        """
        config = self.config
        keys = layers.split_key(key, 4)
        first = config.norms == "before"
        normal = self.attention_norm(x) if first else x
        if first and not config.first_norm:
            normal = jnp.where(is_first, x, normal)
        whole = gathered(normal)
        mask, rope = around.mask, around.rope
        key_heads, value = self._heads("k", whole, rope), self._heads("v", whole, None)
        if at is not None:
            x, whole, rope = jax.tree.map(
                lambda each: layers.take_places(each, at), (x, normal, rope)
            )
            mask = at_places(mask, at)
        query = self._heads("q", whole, rope)
        options: dict[str, Any] = {"bias": around.bias}
        if around.vectors is not None:
            vectors = layers.dropout(around.vectors, config.dropout, keys[3])
            options = self._distances(query, key_heads, vectors)
        if self.prefix is not None:
            count = key_heads.shape[1]
            key_heads, value, mask = self.prefix.before(key_heads, value, mask)
            if isinstance(options["bias"], jax.Array):
                beside = ((0, 0), (0, 0), (0, 0), (key_heads.shape[1] - count, 0))
                options["bias"] = jnp.pad(options["bias"], beside)
        found = attend(query, key_heads, value, mask, config.attention_dropout, keys[0], **options)
        added = self.attention["o"](found.reshape(*found.shape[:2], -1))
        x = self._plus(x, added, keys[1] if config.dropped != "mlp" else None)
        x = between(x if first else self.attention_norm(x))
        inner = gathered(self.mlp_norm(x) if first else x)
        up, activation = self.mlp["up"](inner), layers.ACTIVATIONS[config.activation]
        up = activation(self.mlp["gate"](inner)) * up if config.gated else activation(up)
        added = self.mlp["down"](sharding.inner(up, config.hidden_size))
        x = self._plus(x, added, keys[2] if config.dropped != "attention" else None)
        return between(x if first else self.mlp_norm(x))

    def _heads(
        self, name: str, x: Float[Array, "B T D"], rope: Rope | None
    ) -> Float[Array, "B T N H"]:
        found = self.attention[name](x).reshape(*x.shape[:2], -1, self.config.head_size)
        return found if rope is None else layers.rotate(found, *rope)

    def _plus(
        self, x: Float[Array, "B T D"], added: Float[Array, "B T D"], key: Key[Array, ""] | None
    ) -> Float[Array, "B T D"]:
        return x + layers.dropout(added, self.config.dropout, key)

    def _distances(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        vectors: Float[Array, "V D"],
    ) -> dict[str, Any]:
        """Bias and scale of scores that are sums of three products; source: He et al. 2021."""
        scale = (3 * query.shape[-1]) ** -0.5
        of_keys, of_queries = (self._heads(name, vectors[None], None)[0] for name in "kq")
        found = distances.disentangled(query, key, of_keys, of_queries, self.config.max_distance)
        return {"bias": found * scale, "scale": scale}


class Encoder(Headed):
    """Tokens to hidden states, and chosen ones of these to the scores of a head.

    `dtype` is that of the matmuls, `param_dtype` that of the stored parameters. A key turns
    dropout on. No kernel has vectors of distances: such an encoder attends by masks.
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
        parts, hidden = _Parts(config, param_dtype, rngs), config.hidden_size
        self.embed = Embeddings(config, dtype=param_dtype, rngs=rngs)
        projects = config.embedding_size != hidden
        self.project = parts.linear(config.embedding_size, hidden) if projects else None
        self.layers = scan.stacked(
            lambda rngs: Block(config, dtype=param_dtype, rngs=rngs),
            1 if config.same_layer else config.num_layers,
            rngs,
        )
        self.norm = parts.norm(hidden) if config.norms == "before" else None
        self.distances = None if not config.distance_buckets else parts.distances()
        count = 2 * config.distance_vectors
        self.vectors = parts.embed(count, hidden) if count else None
        self.vectors_norm = parts.norm(hidden) if count else None
        self.pooler = parts.linear(hidden, hidden) if config.pooler else None
        self.heads = heads.of_model(config, dtype=param_dtype, rngs=rngs, norm=parts.norm)
        self.config, self.dtype, self.remat, self.unroll = config, dtype, remat, unroll
        self.attention: Implementation = "plain" if config.distance_vectors else attention

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

        Tokens see all tokens of their own segment, or those near them, and nothing else.
        `lengths`: of rows that hold one text each, from their start.
        """
        config, count = self.config, tokens.shape[1]
        if self.distances is not None or (key is not None and config.attention_dropout > 0):
            tokens, positions, segment_ids, types = filled_blocks(
                self.attention, tokens, positions, segment_ids, types
            )
        x = self.embed(tokens, positions, types, self.dtype)
        first, key = layers.split_key(key, 2)
        x = layers.dropout(x, config.dropout, first)
        if self.project is not None:
            x = self.project(x)
        x = between(x)
        around = self._around(positions, segment_ids, lengths)

        def body(block, x, index, at, kind="full"):
            own = layers.fold_key(key, index)
            return block(x, around[kind], own, at, is_first=index == 0)

        full = around["full"]
        # Kernels that make no mask compute all places, and so do scores that distances add to.
        alone = isinstance(full.mask, jax.Array) and full.bias is None and full.vectors is None
        options = self.remat, self.unroll, at, alone, config.layer_types
        if config.same_layer:
            x = self._repeated(x, key, full)
            x = x if at is None else layers.take_places(x, at)
        else:
            x = scan.scan_layers(self.layers, body, x, *options)
        x = x if self.norm is None else self.norm(x)
        return x[:, :count] if at is None else x

    def _around(
        self,
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        lengths: Int[AnyArray, "B 1"] | None,
    ) -> dict[str, Surroundings]:
        """What the layers of each type know."""
        config = self.config
        found: dict[str, Surroundings] = {}
        bias: Bias | None = None
        vectors = None
        if self.distances is not None:
            count = segment_ids.shape[1]
            bias = self.distances.along(count)
            if self.attention != "plain":
                bias = functools.partial(self.distances.part, count)
        if self.vectors is not None and self.vectors_norm is not None:
            vectors = self.vectors.embedding.get_value().astype(self.dtype)
            vectors = self.vectors_norm(vectors)
        for kind in ("full", "window") if "window" in config.layer_types else ("full",):
            window = config.window if kind == "window" else None
            mask = visible(segment_ids, False, self.attention, lengths, window)
            local = kind == "window" and config.local_rope_theta
            theta, scaling = config.rope_theta, config.rope_scaling
            if local:
                theta, scaling = config.local_rope_theta, None
            rope = layers.rope(positions, config.head_size, theta, scaling) if theta else None
            found[kind] = Surroundings(mask, rope, bias, vectors)
        return found

    def _repeated(
        self, x: Float[Array, "B T D"], key: Key[Array, ""] | None, around: Surroundings
    ) -> Float[Array, "B T D"]:
        """The one layer, run through as often as there are layers."""

        def again(x, number):
            def body(block, x, index, at):
                return block(x, around, layers.fold_key(key, number), at, is_first=number == 0)

            return scan.scan_layers(self.layers, body, x, self.remat), None

        return jax.lax.scan(again, x, jnp.arange(self.config.num_layers))[0]
