"""What stands on a model: sequence heads as each family has them, and token heads.

Source: the …ForSequenceClassification and …ForTokenClassification models of transformers, with
which converted heads agree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import AnyArray, Array, Float, Int, Key
from jaxclf.models import layers

HeadKind = Literal["sequence", "token"]
Pooling = Literal["first", "last", "mean", "scores"]
TokenAt = Literal["first", "last"]


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """One head: the name of its task, where it reads, and how many scores it gives."""

    name: str
    kind: HeadKind
    size: int


@dataclasses.dataclass(frozen=True)
class HeadStyle:
    """How the heads of a family come to their scores.

    pooler: sequence heads read the model's tanh layer, which they share. pooling: what a sequence
    head reads of a text: its `first` token, its `last` one, the `mean` of all, or each token, of
    whose `scores` it then takes the mean. dense: activation of a layer of the head's own; empty:
    there is none. dense_bias: of that layer. drops_first: dropout before it. norm: LayerNorm after
    it. on_tokens: token heads have it too. bias: of a sequence head's last layer. word_at: which of
    a word's tokens a token head reads.
    """

    pooler: bool = False
    pooling: Pooling = "first"
    dense: str = ""
    dense_bias: bool = True
    drops_first: bool = False
    norm: bool = False
    on_tokens: bool = False
    bias: bool = True
    word_at: TokenAt = "first"

    @property
    def text_at(self) -> TokenAt:
        """The token of a text at which its sequence head has its place."""
        return "last" if self.pooling == "last" else "first"


PLAIN = HeadStyle()
# Of decoders, whose last token has seen the whole text.
LAST = HeadStyle(pooling="last", bias=False, word_at="last")
# Of T5, whose decoder reads the text after its encoder: only there has the last token seen all.
READ_TWICE = HeadStyle(pooling="last", dense="tanh", drops_first=True)


class Head(nnx.Module):
    """Hidden states to scores; `dense` is what a family's head puts before `out`."""

    def __init__(
        self,
        style: HeadStyle,
        kind: HeadKind,
        hidden_size: int,
        size: int,
        *,
        dropout: float,
        std: float,
        dtype: Any,
        rngs: nnx.Rngs,
        norm: layers.LayerNorm | layers.RMSNorm | None = None,
    ):
        """`norm`: what a style with one puts after its own layer."""

        def linear(size_out, bias):
            return layers.Linear(hidden_size, size_out, std=std, dtype=dtype, rngs=rngs, bias=bias)

        is_dense = bool(style.dense) and (kind == "sequence" or style.on_tokens)
        self.dense = linear(hidden_size, style.dense_bias) if is_dense else None
        self.norm = norm if is_dense and style.norm else None
        self.out = linear(size, style.bias or kind == "token")
        self.style, self.dropout = style, dropout

    def __call__(
        self, x: Float[Array, "*batch D"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch C"]:
        """Scores in float32, so that a loss over them stays exact."""
        first, last = layers.split_key(key, 2)
        if self.dense is not None:
            if self.style.drops_first:
                x = layers.dropout(x, self.dropout, first)
            x = layers.ACTIVATIONS[self.style.dense](self.dense(x))
        if self.norm is not None:
            x = self.norm(x)
        return self.out(layers.dropout(x, self.dropout, last)).astype(jnp.float32)


def of_model(
    config: Any, *, dtype: Any, rngs: nnx.Rngs, norm: Callable[[int], Any] | None = None
) -> nnx.Dict:
    """The heads that a model's config names; `norm` makes those that their style has."""
    size = config.hidden_size
    return nnx.Dict(
        {
            head.name: Head(
                config.head,
                head.kind,
                size,
                head.size,
                dropout=config.head_dropout,
                std=config.initializer_std,
                dtype=dtype,
                rngs=rngs,
                norm=norm(size) if norm is not None and config.head.norm else None,
            )
            for head in config.heads
        }
    )


class Headed(nnx.Module):
    """A model with heads: what they say of its hidden states.

    `config` has `head` and `heads`; `pooler` is the layer that sequence heads share, or None.
    """

    config: Any
    heads: nnx.Dict
    pooler: layers.Linear | None = None

    def scores(
        self, name: str, hidden: Float[Array, "*batch D"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch C"]:
        """The head's float32 scores for hidden states chosen for it."""
        if self.pooler is not None and self.kind(name) == "sequence":
            hidden = jnp.tanh(self.pooler(hidden))
        return self.heads[name](hidden, key)

    def read(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[AnyArray, "B T"],
        at: Int[AnyArray, "B J"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B J C"]:
        """The head's float32 scores at places, of the hidden states of all tokens."""
        pooling = self.config.head.pooling if self.kind(name) == "sequence" else "first"
        if pooling == "scores":
            return means(self.scores(name, hidden, key), segment_ids, at)
        if pooling == "mean":
            return self.scores(name, means(hidden, segment_ids, at), key)
        return self.scores(name, layers.take_places(hidden, at), key)

    @property
    def reads_all(self) -> bool:
        """Whether a head reads all tokens of a text; else `hidden` may be of places alone."""
        pools = self.config.head.pooling in ("mean", "scores")
        return pools and any(head.kind == "sequence" for head in self.config.heads)

    def kind(self, name: str) -> HeadKind:
        """What the head of this name reads: whole texts, or words."""
        return next(head.kind for head in self.config.heads if head.name == name)


def means(
    x: Float[Array, "B T D"], segment_ids: Int[AnyArray, "B T"], at: Int[AnyArray, "B J"]
) -> Float[Array, "B J D"]:
    """Of every place the mean over all tokens of its segment."""
    segment_ids = jnp.asarray(segment_ids)
    own = jnp.take_along_axis(segment_ids, jnp.asarray(at), axis=1)
    same = (segment_ids[:, None, :] == own[:, :, None]).astype(jnp.float32)
    shares = same / jnp.sum(same, axis=-1, keepdims=True)
    found = jnp.einsum("bjt,btd->bjd", shares, x, preferred_element_type=jnp.float32)
    return found.astype(x.dtype)


_BERT, _ROBERTA = HeadStyle(pooler=True), HeadStyle(dense="tanh", drops_first=True)

# By what transformers calls a family.
STYLES: dict[str, HeadStyle] = {
    "bert": _BERT,
    "albert": _BERT,
    "nomic_bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "distilbert": HeadStyle(dense="relu"),
    "electra": HeadStyle(dense="gelu", drops_first=True),
    "deberta-v2": HeadStyle(dense="gelu"),
    "modernbert": HeadStyle(dense="gelu", dense_bias=False, norm=True, on_tokens=True),
    "eurobert": HeadStyle(pooling="scores", dense="gelu"),
}
