"""Labels → numbers. An unparsed output counts as wrong everywhere and is never left out, and so
does what is said of a record whose gold label is none of the task's, since training never saw it.

A record whose gold label is hidden (None) is in no figure of that task.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclf.data.predictions import UNPARSED, Prediction
from jaxclf.data.tasks import (
    Label,
    SlotFormat,
    Task,
    TaskKind,
    bio_slots,
    plain_slots,
    unseen_labels,
)
from jaxclf.decoding.parsing import slot_items, tag_per_word

_ZERO: Any = 0  # what a ratio of nothing is, without a warning
_MEASURED: dict[TaskKind, tuple[str, ...]] = {
    "class": (
        *("accuracy", "f1", "macro_f1", "micro_f1", "matthews"),
        *("unparsed_rate", "unparsed", "support"),
    ),
    "slots": (
        *("slot_f1", "slot_precision", "slot_recall", "slot_f1_iob2", "exact_match"),
        *("unparsed_rate", "unknown_slots", "unparsed", "support"),
    ),
    "multilabel": ("micro_f1", "macro_f1", "exact_match", "unparsed", "support"),
    "regression": ("pearson", "spearman", "mse", "unparsed", "support"),
}


_SMALL_IS_GOOD = {"mse", "unparsed_rate", "unparsed", "unknown_slots"}
_COUNTS = {"support"}  # of records: no measure of quality


def main_metric(task: Task) -> str:
    """The metric that stands for a task where one must: its own, or that of its kind (accuracy for
    classes, slot_f1 for slots, micro_f1 for several labels, Pearson's correlation for numbers)."""
    return task.metric or _MEASURED[task.kind][0]


def names(tasks: Sequence[Task]) -> list[str]:
    """Every metric that `compute` may give, as `intent.accuracy`."""
    found = [
        f"{task.name}.{name}"
        for task in tasks
        for name in _MEASURED[task.kind]
        if (name != "f1" or task.positive) and (name != "matthews" or task.metric == name)
    ]
    return found + (["joint.exact_match", "joint.support"] if len(tasks) > 1 else [])


def qualities(tasks: Sequence[Task]) -> dict[str, bool]:
    """The metrics by which one model is better than another; True where greater is better."""
    bare = {name: name.rpartition(".")[2] for name in names(tasks)}
    return {
        name: metric not in _SMALL_IS_GOOD for name, metric in bare.items() if metric not in _COUNTS
    }


def compute(
    predictions: Sequence[Prediction], tasks: Sequence[Task], slot_format: SlotFormat = "names"
) -> dict[str, dict[str, float]]:
    """Every metric of every task: {"intent": {"accuracy": 0.9, …}, …}, all shares in [0, 1].

    Class: `accuracy`; `f1` of the task's positive class, where it has one; `macro_f1`, the mean
    over the classes that occur in gold; `micro_f1` over all classes, an unparsed output predicting
    none; `matthews`, the correlation coefficient in [-1, 1], where the task is judged by it. Slots:
    `slot_f1`, `slot_precision` and `slot_recall` of spans as the paper counts them, `slot_f1_iob2`
    in strict IOB2, `exact_match` of whole texts, the number `unknown_slots` of words labelled with
    no slot of the task. Several labels: `micro_f1` over all, `macro_f1` over those in gold,
    `exact_match` of whole sets. Numbers: `pearson` and `spearman` correlation (in [-1, 1]) and mean
    squared error `mse`. All: `support`, the number of records with gold, and `unparsed` of them,
    `unparsed_rate`. With several tasks, "joint" has the `exact_match` of all but numbers and its
    `support`. A metric without support is left out, and so is the correlation with a constant.
    """
    metrics = {task.name: _of_task(predictions, task, slot_format) for task in tasks}
    if len(tasks) > 1:
        complete = [
            prediction
            for prediction in predictions
            if all(prediction.gold.get(task.name) is not None for task in tasks)
        ]
        right = [
            all(
                is_right(prediction, task, slot_format)
                for task in tasks
                if task.kind != "regression"
            )
            for prediction in complete
        ]
        joint: dict[str, float] = {"exact_match": float(np.mean(right))} if complete else {}
        metrics["joint"] = joint | {"support": len(complete)}
    return metrics


def is_right(prediction: Prediction, task: Task, slot_format: SlotFormat = "names") -> bool:
    """Whether the predicted value is the gold one; slots: the same plain name for every word."""
    value = prediction.predicted.get(task.name)
    if task.kind != "slots" or value is UNPARSED:
        return value == prediction.gold[task.name]
    gold, predicted = slot_names(prediction, task, slot_format)
    return gold == predicted


def per_class_report(
    predictions: Sequence[Prediction], task: Task, slot_format: SlotFormat = "names"
) -> dict[str, dict[str, float]]:
    """Label → precision, recall, f1, support (gold) and predicted (their numbers).

    Slots are counted in spans grouped as for `slot_f1`. Labels neither in gold nor predicted are
    left out; a ratio of nothing is 0. Numbers have no classes.
    """
    scored = _with_gold(predictions, task)
    if not scored or task.kind == "regression":
        return {}
    columns: Any
    if task.kind == "multilabel":
        from sklearn.metrics import precision_recall_fscore_support

        gold, predicted, names = _flags(scored, task)
        columns = precision_recall_fscore_support(gold, predicted, zero_division=_ZERO)
        counts = predicted.sum(axis=0)
    elif task.kind == "class":
        from sklearn.metrics import precision_recall_fscore_support

        gold, predicted, classes = _class_indices(scored, task)
        names = [*classes]
        columns = precision_recall_fscore_support(
            gold, predicted, labels=[*classes.values()], zero_division=_ZERO
        )
        counts = [predicted.count(place) for place in classes.values()]
    else:
        from seqeval.metrics.sequence_labeling import (
            get_entities,
            precision_recall_fscore_support,
        )

        gold, predicted = _slot_tags(scored, task, slot_format)
        columns = precision_recall_fscore_support(
            gold, predicted, average=None, zero_division=_ZERO
        )
        found = [name for name, _, _ in get_entities(predicted)]
        names = sorted({*found, *(name for name, _, _ in get_entities(gold))})
        counts = [found.count(name) for name in names]
    return {
        name: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
            "predicted": int(count),
        }
        for name, precision, recall, f1, support, count in zip(names, *columns, counts, strict=True)
        if support or count
    }


