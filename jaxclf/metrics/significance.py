"""How sure a figure is, and the difference of two: bootstrap over texts, and McNemar's test.

Every main metric is a function of sums over texts, so that resampling the texts needs only how
often each was drawn, times what it adds:

    accuracy of 3 texts, rows [[1, 1], [0, 1], [1, 1]] (right, one)   → value(sums) = 2 / 3
    one resample draws them 2, 1, 0 times                             → value([2, 3]) = 2 / 3
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclf.core.types import Float
from jaxclf.data.predictions import UNPARSED, Prediction
from jaxclf.data.tasks import Label, SlotFormat, Task, bio_slots, unseen_labels
from jaxclf.metrics import metrics

LEVEL = 0.95  # of confidence intervals
SAMPLES = 10_000
EXACT_BELOW = 25  # discordant pairs, from which McNemar's chi-square is near enough
_DRAWS = 4_000_000  # texts drawn at once: 64 MB


class Figure(NamedTuple):
    """A metric of n texts: what each adds `[n k]`, and the metric of sums `[s k] → [s]`.

    `value` is nan where the metric has none (the correlation with a constant).
    """

    name: str
    rows: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A figure or a difference of two, with its confidence interval."""

    value: float
    low: float
    high: float


# Intervals ----------------------------------------------------------------------------------------


