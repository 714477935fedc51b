"""How far a classifier's probabilities can be trusted, and the one number that mends them.

Probabilities are of the labels of one class task, `[n C]` for n records, and sum to 1 over them;
gold labels are their indices `[n]`. A record's confidence is its highest probability, and the label
that has it is the one that is right or wrong.

    probabilities [[0.9, 0.1], [0.6, 0.4]], gold [0, 1]
        → nll 0.511, brier 0.370, bins around 0.9 (right) and 0.6 (wrong), expected error 0.350
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxclf.core import files, logs
from jaxclf.core.errors import ArtifactError
from jaxclf.core.types import Float, Int
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Label, Task, unseen_labels

FILE = "temperature.json"  # in a run's folder
BINS = 15  # of the reliability diagram, as in Guo et al. 2017
_POINTS = 50  # of accuracy over coverage, in a report
# What a probability counts as at least: scores come in float32, where less than this is 0.
_FLOOR = float(np.finfo(np.float32).tiny)
# Beyond these a softmax of usual logits is one-hot or uniform.
_LOWEST, _HIGHEST = 0.01, 100.0

Probabilities = Float[np.ndarray, "n C"]
Gold = Int[np.ndarray, " n"]


# Figures of probabilities -------------------------------------------------------------------------


def nll(probabilities: Probabilities, gold: Gold) -> float:
    """Negative log-likelihood of the gold labels in nats, as a mean over records."""
    of_gold = probabilities[np.arange(len(gold)), gold]
    return float(-np.mean(np.log(np.maximum(of_gold, _FLOOR))))


def brier(probabilities: Probabilities, gold: Gold) -> float:
    """Squared distance to the gold label's one-hot vector: summed over classes, in [0, 2], as a
    mean over records. Source: Brier 1950."""
    one_hot = np.arange(probabilities.shape[1]) == gold[:, None]
    return float(np.mean(np.sum(np.square(probabilities - one_hot), axis=1)))


@dataclasses.dataclass(frozen=True)
class Bin:
    """The records whose confidence is in one bin; the means are None where there is none."""

    confidence: float | None
    accuracy: float | None
    count: int


def reliability(probabilities: Probabilities, gold: Gold, bins: int = BINS) -> list[Bin]:
    """Mean confidence and accuracy in bins of equal width: ((m - 1) / bins, m / bins].

    Source: Guo et al. 2017, section 2.
    """
    confidence, right = _answers(probabilities, gold)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for place in range(bins):
        inside = places == place
        if inside.any():
            means = float(confidence[inside].mean()), float(right[inside].mean())
        else:
            means = None, None
        found.append(Bin(*means, int(inside.sum())))
    return found


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (ECE): |accuracy - confidence| of the bins, by their records.

    Source: Guo et al. 2017, section 2.
    """
    total = sum(each.count for each in bins)
    gaps = (
        each.count * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    )
    return sum(gaps) / total


class Curve(NamedTuple):
    """Accuracy over coverage: point i is of the records whose confidence is at least threshold i.

    One point for each confidence that occurs, highest first, so coverage rises to 1.
    """

    threshold: Float[np.ndarray, " k"]
    coverage: Float[np.ndarray, " k"]
    accuracy: Float[np.ndarray, " k"]

    @property
    def area(self) -> float:
        """The mean accuracy over all coverages, in [0, 1]: one minus the area under the
        risk-coverage curve."""
        return float(np.sum(self.accuracy * np.diff(self.coverage, prepend=0.0)))


def over_coverage(probabilities: Probabilities, gold: Gold) -> Curve:
    """The accuracy of those answered, if the least confident are not.

    Source: Geifman & El-Yaniv 2017, section 2: selective risk and coverage.
    """
    confidence, right = _answers(probabilities, gold)
    order = np.argsort(-confidence, kind="stable")
    confidence, right = confidence[order], right[order]
    # Records of one confidence are answered together, or none of them.
    ends = np.flatnonzero(np.append(np.diff(confidence) != 0, True))
    answered = ends + 1
    return Curve(confidence[ends], answered / len(gold), np.cumsum(right)[ends] / answered)


