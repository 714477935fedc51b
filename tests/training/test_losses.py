"""Losses of heads against PyTorch's, and the mean over a step's micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.data.batching import Batch, Targets
from jaxclf.training.losses import Objective, Term, place_losses

CLASSES = 5
WEIGHTS = (0.5, 1.0, 2.0, 0.25, 3.0)
TERMS = {
    "plain": Term(),
    "weighted": Term(class_weights=WEIGHTS),
    "smoothed": Term(label_smoothing=0.2),
    "both": Term(class_weights=WEIGHTS, label_smoothing=0.2),
    "multilabel": Term("multilabel"),
    "multilabel weighted": Term("multilabel", class_weights=WEIGHTS),
    "regression": Term("regression"),
}


def draw(term: Term, rows: int, seed: int = 0):
    """Scores [rows, 3, C], labels and a mask that leaves out some places."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(rows, 3, 1 if term.kind == "regression" else CLASSES))
    if term.kind == "multilabel":
        labels = random.integers(0, 2, (rows, 3, CLASSES)).astype(np.float32)
    elif term.kind == "regression":
        labels = random.normal(size=(rows, 3)).astype(np.float32)
    else:
        labels = random.integers(0, CLASSES, (rows, 3))
    mask = np.arange(3) < random.integers(1, 4, (rows, 1))
    return scores.astype(np.float32), labels, mask


def batch_of(labels, mask, lead=()):
    """A batch whose scores do not depend on its tokens."""
    rows = np.zeros((*lead, *mask.shape[len(lead) : -1], 4), np.int32)
    positions = np.zeros(mask.shape, np.int32)
    return Batch(rows, rows, rows, None, {"task": Targets(positions, labels, mask)})


def theirs(term: Term, scores, labels, mask) -> float:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    scores, labels = torch.tensor(scores[mask]), torch.tensor(labels[mask])
    weights = torch.tensor(term.class_weights) if term.class_weights else None
    if term.kind == "multilabel":
        return float(functional.binary_cross_entropy_with_logits(scores, labels, weights))
    if term.kind == "regression":
        return float(functional.mse_loss(scores[:, 0], labels))
    return float(
        functional.cross_entropy(scores, labels, weights, label_smoothing=term.label_smoothing)
    )


@pytest.mark.parametrize("name", TERMS)
def test_mean_loss_equals_pytorchs(name):
    term = TERMS[name]
    scores, labels, mask = draw(term, 6)
    objective = Objective(lambda module, batch, key: {"task": jnp.asarray(scores)}, {"task": term})
    batch = batch_of(labels, mask)
    sums = objective.sums(None, batch, objective.totals(batch))
    np.testing.assert_allclose(sums.loss, theirs(term, scores, labels, mask), rtol=1e-6)
    assert sums.count == (0 if term.kind == "regression" else mask.sum())


@pytest.mark.parametrize("name", TERMS)
def test_micro_batches_add_up_to_the_mean(name):
    """Rows with unlike numbers of labels and unlike class weights."""
    term = TERMS[name]
    scores, labels, mask = draw(term, 6)
    objective = Objective(lambda module, batch, key: {"task": module}, {"task": term})
    whole = batch_of(labels, mask)
    totals = objective.totals(whole)
    scores = jnp.asarray(scores)
    together = objective.sums(scores, whole, totals)
    parts = [
        objective.sums(scores[rows], batch_of(labels[rows], mask[rows]), totals)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    summed = jax.tree.map(lambda *values: sum(values), *parts)
    np.testing.assert_allclose(together.loss, summed.loss, rtol=1e-6)
    assert (together.correct, together.count) == (summed.correct, summed.count)


def test_tasks_are_weighted_and_an_absent_one_adds_nothing():
    scores, labels, mask = draw(Term(), 4)
    batch = batch_of(labels, mask)
    empty = Targets(np.zeros_like(labels), labels, np.zeros_like(mask))
    batch = batch._replace(targets={"task": batch.targets["task"], "absent": empty})
    both = {"task": jnp.asarray(scores), "absent": jnp.asarray(scores)}
    objective = Objective(
        lambda module, batch, key: both, {"task": Term(weight=3.0), "absent": Term()}
    )
    sums = objective.sums(None, batch, objective.totals(batch))
    mean = np.mean(place_losses(Term(), jnp.asarray(scores), labels)[mask])
    np.testing.assert_allclose(sums.loss, 3 * mean, rtol=1e-6)
    assert sums.count == mask.sum()