def estimate(figure: Figure, samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """The figure with its bootstrap percentile interval. Source: Efron & Tibshirani 1993, 13.3."""
    return _estimate(figure.value(_sums(figure.rows, samples, seed)))


def difference(a: Figure, b: Figure, samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """`b` less `a`, the same figure of the same texts in the same order, by the paired bootstrap.

    Both are resampled alike, so that what makes a text hard for both is no noise. Source:
    Koehn 2004, paired bootstrap resampling; intervals as of `estimate`.
    """
    split = a.rows.shape[1]
    rows = np.concatenate([a.rows, b.rows], axis=1)
    sums = _sums(rows, samples, seed)
    return _estimate(b.value(sums[:, split:]) - a.value(sums[:, :split]))


def resampled(rows: Float[np.ndarray, "n k"], samples: int, seed: int) -> Float[np.ndarray, "s k"]:
    """Sums over n rows drawn with replacement, `samples` times."""
    random, count = np.random.default_rng(seed), len(rows)
    sums = np.zeros((samples, rows.shape[1]))
    at_once = max(1, _DRAWS // max(1, count))
    for start in range(0, samples if count else 0, at_once):
        size = min(at_once, samples - start)
        drawn = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums[start : start + size] = times.astype(float) @ rows
    return sums


def _sums(rows: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Those over the texts as they are, then those of the resamples."""
    return np.concatenate([rows.sum(axis=0, keepdims=True), resampled(rows, samples, seed)])


def _estimate(values: np.ndarray) -> Estimate:
    """Of the texts as they are, then of resamples; those that have no value are left out."""
    known = values[1:][np.isfinite(values[1:])]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(known, ends) if len(known) else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))


def mcnemar(lost: int, won: int) -> float:
    """The two-sided p of as uneven a split of the texts that exactly one of two runs has right.

    Source: McNemar 1947; the binomial distribution itself below 25 such texts, else the chi-square
    with one degree of freedom and Edwards' 1948 correction for continuity.
    """
    from scipy import stats

    if lost + won < EXACT_BELOW:
        return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    statistic = max(0, abs(lost - won) - 1) ** 2 / (lost + won)
    return float(stats.chi2.sf(statistic, 1))


# Figures ------------------------------------------------------------------------------------------


def figure(
    predictions: Sequence[Prediction], task: Task, slot_format: SlotFormat = "names"
) -> Figure:
    """The task's main metric over the predictions that have gold, as `metrics.compute` gives it.

    Raises ValueError for a main metric that is no function of sums over texts.
    """
    name = metrics.main_metric(task)
    scored = [each for each in predictions if each.gold.get(task.name) is not None]
    if name == "accuracy":
        return share(name, [metrics.is_right(each, task, slot_format) for each in scored])
    if name == "slot_f1":
        return Figure(name, _counts([_spans(each, task, slot_format) for each in scored]), _f1)
    if name == "micro_f1" and task.kind == "multilabel":
        sets = [
            ({*_tuple(each.gold[task.name])}, {*_tuple(each.predicted.get(task.name))})
            for each in scored
        ]
        return Figure(name, _counts(sets), _f1)
    if name == "matthews":
        return Figure(name, _confusions(scored, task), _matthews)
    if name == "pearson":
        return Figure(name, _moments(scored, task), _pearson)
    raise ValueError(f"task {task.name}: {name} is no function of sums over texts")


def share(name: str, right: Sequence[bool]) -> Figure:
    """The share of texts that are right."""
    rows = np.ones((len(right), 2))
    rows[:, 0] = right
    return Figure(name, rows, lambda sums: _ratio(sums[..., 0], sums[..., 1]))


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), otherwise), where=below > 0)


def _counts(pairs: Sequence[tuple[set[Any], set[Any]]]) -> np.ndarray:
    """Of sets in gold and predicted: how many are in both, in gold, and predicted `[n 3]`."""
    rows = [(len(gold & found), len(gold), len(found)) for gold, found in pairs]
    return np.array(rows, float).reshape(-1, 3)


def _f1(sums: np.ndarray) -> np.ndarray:
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2], 0.0)


def _spans(
    prediction: Prediction, task: Task, slot_format: SlotFormat
) -> tuple[set[Any], set[Any]]:
    """The spans (type, start, end) in gold and predicted, grouped as for `slot_f1`."""
    from seqeval.metrics.sequence_labeling import get_entities

    gold, found = metrics.slot_names(prediction, task, slot_format)
    return {*get_entities([*bio_slots(gold)])}, {*get_entities([*bio_slots(found)])}


def _tuple(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _confusions(scored: Sequence[Prediction], task: Task) -> np.ndarray:
    """Right, then gold and predicted class as flags `[n 1+2(C+1+U)]`: those of the task, unparsed,
    then the labels that only gold has."""
    golds = [each.gold[task.name] for each in scored]
    labels = (*task.labels, UNPARSED, *unseen_labels(golds, task))
    index: dict[Label, int] = {label: place for place, label in enumerate(labels)}
    one_hot = np.eye(len(index))
    gold = [index[label] for label in golds]
    found = [index[each.predicted.get(task.name)] for each in scored]
    right = np.equal(gold, found)[:, None]
    return np.concatenate([right, one_hot[gold], one_hot[found]], axis=1)


def _matthews(sums: np.ndarray) -> np.ndarray:
    """The correlation of classes, 0 where one side has but one. Source: Gorodkin 2004, eq. 8."""
    right, flags = sums[..., 0], sums[..., 1:]
    classes = flags.shape[-1] // 2
    gold, found = flags[..., :classes], flags[..., classes:]
    count = gold.sum(axis=-1)
    above = right * count - (gold * found).sum(axis=-1)
    varied = (count**2 - (gold**2).sum(axis=-1)) * (count**2 - (found**2).sum(axis=-1))
    return _ratio(above, np.sqrt(varied), 0.0)


def _moments(scored: Sequence[Prediction], task: Task) -> np.ndarray:
    """One, x, y, x², y² and xy of gold x and predicted y `[n 6]`; an unparsed output adds none."""
    rows = np.zeros((len(scored), 6))
    pairs = [(each.gold[task.name], each.predicted.get(task.name)) for each in scored]
    known = [place for place, pair in enumerate(pairs) if pair[1] is not UNPARSED]
    if known:
        x, y = np.array([pairs[place] for place in known], float).T
        x, y = x - x.mean(), y - y.mean()  # the same correlation, without large squares
        rows[known] = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
    return rows


def _pearson(sums: np.ndarray) -> np.ndarray:
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = count * xx - x * x, count * yy - y * y
    # Of a constant, rounding alone leaves a spread.
    varied = (spread_x > 1e-9 * count * xx) & (spread_y > 1e-9 * count * yy)
    squares = np.where(varied, spread_x * spread_y, 0.0)
    return _ratio(count * xy - x * y, np.sqrt(squares))
