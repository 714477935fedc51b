"""What training minimises: losses of the labels at their places, for generation and for heads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import xlogy

from jaxclf.core.types import AnyArray, Array, Float, Key, Shaped
from jaxclf.data.batching import ANSWER, Batch, Soft, Targets
from jaxclf.data.tasks import TaskKind
from jaxclf.models import layers
from jaxclf.models.decoder import Decoder
from jaxclf.models.encoder import Encoder
from jaxclf.models.t5 import T5

Scores = dict[str, Float[Array, "B J C"]]
Totals = dict[str, Float[Array, ""]]


class Sums(NamedTuple):
    """One batch's part of a step's figures.

    `loss` is already divided by the step's totals, so the parts of a step add up to its mean
    loss. `correct` of `count` labels have the highest score (numbers are in neither).
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    count: Float[Array, ""]


@dataclass(frozen=True)
class Term:
    """One target's loss. `weight`: its share beside other targets; `class_weights`: one a class.

    `temperature`: that both sides are softened by where a teacher's probabilities are learned.
    """

    kind: TaskKind = "class"
    weight: float = 1.0
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Objective:
    """The weighted sum over targets of each one's mean loss, in nats (squared for numbers).

    `scores(module, batch, key)` gives every target's scores; a key turns dropout on.
    """

    scores: Callable[[Any, Batch, Key[Array, ""] | None], Scores]
    terms: Mapping[str, Term]

    def totals(self, batch: Batch) -> Totals:
        """What each target's summed loss is divided by, over all micro-batches of a step."""
        return {
            name: jnp.sum(_weights(term, batch.targets[name], (batch.soft or {}).get(name)))
            for name, term in self.terms.items()
        }

    def sums(
        self, module: Any, batch: Batch, totals: Totals, key: Key[Array, ""] | None = None
    ) -> Sums:
        """The batch's part of the loss; see `Sums`."""
        loss = correct = count = jnp.zeros((), jnp.float32)
        scores = self.scores(module, batch, key)
        for name, term in self.terms.items():
            targets = batch.targets[name]
            mask = jnp.asarray(targets.mask)
            losses = place_losses(term, scores[name], targets.labels)
            if batch.soft is not None:
                soft = batch.soft[name]
                of_label, of_teacher = jnp.moveaxis(jnp.asarray(soft.shares), -1, 0)
                taught = soft_losses(term, scores[name], soft.probabilities)
                losses = of_label * losses + of_teacher * taught
            losses = jnp.where(mask, losses, 0.0)
            # A step may hold no label of a target at all.
            total = jnp.where(totals[name] > 0, totals[name], 1.0)
            loss += term.weight * jnp.sum(losses) / total
            if term.kind != "regression":
                correct += jnp.sum(_is_right(term, scores[name], targets.labels) & mask)
                count += jnp.sum(mask)
        return Sums(loss, correct, count)


def label_logits(
    module: Decoder | T5, batch: Batch, key: Key[Array, ""] | None = None
) -> Float[Array, "B J V"]:
    """Logits where a label token is predicted, and nowhere else."""
    places, labels, mask = batch.targets[ANSWER]
    if isinstance(module, T5):
        own = jnp.take_along_axis(jnp.asarray(batch.segment_ids), jnp.asarray(places), axis=1)
        segments = jnp.where(mask, own, 0)
        return module.logits(module.hidden(batch.tokens, batch.segment_ids, labels, segments, key))
    return module.logits(
        module.hidden(
            batch.tokens,
            batch.positions,
            batch.segment_ids,
            key,
            places,
            batch.prefixes,
            batch.lengths,
        )
    )


