"""Intervals and tests against values worked out by hand, and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.metrics import metrics, significance

CLASSES = Task("t", "class", ("a", "b", "c"))
MATTHEWS = Task("t", "class", ("a", "b", "c"), metric="matthews")
SLOTS = Task("t", "slots", ("date", "time"))
SETS = Task("t", "multilabel", ("a", "b", "c"))
NUMBERS = Task("t", "regression", ())


def predictions(task: Task, count: int, seed: int = 0) -> list[Prediction]:
    """Answers that are right now and then, and unparsed now and then."""
    random = np.random.default_rng(seed)

    def value(is_gold: bool):
        if not is_gold and random.random() < 0.1:
            return None
        if task.kind == "class":
            return str(random.choice(task.labels))
        if task.kind == "regression":
            return float(random.normal(3))
        if task.kind == "multilabel":
            return tuple(label for label in task.labels if random.random() < 0.5)
        if is_gold:
            return tuple(random.choice(["O", "B-date", "I-date", "B-time"], 5).tolist())
        return tuple(random.choice(["Other", "date", "time"], 4).tolist())

    return [
        Prediction(str(number), "", {"t": value(True)}, {"t": value(False)})
        for number in range(count)
    ]


@pytest.mark.parametrize("task", [CLASSES, MATTHEWS, SLOTS, SETS, NUMBERS])
def test_a_figure_of_any_resample_is_the_metric_of_these_texts(task):
    found = predictions(task, 60)
    figure = significance.figure(found, task)
    assert figure.name == metrics.main_metric(task)
    random = np.random.default_rng(1)
    for count in (60, 60, 7):
        drawn = random.integers(60, size=count)
        expected = metrics.compute([found[place] for place in drawn], (task,))["t"][figure.name]
        assert figure.value(figure.rows[drawn].sum(axis=0)[None]) == pytest.approx([expected])


def test_hidden_gold_is_in_no_figure():
    hidden = [Prediction("x", "", {"t": None}, {"t": "a"})]
    found = predictions(CLASSES, 9)
    assert len(significance.figure([*hidden, *found], CLASSES).rows) == 9


@pytest.mark.parametrize("constant", [0, 1])
def test_the_correlation_with_a_constant_is_none(constant):
    found = [
        Prediction(str(n), "", {"t": 0.1 if constant else n / 3}, {"t": n / 7 if constant else 0.1})
        for n in range(9)
    ]
    figure = significance.figure(found, NUMBERS)
    assert all(map(math.isnan, significance.estimate(figure, 20)))


@pytest.mark.parametrize(
    ("task", "gold", "predicted"),
    [
        (MATTHEWS, "a", "b"),  # either side has but one class
        (SETS, (), ()),
        (SLOTS, ("O", "O"), ("Other", "Other")),
        (SLOTS, ("B-date", "O"), None),
    ],
)
def test_a_figure_of_nothing_is_none_at_all(task, gold, predicted):
    found = [Prediction(str(n), "", {"t": gold}, {"t": predicted}) for n in range(4)]
    figure = significance.figure(found, task)
    assert significance.estimate(figure, 5) == (0, 0, 0)
    assert metrics.compute(found, (task,))["t"][figure.name] == 0


def test_a_metric_that_is_no_function_of_sums_is_refused():
    with pytest.raises(ValueError, match="t: spearman is no function"):
        significance.figure(predictions(NUMBERS, 3), Task("t", "regression", (), metric="spearman"))


def test_resamples_of_two_texts():
    # Of one right and one wrong text: both wrong 1/4, one right 1/2, both right 1/4.
    sums = significance.resampled(np.array([[1.0, 1], [0, 1]]), 20_000, seed=3)
    values, counts = np.unique(sums[:, 0], return_counts=True)
    assert values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(counts / 20_000, [0.25, 0.5, 0.25], atol=0.01)
    assert (sums[:, 1] == 2).all()
    assert significance.estimate(significance.share("accuracy", [True, False])) == (0.5, 0, 1)


def test_the_seed_alone_decides(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    first = significance.resampled(rows, 200, seed=1)
    np.testing.assert_array_equal(first, significance.resampled(rows, 200, seed=1))
    assert not np.array_equal(first, significance.resampled(rows, 200, seed=2))
    monkeypatch.setattr(significance, "_DRAWS", 1_500)  # 30 resamples at once
    assert significance.resampled(rows, 200, seed=1).shape == (200, 2)
    # All 50 texts are drawn in each resample, also in the last 20.
    assert (significance.resampled(np.ones((50, 1)), 200, seed=1) == 50).all()
    drawn = significance.resampled(rows, 200, seed=1)
    assert len(np.unique(drawn[:, 0])) == 200


def test_intervals_are_those_of_scipy():
    random = np.random.default_rng(0)
    a = random.random(300) < 0.7
    b = np.where(random.random(300) < 0.8, a, ~a)  # right mostly where a is
    figures = [significance.share("accuracy", list(map(bool, each))) for each in (a, b)]
    of_a = stats.bootstrap((a,), np.mean, method="percentile", rng=0).confidence_interval
    found = significance.estimate(figures[0])
    assert found.value == a.mean()
    np.testing.assert_allclose(found[1:], of_a, atol=0.006)
    paired = stats.bootstrap(
        (a, b), lambda a, b, axis: b.mean(axis) - a.mean(axis), paired=True, method="percentile",
        rng=0,
    ).confidence_interval  # fmt: skip
    found = significance.difference(*figures)
    assert found.value == pytest.approx(b.mean() - a.mean())
    np.testing.assert_allclose(found[1:], paired, atol=0.006)
    assert significance.difference(figures[0], figures[0]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1),
        (1, 6, 2 * (1 + 7) / 2**7),  # none or one of seven, on either side
        (6, 1, 2 * (1 + 7) / 2**7),
        (12, 12, 1),
        (10, 30, math.erfc(math.sqrt((20 - 1) ** 2 / 40 / 2))),  # chi-square, one degree
        (15, 15, 1),
        (5, 19, stats.binomtest(5, 24).pvalue),  # fewer than 25
        (5, 20, math.erfc(math.sqrt((15 - 1) ** 2 / 25 / 2))),
    ],
)
def test_mcnemar(lost, won, p):
    assert significance.mcnemar(lost, won) == pytest.approx(p)
