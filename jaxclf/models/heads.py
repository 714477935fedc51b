"""What stands on an encoder: sequence heads as each family has them, and token heads.

Source: the …ForSequenceClassification and …ForTokenClassification models of transformers, with
which converted heads agree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import Array, Float, Key
from jaxclf.models import layers

HeadKind = Literal["sequence", "token"]

# What a family does to the first token's hidden state before its classifier: dropout or not, a
# layer of the head's own, its activation. BERT's layer is the pooler, which all heads share.
_DENSE: dict[str, tuple[bool, Callable] | None] = {
    "bert": None,
    "roberta": (True, jnp.tanh),
    "distilbert": (False, jax.nn.relu),
    "electra": (True, lambda x: jax.nn.gelu(x, approximate=False)),
}


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """One head: the name of its task, where it reads, and how many scores it gives."""

    name: str
    kind: HeadKind
    size: int


class Head(nnx.Module):
    """Hidden states to scores; `dense` is what a family's sequence head puts before `out`."""

    def __init__(
        self,
        family: str,
        kind: HeadKind,
        hidden_size: int,
        size: int,
        *,
        dropout: float,
        std: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        def linear(size_out):
            return layers.Linear(hidden_size, size_out, std=std, dtype=dtype, rngs=rngs, bias=True)

        before = _DENSE[family] if kind == "sequence" else None
        self.dense = linear(hidden_size) if before else None
        self.drops_first, self.activation = before or (False, jnp.tanh)
        self.out = linear(size)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "*batch D"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch C"]:
        """Scores in float32, so that a loss over them stays exact."""
        first, last = layers.split_key(key, 2)
        if self.dense is not None:
            if self.drops_first:
                x = layers.dropout(x, self.dropout, first)
            x = self.activation(self.dense(x))
        return self.out(layers.dropout(x, self.dropout, last)).astype(jnp.float32)