def head_scores(
    module: Encoder | Decoder | T5, batch: Batch, key: Key[Array, ""] | None = None
) -> Scores:
    """Each head's scores where it predicts, and nowhere else."""
    first, *keys = layers.split_key(key, 1 + len(batch.targets))
    if isinstance(module, T5):
        states = module.states(batch.tokens, batch.segment_ids, first)
        return {
            name: module.read(
                name, states[module.kind(name)], batch.segment_ids, targets.positions, of_head
            )
            for (name, targets), of_head in zip(batch.targets.items(), keys, strict=True)
        }
    places = [targets.positions for targets in batch.targets.values()]
    at = None if module.reads_all else jnp.concatenate(places, axis=1)
    row = batch.tokens, batch.positions, batch.segment_ids
    if isinstance(module, Decoder):
        hidden = module.hidden(*row, first, at, None, batch.lengths)
    else:
        hidden = module.hidden(*row, batch.types, first, at, batch.lengths)
    if at is None:
        return {
            name: module.read(name, hidden, batch.segment_ids, targets.positions, of_head)
            for (name, targets), of_head in zip(batch.targets.items(), keys, strict=True)
        }
    ends = np.cumsum([each.shape[1] for each in places])
    return {
        name: module.scores(name, of_target, of_head)
        for name, of_target, of_head in zip(
            batch.targets, jnp.split(hidden, ends[:-1], axis=1), keys, strict=True
        )
    }


GENERATION = Objective(
    lambda module, batch, key: {ANSWER: label_logits(module, batch, key)}, {ANSWER: Term()}
)
"""Cross-entropy of the answer and its end of sequence, averaged over tokens."""


def place_losses(
    term: Term, scores: Float[Array, "B J C"], labels: Shaped[AnyArray, "B J ..."]
) -> Float[Array, "B J"]:
    """The loss of every place, class weights applied, before any mask.

    Classes: cross-entropy; with smoothing s, (1-s) of it and s of the mean over all classes.
    Flags: the mean over classes of the binary cross-entropies. Numbers: the squared error.
    Source: the definitions of PyTorch's CrossEntropyLoss, BCEWithLogitsLoss and MSELoss.
    """
    weights = jnp.asarray(term.class_weights or 1.0, jnp.float32)
    if term.kind == "regression":
        return jnp.square(scores[..., 0] - labels)
    if term.kind == "multilabel":
        return jnp.mean(weights * optax.sigmoid_binary_cross_entropy(scores, labels), axis=-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.asarray(labels))
    if term.class_weights:
        losses *= weights[labels]
    if smoothing := term.label_smoothing:
        everywhere = -jnp.mean(weights * jax.nn.log_softmax(scores), axis=-1)
        losses = (1 - smoothing) * losses + smoothing * everywhere
    return losses


def soft_losses(
    term: Term, scores: Float[Array, "B J C"], soft: Float[AnyArray, "B J C"]
) -> Float[Array, "B J"]:
    """How far every place is from what a teacher says there, before any mask; no class weights.

    `soft` are probabilities at the temperature T. Classes: T² times the divergence of the scores'
    softmax at T from them. Flags: the mean over classes of the same for each flag by itself.
    Numbers: the squared error. T² keeps gradients of one size whatever T is. Source: Hinton et al.
    2015, section 2.
    """
    soft = jnp.asarray(soft)
    if term.kind == "regression":
        return jnp.square(scores[..., 0] - soft[..., 0])
    softened = scores / term.temperature
    entropy = xlogy(soft, soft)
    if term.kind == "multilabel":
        crossed = optax.sigmoid_binary_cross_entropy(softened, soft)
        apart = jnp.mean(crossed + entropy + xlogy(1 - soft, 1 - soft), axis=-1)
    else:
        apart = jnp.sum(entropy - soft * jax.nn.log_softmax(softened), axis=-1)
    return term.temperature**2 * apart


def _weights(term: Term, targets: Targets, soft: Soft | None) -> Float[Array, "..."]:
    """What each place counts in the mean: its class's weight, as PyTorch has it.

    With a teacher, that is the label's part of it; the teacher's share is added.
    """
    mask = jnp.asarray(targets.mask, jnp.float32)
    weights = jnp.ones_like(mask)
    if term.class_weights and term.kind != "multilabel":
        weights = jnp.asarray(term.class_weights, jnp.float32)[targets.labels]
    if soft is not None:
        weights = soft.shares[..., 0] * weights + soft.shares[..., 1]
    return mask * weights


def _is_right(term: Term, scores: Array, labels: AnyArray):
    if term.kind == "multilabel":
        return jnp.all((scores > 0) == (labels > 0.5), axis=-1)
    return jnp.argmax(scores, axis=-1) == labels
