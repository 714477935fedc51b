"""T5 and its kin: an encoder reads the prompt, a decoder writes the label, or heads score it.

Source: Raffel et al. 2020 (T5), Chung et al. 2022 (Flan-T5), Xue et al. 2021 (mT5), Chung et al.
2023 (UMT5), Tay et al. 2023 (UL2); checked against the models of transformers.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.errors import InputError
from jaxclf.core.types import AnyArray, Array, Bool, Float, Int, Key
from jaxclf.distributed import sharding
from jaxclf.distributed.sharding import between, gathered
from jaxclf.models import heads, layers, scan
from jaxclf.models.attention import Bias, attend, filled_blocks
from jaxclf.models.distances import Distances
from jaxclf.models.heads import READ_TWICE, HeadConfig, Headed, HeadKind, HeadStyle
from jaxclf.models.kv_cache import Before, Cache, Source
from jaxclf.models.masks import Implementation, Segments, Visible, causal_mask, visible
from jaxclf.models.soft_prefix import soft_prefix


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Dimensions and constants of one encoder with its decoder.

    `num_layers`: of the encoder. `buckets`: of distances between tokens, exact up to a half of them
    and then logarithmic up to `max_distance`; `own_distances`: each layer has its own (UMT5).
    `gated`: feed-forward of T5 1.1 and Flan-T5; else the first T5's. `activation` in it; empty:
    GELU if gated, else ReLU. `scale_outputs`: logits are of hidden states divided by sqrt(D), as in
    the first T5. `start_id`: what the decoder reads first; `end_id`: what ends a text. `prefix`:
    trained keys and values before those of every self-attention.

    `heads`: what it scores texts by; such a model does not generate, and has a decoder only if one
    of them reads whole texts. `head_dropout`: within them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    head_dim: int
    buckets: int = 32
    max_distance: int = 128
    rms_norm_eps: float = 1e-6
    gated: bool = True
    tie_embeddings: bool = False
    scale_outputs: bool = False
    initializer_factor: float = 1.0
    dropout: float = 0.1
    start_id: int = 0
    end_id: int = 1
    prefix: int = 0
    family: str = "t5"
    own_distances: bool = False
    activation: str = ""
    heads: tuple[HeadConfig, ...] = ()
    head_dropout: float = 0.0

    @property
    def head(self) -> HeadStyle:
        return READ_TWICE

    @property
    def initializer_std(self) -> float:
        """Of what reads hidden states: scores start at order 1."""
        return self.initializer_factor * self.hidden_size**-0.5

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder: words are scored by what the encoder sees."""
        return not self.heads or any(head.kind == "sequence" for head in self.heads)

    def with_heads(self, found: tuple[HeadConfig, ...]) -> "T5Config":
        """The same with these heads, in the place of logits of tokens.

        Raises InputError where they read a decoder and there is none.
        """
        new = dataclasses.replace(self, heads=found)
        if new.decodes and not self.decodes:
            raise InputError(
                "the checkpoint is a T5 with heads for words alone, which has no decoder; whole "
                "texts are scored by what a decoder sees. Choose the checkpoint that it was made "
                "from"
            )
        return new

    @property
    def max_position(self) -> int:
        """Distances have buckets however far: there is no last position."""
        return sys.maxsize


