"""Losses over label tokens."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxclf.data.pack import Batch
from jaxclf.models.llama import Llama
from jaxclf.shapes import Array, Float


class Sums(NamedTuple):
    """Sums over the label tokens of a batch; divide by `count` for means."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    count: Float[Array, ""]


def label_logits(module: Llama, batch: Batch) -> Float[Array, "B J V"]:
    """Logits where a label token is predicted, and nowhere else."""
    hidden = module.hidden(batch.tokens, batch.positions, batch.segment_ids)
    return module.logits(jnp.take_along_axis(hidden, batch.label_positions[..., None], axis=1))


def generation_loss(module: Llama, batch: Batch) -> Sums:
    """Summed cross-entropy of the answer and its end of sequence, in nats, float32."""
    logits = label_logits(module, batch)
    targets = jnp.asarray(batch.label_tokens)
    mask = jnp.asarray(batch.label_mask, jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return Sums(jnp.sum(losses * mask), jnp.sum(correct * mask), jnp.sum(mask))