class Abstention(NamedTuple):
    """Answer where the confidence is at least `threshold`: how many are, and how many right."""

    threshold: float
    coverage: float
    accuracy: float


def abstention(curve: Curve, wanted: float) -> Abstention | None:
    """The smallest threshold at which the accuracy of those answered is at least `wanted`.

    None if there is none. It is read off these records: of others the accuracy may be lower, for
    which the source adds a bound. Source: Geifman & El-Yaniv 2017, section 3.
    """
    enough = np.flatnonzero(curve.accuracy >= wanted)
    if not len(enough):
        return None
    place = enough[-1]
    return Abstention(
        float(curve.threshold[place]), float(curve.coverage[place]), float(curve.accuracy[place])
    )


def _answers(
    probabilities: Probabilities, gold: Gold
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Confidence, and 1 where the label that has it is right."""
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == gold).astype(float)


# Temperature --------------------------------------------------------------------------------------


def at_temperature(logits: Probabilities, temperature: float) -> Probabilities:
    """softmax(logits / temperature): above 1 less sure, below 1 more, in the same order.

    Source: Guo et al. 2017, section 4.2.
    """
    from scipy.special import softmax

    return softmax(logits / temperature, axis=-1)


def fit_temperature(logits: Probabilities, gold: Gold) -> float:
    """The temperature in [0.01, 100] that minimises the NLL of softmax(logits / temperature).

    Log-probabilities do as logits. 1 where every record is right: the lower the better then, which
    says nothing of the records to come. Source: Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(gold))
    if (logits.argmax(axis=1) == gold).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return -float(np.mean(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, gold]))

    # The loss is convex in 1 / temperature, so it has one minimum in the logarithm too.
    bounds = (np.log(_LOWEST), np.log(_HIGHEST))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


# Predictions of a run -----------------------------------------------------------------------------