class Attention(nnx.Module):
    """Heads over keys of the same tokens, or of an encoder's; scores are not scaled."""

    def __init__(self, config: T5Config, *, dtype: Any, rngs: nnx.Rngs):
        hidden, width = config.hidden_size, config.num_heads * config.head_dim

        def linear(size_in, size_out, std):
            std *= config.initializer_factor
            return layers.Linear(size_in, size_out, std=std, dtype=dtype, rngs=rngs)

        # Queries start smaller by what scores are not divided by.
        self.q = linear(hidden, width, (hidden * config.head_dim) ** -0.5)
        self.k = linear(hidden, width, hidden**-0.5)
        self.v = linear(hidden, width, hidden**-0.5)
        self.o = linear(width, hidden, width**-0.5)
        self.head_dim, self.dropout = config.head_dim, config.dropout

    def keys(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """Keys and values, split into heads."""
        return self._heads(self.k, x), self._heads(self.v, x)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        mask: Visible,
        bias: Bias | None,
        random_key: Key[Array, ""] | None,
    ) -> Float[Array, "B T D"]:
        query = self._heads(self.q, x)
        found = attend(query, key, value, mask, self.dropout, random_key, bias=bias, scale=1.0)
        return self.o(found.reshape(*x.shape[:2], -1))

    def _heads(self, linear: layers.Linear, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        return linear(x).reshape(*x.shape[:2], -1, self.head_dim)


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))`."""

    def __init__(self, config: T5Config, *, dtype: Any, rngs: nnx.Rngs):
        hidden, inner = config.hidden_size, config.intermediate_size

        def linear(size_in, size_out):
            std = config.initializer_factor * size_in**-0.5
            return layers.Linear(size_in, size_out, std=std, dtype=dtype, rngs=rngs)

        self.gate = linear(hidden, inner) if config.gated else None
        self.up = linear(hidden, inner)
        self.down = linear(inner, hidden)
        name = config.activation or ("gelu_tanh" if config.gated else "relu")
        self.activation, self.dropout = layers.ACTIVATIONS[name], config.dropout

    def __call__(
        self, x: Float[Array, "B T D"], random_key: Key[Array, ""] | None
    ) -> Float[Array, "B T D"]:
        inner = self.up(x)
        if self.gate is None:
            inner = self.activation(inner)
        else:
            inner = self.activation(self.gate(x)) * inner
        inner = layers.dropout(inner, self.dropout, random_key)
        return self.down(sharding.inner(inner, x.shape[-1]))


class EncodedPrompt(NamedTuple):
    """What one decoder layer sees of the encoder's outputs: keys, values and a mask."""

    key: Float[Array, "B S N H"]
    value: Float[Array, "B S N H"]
    mask: Visible


class Block(nnx.Module):
    """Pre-norm self-attention, in a decoder attention to the encoder, and feed-forward."""

    def __init__(self, config: T5Config, *, decodes: bool, dtype: Any, rngs: nnx.Rngs):
        def norm():
            return layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

        def attention():
            return Attention(config, dtype=dtype, rngs=rngs)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = attention()
        self.cross_norm = norm() if decodes else None
        self.cross = attention() if decodes else None
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        std = config.initializer_factor * config.hidden_size**-0.5
        sizes = config.prefix, config.num_heads, config.head_dim
        self.prefix = soft_prefix(*sizes, std=std, dtype=dtype, rngs=rngs)
        own = config.own_distances
        self.distances = distances(config, decodes, dtype, rngs) if own else None
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"] | Segments,
        bias: Bias,
        random_key: Key[Array, ""] | None,
        encoded: Float[Array, "B S D"] | None = None,
        encoded_mask: Visible | None = None,
    ) -> Float[Array, "B T D"]:
        """The next hidden states; a decoder's block sees the encoder's outputs by their mask."""
        normal = gathered(self.attention_norm(x))
        key, value = self.attention.keys(normal)
        seen = None
        if self.cross is not None and encoded is not None and encoded_mask is not None:
            seen = EncodedPrompt(*self.cross.keys(encoded), encoded_mask)
        return self.finish(x, normal, key, value, mask, bias, seen, random_key)

    def cached(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T S"],
        bias: Float[Array, "B N T S"],
        cache: Cache,
        layer: Int[Array, ""],
        slot: Int[Array, ""] | int,
        seen: EncodedPrompt,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """The same, with this call's keys and values put into the cache and all of it attended."""
        normal = self.attention_norm(x)
        cache = cache.write(layer, slot, *self.attention.keys(normal))
        key, value = cache.key[layer].astype(x.dtype), cache.value[layer].astype(x.dtype)
        return self.finish(x, normal, key, value, mask, bias, seen), cache

    def finish(
        self,
        x: Float[Array, "B T D"],
        normal: Float[Array, "B T D"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        mask: Bool[Array, "B 1 T S"] | Segments,
        bias: Bias,
        seen: EncodedPrompt | None,
        random_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Residuals, attention and feed-forward after the keys of self-attention."""
        keys = layers.split_key(random_key, 6)
        if self.prefix is not None:
            count = key.shape[1]
            key, value, with_prefix = self.prefix.before(key, value, mask)
            assert isinstance(with_prefix, jax.Array | Segments)
            mask = with_prefix
            if not callable(bias):
                bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (key.shape[1] - count, 0)))

        def added(x, update, random_key):
            return between(x + layers.dropout(update, self.dropout, random_key))

        x = added(x, self.attention(normal, key, value, mask, bias, keys[0]), keys[1])
        if self.cross is not None and self.cross_norm is not None:
            assert seen is not None, "a decoder reads what an encoder wrote"
            normal = gathered(self.cross_norm(x))
            x = added(x, self.cross(normal, *seen, None, keys[2]), keys[3])
        return added(x, self.mlp(gathered(self.mlp_norm(x)), keys[4]), keys[5])


def distances(config: T5Config, causal: bool, dtype: Any, rngs: nnx.Rngs) -> Distances:
    """What scores of self-attention get by distance."""
    return Distances(
        config.num_heads,
        config.buckets,
        config.max_distance,
        causal=causal,
        std=config.initializer_factor * config.hidden_size**-0.5,
        dtype=dtype,
        rngs=rngs,
    )


class T5(Headed):
    """Prompts and labels to final hidden states; `logits` of these are the next label tokens'.

    With heads, `states` are what these read.

    `dtype` is that of the matmuls, `param_dtype` that of the stored parameters. No kernel adds
    numbers to scores: where `attention` names one, the encoder attends by blocks of queries.
    """

    def __init__(
        self,
        config: T5Config,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: int = 0,
        unroll: int = 1,
        attention: Implementation = "plain",
        rngs: nnx.Rngs,
    ):
        factor, hidden = config.initializer_factor, config.hidden_size

        def stack(decodes: bool, count: int):
            def block(rngs):
                return Block(config, decodes=decodes, dtype=param_dtype, rngs=rngs)

            return scan.stacked(block, count, rngs)

        def norm():
            return layers.RMSNorm(hidden, eps=config.rms_norm_eps, dtype=param_dtype)

        # One table serves both sides, and a tied head, whose hidden states then are scaled down.
        std = factor if config.scale_outputs or not config.tie_embeddings else hidden**-0.5
        self.embed = layers.Embed(config.vocab_size, hidden, std=std, dtype=param_dtype, rngs=rngs)
        sides = {"encoder": config.num_layers}
        sides |= {"decoder": config.num_decoder_layers} if config.decodes else {}
        self.layers = nnx.Dict(
            {name: stack(name == "decoder", count) for name, count in sides.items()}
        )
        self.distances = nnx.Dict(
            {name: distances(config, name == "decoder", param_dtype, rngs) for name in sides}
            if not config.own_distances
            else {}
        )
        self.encoder_norm = norm()
        self.decoder_norm = norm() if config.decodes else None
        if not config.tie_embeddings and not config.heads:
            std = factor * hidden**-0.5  # so that logits start at order 1
            self.unembed = layers.Linear(
                hidden, config.vocab_size, std=std, dtype=param_dtype, rngs=rngs
            )
        self.heads = heads.of_model(config, dtype=param_dtype, rngs=rngs)
        self.config, self.dtype, self.remat, self.unroll = config, dtype, remat, unroll
        self.attention: Implementation = attention

    def encode(
        self,
        tokens: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """The encoder's outputs. Tokens see all of their own segment; a key turns dropout on."""
        count = tokens.shape[1]
        tokens, segment_ids = filled_blocks(self.attention, tokens, segment_ids)
        mask = visible(segment_ids, False, self.attention)
        bias = self._biases("encoder", _along(mask, tokens.shape[1]))
        first, key, last = layers.split_key(key, 3)

        def body(block, x, index, _):
            return block(x, mask, bias(block), layers.fold_key(key, index))

        x = self._start(tokens, first)
        x = scan.scan_layers(self.layers["encoder"], body, x, self.remat, self.unroll)
        return layers.dropout(self.encoder_norm(x), self.config.dropout, last)[:, :count]

    def hidden(
        self,
        tokens: Int[AnyArray, "B S"],
        segment_ids: Int[AnyArray, "B S"],
        labels: Int[AnyArray, "B J"],
        label_segments: Int[AnyArray, "B J"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B J D"]:
        """Normalised last hidden states of the decoder, from which each label token is predicted.

        `label_segments`: the segment of `tokens` that a label token answers; 0 is padding. Those of
        one segment stand together, in their order.
        """
        of_encoder, *keys = layers.split_key(key, 4)
        encoded = gathered(self.encode(tokens, segment_ids, of_encoder))
        mask = causal_mask(label_segments)
        same = jnp.asarray(label_segments)[:, :, None] == jnp.asarray(segment_ids)[:, None, :]
        encoded_mask = (same & (jnp.asarray(segment_ids)[:, None, :] > 0))[:, None]
        return self._decode(labels, label_segments, mask, encoded, encoded_mask, keys)

    def states(
        self,
        tokens: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        key: Key[Array, ""] | None = None,
    ) -> dict[HeadKind, Float[Array, "B T D"]]:
        """What each kind of head reads of every token; a key turns dropout on.

        Of words the encoder's outputs. Of whole texts what the decoder makes of them: it reads the
        text a second time, a token behind, beside all that the encoder saw of it. Source:
        T5ForTokenClassification and T5ForSequenceClassification of transformers.
        """
        count = tokens.shape[1]
        tokens, segment_ids = filled_blocks(self.attention, tokens, segment_ids)
        of_encoder, *keys = layers.split_key(key, 4)
        encoded = self.encode(tokens, segment_ids, of_encoder)
        found: dict[HeadKind, Float[Array, "B T D"]] = {"token": encoded[:, :count]}
        if self.config.decodes:
            masks = [visible(segment_ids, causal, self.attention) for causal in (True, False)]
            seen = gathered(encoded), masks[1]
            states = self._decode(tokens, segment_ids, masks[0], *seen, keys)
            found["sequence"] = states[:, :count]
        return found

    def _decode(
        self,
        labels: Int[AnyArray, "B J"],
        label_segments: Int[AnyArray, "B J"],
        mask: Bool[Array, "B 1 J J"] | Segments,
        encoded: Float[Array, "B S D"],
        encoded_mask: Visible,
        keys: Sequence[Key[Array, ""] | None],
    ) -> Float[Array, "B J D"]:
        """The decoder's hidden states beside what the encoder wrote; `keys`: three of dropout."""
        first, key, last = keys
        bias = self._biases("decoder", _along(mask, labels.shape[1]))

        def body(block, x, index, _):
            random_key = layers.fold_key(key, index)
            return block(x, mask, bias(block), random_key, encoded, encoded_mask)

        assert self.decoder_norm is not None
        x = self._start(_shifted(labels, label_segments, self.config.start_id), first)
        x = scan.scan_layers(self.layers["decoder"], body, x, self.remat, self.unroll)
        return layers.dropout(self.decoder_norm(x), self.config.dropout, last)

    def begin(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        slots: int,
        before: Before | None = None,
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """The hidden state of the decoder's first token, and a cache that begins with it.

        The prompts are encoded and take no slot of it: there are `slots` - T + 1.
        """
        rows, count = tokens.shape
        config = self.config
        encoded = gathered(self.encode(tokens, segment_ids))

        def empty(slots: int) -> Cache:
            heads = config.num_heads, config.head_dim
            return Cache.empty((config.num_decoder_layers, rows, slots, *heads), self.dtype)

        def keys(block, cache, layer, _):
            return cache.write(layer, 0, *block.cross.keys(encoded))

        read = scan.scan_layers(self.layers["decoder"], keys, empty(count), remat=False)
        source = Source(read.key, read.value, jnp.asarray(segment_ids) > 0)
        cache = empty(slots - count + 1)
        cache = cache._replace(
            positions=jnp.zeros((rows, slots - count + 1), jnp.int32), source=source
        )
        start = jnp.full((rows, 1), config.start_id, jnp.int32)
        mask = jnp.broadcast_to(jnp.arange(slots - count + 1) == 0, (rows, 1, 1, slots - count + 1))
        # Only distances count: it may stand where the prompt ends, as in a decoder alone.
        return self.extend(start, positions[:, -1:], mask, cache, 0)

    def extend(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        mask: Bool[Array, "B 1 T S"],
        cache: Cache,
        slot: Int[Array, ""] | int,
        before: Before | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of T label tokens put at `slot` of a cache of S slots, chosen by `mask`.

        `before`: always None, as prompts that are read apart share no prefix.
        """
        source, places = cache.source, cache.positions
        assert source is not None, "the cache is not that of `begin`"
        assert places is not None
        places = jax.lax.dynamic_update_slice(places, jnp.asarray(positions), (0, slot))
        bias = self._biases("decoder", lambda distances: distances.between(positions, places))
        wanted = tokens.shape[1], source.seen.shape[1]
        seen = jnp.broadcast_to(source.seen[:, None, None], (len(tokens), 1, *wanted))

        def body(block, carry, layer, _):
            x, cache = carry
            read = EncodedPrompt(source.key[layer], source.value[layer], seen)
            return block.cached(x, mask, bias(block), cache, layer, slot, read)

        carry = self._start(tokens, None), Cache(cache.key, cache.value)
        x, cache = scan.scan_layers(self.layers["decoder"], body, carry, remat=False)
        assert self.decoder_norm is not None
        return self.decoder_norm(x), cache._replace(positions=places, source=source)

    def _biases(self, side: str, of: Callable[[Distances], Bias]) -> Callable[[Block], Bias]:
        """What each layer's scores get: all the same, computed once, or by its own distances."""
        if self.config.own_distances:

            def own(block: Block) -> Bias:
                assert block.distances is not None
                return of(block.distances)

            return own
        shared = of(self.distances[side])
        return lambda block: shared

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Unembed chosen hidden states; float32, so that a loss over V stays exact."""
        if self.config.scale_outputs:
            hidden = hidden * hidden.shape[-1] ** -0.5
        unembed = self.embed.attend if self.config.tie_embeddings else self.unembed
        if hidden.ndim == 3:
            hidden = gathered(hidden)
        return unembed(hidden).astype(jnp.float32)

    def _start(
        self, tokens: Int[AnyArray, "B T"], key: Key[Array, ""] | None
    ) -> Float[Array, "B T D"]:
        return layers.dropout(self.embed(tokens).astype(self.dtype), self.config.dropout, key)


def _along(mask: Bool[Array, "B 1 T T"] | Segments, count: int) -> Callable[[Distances], Bias]:
    """What scores of a row's `count` tokens get, in the form that goes with a mask."""

    def found(distances: Distances) -> Bias:
        if isinstance(mask, jax.Array):
            return distances.along(count)
        return functools.partial(distances.part, count)

    return found


def _shifted(
    labels: Int[AnyArray, "B J"], segments: Int[AnyArray, "B J"], start_id: int
) -> Int[Array, "B J"]:
    """What the decoder reads: the label token before, and `start_id` where a segment begins."""

    def before(x, fill):
        return jnp.pad(jnp.asarray(x), ((0, 0), (1, 0)), constant_values=fill)[:, :-1]

    return jnp.where(before(segments, -1) == jnp.asarray(segments), before(labels, 0), start_id)
