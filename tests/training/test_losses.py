"""Losses of heads against PyTorch's, and the mean over a step's micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.data.batching import Batch, Soft, Targets
from jaxclf.training.losses import Objective, Term, place_losses, soft_losses

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


def taught(soft, shares, labels, mask) -> Batch:
    return batch_of(labels, mask)._replace(soft={"task": Soft(soft, shares)})


@pytest.mark.parametrize("kind", ["class", "multilabel", "regression"])
def test_the_loss_of_soft_targets_is_pytorchs_divergence(kind):
    """T² times the divergence of both sides at temperature T, as in Hinton et al. 2015."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    temperature = 3.0
    term = Term(kind, temperature=temperature)
    scores, labels, mask = draw(term, 6)
    soft = np.random.default_rng(1).uniform(0.05, 1, scores.shape).astype(np.float32)
    if kind == "class":
        soft /= soft.sum(axis=-1, keepdims=True)
    shares = np.broadcast_to(np.array([0, 1], np.float32), (*mask.shape, 2))
    objective = Objective(lambda module, batch, key: {"task": module}, {"task": term})
    batch = taught(soft, shares, labels, mask)

    def loss(scores):
        return objective.sums(scores, batch, objective.totals(batch)).loss

    theirs_scores = torch.tensor(scores, requires_grad=True)
    given, wanted = theirs_scores[mask] / temperature, torch.tensor(soft[mask])
    if kind == "class":
        own = functional.log_softmax(given, -1)
        expected = functional.kl_div(own, wanted, reduction="batchmean") * temperature**2
    elif kind == "multilabel":
        own = functional.binary_cross_entropy_with_logits(given, wanted, reduction="none")
        least = -torch.xlogy(wanted, wanted) - torch.xlogy(1 - wanted, 1 - wanted)
        expected = (own - least).mean() * temperature**2
    else:
        expected = functional.mse_loss(theirs_scores[mask], wanted)
    expected.backward()
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(scores))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    size = float(theirs_scores.grad.abs().max())
    np.testing.assert_allclose(gradient, theirs_scores.grad, rtol=0, atol=1e-5 * size)


def test_labels_and_teacher_are_mixed_by_their_shares():
    """A place that has no label weighs less in the mean; one without a teacher's word too."""
    term = Term(class_weights=WEIGHTS)
    scores, labels, _ = draw(term, 3)
    soft = jax.nn.softmax(np.random.default_rng(2).normal(size=scores.shape))
    mask = np.array([[True] * 3, [True, True, False], [True] * 3])
    shares = np.array([[0.7, 0.3], [0, 0.3], [0.7, 0]], np.float32)
    shares = np.broadcast_to(shares[:, None], (3, 3, 2))
    objective = Objective(lambda module, batch, key: {"task": module}, {"task": term})
    batch = taught(soft, shares, labels, mask)
    sums = objective.sums(jnp.asarray(scores), batch, objective.totals(batch))
    hard = np.asarray(place_losses(term, jnp.asarray(scores), labels))
    away = np.asarray(soft_losses(term, jnp.asarray(scores), soft))
    weights = np.asarray(WEIGHTS)[labels]
    total = (shares[..., 0] * weights + shares[..., 1])[mask].sum()
    expected = (shares[..., 0] * hard + shares[..., 1] * away)[mask].sum() / total
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
    plain = np.broadcast_to(np.array([1, 0], np.float32), (3, 3, 2))
    batch = taught(soft, plain, labels, mask)
    found = objective.sums(jnp.asarray(scores), batch, objective.totals(batch))
    bare = batch._replace(soft=None)
    same = objective.sums(jnp.asarray(scores), bare, objective.totals(bare))
    np.testing.assert_allclose(found.loss, same.loss, rtol=1e-6)