def confusion(predictions: Sequence[Prediction], task: Task) -> np.ndarray:
    """Counts [C + U, C + 1]: rows are gold classes, those of the task before the U unseen ones
    (sorted); columns are predicted ones, then UNPARSED."""
    scored = _with_gold(predictions, task)
    gold, predicted, classes = _class_indices(scored, task)
    counts = np.zeros((len(classes) + 1, len(task.labels) + 1), int)
    np.add.at(counts, (gold, predicted), 1)
    return counts[[*classes.values()]]


def _of_task(
    predictions: Sequence[Prediction], task: Task, slot_format: SlotFormat
) -> dict[str, float]:
    scored = _with_gold(predictions, task)
    unparsed = sum(task.name in prediction.unparsed for prediction in scored)
    metrics: dict[str, float] = {}
    if scored and task.kind == "class":
        metrics = _class_metrics(scored, task)
    elif scored and task.kind == "multilabel":
        metrics = _flag_metrics(scored, task)
    elif scored and task.kind == "regression":
        metrics = _number_metrics(scored, task)
    elif scored:
        right = [is_right(prediction, task, slot_format) for prediction in scored]
        metrics = _slot_metrics(scored, task, slot_format) | {"exact_match": float(np.mean(right))}
    if scored and task.kind in ("class", "slots"):
        metrics["unparsed_rate"] = unparsed / len(scored)
    if task.kind == "slots":
        metrics["unknown_slots"] = sum(prediction.unknown_slots for prediction in scored)
    return metrics | {"unparsed": unparsed, "support": len(scored)}


def _class_metrics(scored: Sequence[Prediction], task: Task) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    gold, predicted, classes = _class_indices(scored, task)
    in_gold = sorted({*gold})
    everything = [*classes.values()]
    macro = f1_score(gold, predicted, labels=in_gold, average="macro", zero_division=_ZERO)
    micro = f1_score(gold, predicted, labels=everything, average="micro", zero_division=_ZERO)
    metrics = {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(macro),
        "micro_f1": float(micro),
    }
    if task.metric == "matthews":
        # Of one label alone, in gold and predictions, there is no correlation.
        varied = len({*gold, *predicted}) > 1
        metrics["matthews"] = float(matthews_corrcoef(gold, predicted)) if varied else 0.0
    if task.positive:
        positive = [task.labels.index(task.positive)]
        f1 = f1_score(gold, predicted, labels=positive, average="macro", zero_division=_ZERO)
        metrics["f1"] = float(f1)
    return metrics


def _flag_metrics(scored: Sequence[Prediction], task: Task) -> dict[str, float]:
    from sklearn.metrics import f1_score

    gold, predicted, _ = _flags(scored, task)
    in_gold = gold.any(axis=0)
    each_label: Any = None
    micro = f1_score(gold, predicted, average="micro", zero_division=_ZERO)
    metrics = {"micro_f1": float(micro)}
    if in_gold.any():
        each: Any = f1_score(gold, predicted, average=each_label, zero_division=_ZERO)
        metrics["macro_f1"] = float(np.mean(each[in_gold]))
    return metrics | {"exact_match": float(np.mean((gold == predicted).all(axis=1)))}