def scored_tasks(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> list[Task]:
    """The class tasks for which every prediction has scores, whatever model gave them."""
    return [
        task
        for task in tasks
        if task.kind == "class"
        and predictions
        and all(task.name in (each.scores or {}) for each in predictions)
    ]


def fit(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> dict[str, float]:
    """Task name → temperature, of each scored class task that has gold labels here."""
    found = {}
    for task in scored_tasks(predictions, tasks):
        # No temperature makes a label likely that has no probability.
        known = [each for each in predictions if each.gold.get(task.name) in task.labels]
        logits, gold = _columns(known, task)
        if len(gold):
            found[task.name] = fit_temperature(logits, gold)
    return found


def tempered(
    predictions: Sequence[Prediction], temperatures: Mapping[str, float]
) -> list[Prediction]:
    """The same predictions with the probabilities at their task's temperature; no label changes."""

    def at_own(task: str, scores: Mapping[str, float]) -> Mapping[str, float]:
        if task not in temperatures:
            return scores
        (row,) = at_temperature(_logits([[*scores.values()]]), temperatures[task])
        return dict(zip(scores, row.tolist(), strict=True))

    if not temperatures:
        return list(predictions)
    return [
        dataclasses.replace(
            each, scores={name: at_own(name, scores) for name, scores in each.scores.items()}
        )
        if each.scores
        else each
        for each in predictions
    ]


def measure(
    predictions: Sequence[Prediction],
    tasks: Sequence[Task],
    temperatures: Mapping[str, float],
    wanted: float,
) -> dict[str, dict[str, Any]]:
    """Task name → the figures of its probabilities at its temperature; `report["calibration"]`.

    `predictions` are those before `tempered`. Each scored class task with gold labels has `nll`,
    `brier`, `ece`, `accuracy`, `bins`, `coverage` ([coverage, accuracy] at every fiftieth), `area`
    under these, `abstention` for the accuracy `wanted` (None where that is 0), `temperature` (None:
    there is none) and, where there is one, the same figures `before` it.
    """
    found = {}
    for task in scored_tasks(predictions, tasks):
        logits, gold = _columns(predictions, task)
        if not len(gold):
            continue
        temperature = temperatures.get(task.name)
        own = _figures(at_temperature(logits, 1.0), gold, wanted)
        found[task.name] = {"temperature": temperature, **own}
        if temperature is not None:
            after = _figures(at_temperature(logits, temperature), gold, wanted)
            found[task.name] |= {**after, "before": own}
    return found


def _figures(probabilities: Probabilities, gold: Gold, wanted: float) -> dict[str, Any]:
    bins = reliability(probabilities, gold)
    curve = over_coverage(probabilities, gold)
    kept = abstention(curve, wanted)
    nothing = {"threshold": None, "coverage": 0.0, "accuracy": None}
    shares = np.arange(1, _POINTS + 1) / _POINTS
    # The first point at or past each share: fewer points where many records are equally confident.
    places = np.unique(np.searchsorted(curve.coverage, shares))
    return {
        "nll": nll(probabilities, gold),
        "brier": brier(probabilities, gold),
        "ece": expected_error(bins),
        "accuracy": float(curve.accuracy[-1]),
        "bins": [dataclasses.asdict(each) for each in bins],
        "coverage": np.stack([curve.coverage, curve.accuracy], axis=1)[places].tolist(),
        "area": curve.area,
        "abstention": {"wanted": wanted, **(kept._asdict() if kept else nothing)}
        if wanted
        else None,
    }


def _columns(predictions: Sequence[Prediction], task: Task) -> tuple[Probabilities, Gold]:
    """Log-probabilities `[n C+U]` and gold indices of the records that have a gold label.

    The U labels that training never saw come last; no probability is theirs.
    """
    scored = [each for each in predictions if each.gold.get(task.name) is not None and each.scores]
    golds = [each.gold[task.name] for each in scored]
    labels = [*task.labels, *unseen_labels(golds, task)]
    index: dict[Label, int] = {label: place for place, label in enumerate(labels)}
    rows = []
    for each in scored:
        assert each.scores
        of_task = each.scores[task.name]
        rows.append([of_task.get(name, 0.0) for name in labels])
    return _logits(rows).reshape(-1, len(labels)), np.array([index[gold] for gold in golds], int)


def _logits(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.log(np.maximum(np.array(rows, float), _FLOOR))


# A run's temperature.json -------------------------------------------------------------------------


def to_text(temperatures: Mapping[str, float], step: int, scoring: Mapping[str, Any]) -> str:
    """What temperature.json holds: temperatures for the parameters of `step`.

    `scoring`: how the probabilities came about that they were fitted to.
    """
    found = {"step": step, "scoring": dict(scoring), "temperature": dict(temperatures)}
    return files.json_text(found)


def of_run(
    run_dir: Path, step: int | None, evaluation: ConfigDict, scoring: Mapping[str, Any] | None
) -> dict[str, float]:
    """The temperatures of a run's step, if `evaluation`, its config's group, asks for one.

    `scoring`: as of `to_text`; None: there are no probabilities.
    """
    # Older runs do not have the field.
    if evaluation.get("temperature") != "dev" or scoring is None:
        return {}
    return load(run_dir / FILE, step, scoring)


def load(path: Path, step: int | None, scoring: Mapping[str, Any]) -> dict[str, float]:
    """What `to_text` wrote, if it belongs to `step` and to probabilities that came about so.

    Other parameters, and scores of another kind, need another temperature. Raises ArtifactError
    where the file is damaged.
    """
    if not path.is_file():
        return {}
    content = files.read_json(path)
    try:
        found = {str(name): float(value) for name, value in content["temperature"].items()}
        if not all(0 < value < math.inf for value in found.values()):
            raise ValueError("a temperature is a finite number above 0")
        if content["step"] != step:
            return {}
        if content.get("scoring", dict(scoring)) != dict(scoring):
            logs.say(
                f"{path} was fitted to probabilities that came about otherwise "
                f"({_shown(content['scoring'])}; now {_shown(scoring)}): it is not applied"
            )
            return {}
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} holds no temperatures of ours ({error!r}). Remove it to go without, or train "
            "again with the same command, which fits them anew"
        ) from error


def _shown(scoring: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in scoring.items()) or "by heads"