def _flags(scored: Sequence[Prediction], task: Task) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Gold and predicted labels as flags [records, C + U], and their names, unseen ones last.

    An unparsed output has no label.
    """
    golds = [prediction.gold[task.name] for prediction in scored]
    names = [*task.labels, *unseen_labels(golds, task)]

    def flags(values: Sequence[Label]) -> np.ndarray:
        sets = [value if isinstance(value, tuple) else () for value in values]
        return np.array([[label in found for label in names] for found in sets], int)

    predicted = flags([prediction.predicted.get(task.name) for prediction in scored])
    return flags(golds), predicted, names


def _number_metrics(scored: Sequence[Prediction], task: Task) -> dict[str, float]:
    """Over the records with a predicted number; correlations need two different ones."""
    from scipy import stats

    pairs: Any = [
        (prediction.gold[task.name], prediction.predicted.get(task.name)) for prediction in scored
    ]
    pairs = [pair for pair in pairs if pair[1] is not UNPARSED]
    if not pairs:
        return {}
    gold, predicted = (np.array(column, float) for column in zip(*pairs, strict=True))
    metrics: dict[str, float] = {}
    if np.ptp(gold) > 0 and np.ptp(predicted) > 0:
        metrics["pearson"] = float(np.corrcoef(gold, predicted)[0, 1])
        metrics["spearman"] = float(
            np.corrcoef(stats.rankdata(gold), stats.rankdata(predicted))[0, 1]
        )
    return metrics | {"mse": float(np.mean(np.square(gold - predicted)))}


def _slot_metrics(
    scored: Sequence[Prediction], task: Task, slot_format: SlotFormat
) -> dict[str, float]:
    """Micro averages over spans (type, start, end).

    Source: Zhao et al. 2025, slot filling on MASSIVE: consecutive equal labels are one span,
    `Other` is none. That is done to gold and prediction alike. Strict IOB2 keeps the gold tags, so
    that two spans of one type side by side, which plain names cannot tell apart, count as missed.
    """
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    gold, predicted = _slot_tags(scored, task, slot_format)
    scores: Any = precision_recall_fscore_support(
        gold, predicted, average="micro", zero_division=_ZERO
    )
    strict_gold = [[*_gold_tags(prediction, task)] for prediction in scored]
    strict_predicted = [[*_bio_prediction(prediction, task, slot_format)] for prediction in scored]
    strict_f1: Any = f1_score(
        strict_gold, strict_predicted, mode="strict", scheme=IOB2, zero_division=_ZERO
    )
    precision, recall, f1, _ = scores
    return {
        "slot_f1": float(f1),
        "slot_precision": float(precision),
        "slot_recall": float(recall),
        "slot_f1_iob2": float(strict_f1),
    }


def _with_gold(predictions: Sequence[Prediction], task: Task) -> list[Prediction]:
    return [prediction for prediction in predictions if prediction.gold.get(task.name) is not None]


def _class_indices(
    scored: Sequence[Prediction], task: Task
) -> tuple[list[int], list[int], dict[str, int]]:
    """Gold and predicted labels as their places, and the place of each class.

    Places are those in the label set, then that of an unparsed output, then those of unseen labels.
    """
    golds = [prediction.gold[task.name] for prediction in scored]
    places = [*task.labels, UNPARSED, *unseen_labels(golds, task)]
    index: dict[Label, int] = {label: place for place, label in enumerate(places)}
    predicted = [index[prediction.predicted.get(task.name)] for prediction in scored]
    classes = {str(label): place for label, place in index.items() if label is not UNPARSED}
    return [index[gold] for gold in golds], predicted, classes


def _slot_tags(
    scored: Sequence[Prediction], task: Task, slot_format: SlotFormat
) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted tags, both grouped anew from plain names."""
    pairs = [slot_names(prediction, task, slot_format) for prediction in scored]
    return [[*bio_slots(gold)] for gold, _ in pairs], [[*bio_slots(found)] for _, found in pairs]


def slot_names(
    prediction: Prediction, task: Task, slot_format: SlotFormat
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Gold and predicted plain names, one per word."""
    return (
        plain_slots(_gold_tags(prediction, task)),
        plain_slots(_bio_prediction(prediction, task, slot_format)),
    )


def _gold_tags(prediction: Prediction, task: Task) -> tuple[str, ...]:
    tags = prediction.gold[task.name]
    assert isinstance(tags, tuple)
    return tags


def _bio_prediction(prediction: Prediction, task: Task, slot_format: SlotFormat) -> tuple[str, ...]:
    """The predicted tags, one per word: missing ones are `Other`, those past the words are cut.

    Names are grouped to tags; tags are taken as they are. Raises ValueError for predictions that
    are not in `slot_format`.
    """
    words = len(_gold_tags(prediction, task))
    items = prediction.predicted.get(task.name) or ()
    assert isinstance(items, tuple)
    known, _ = slot_items(task, slot_format)
    items = tag_per_word(items, words, task, slot_format)
    for item in items:
        if item not in known:
            raise ValueError(
                f"record {prediction.id}: the predicted slot {item!r} is none of task {task.name} "
                f"in the format {slot_format!r}; pass the slot_format it was parsed with"
            )
    return items if slot_format == "bio" else bio_slots(items)
