"""From `config.loss` and the training examples to the objective of an encoder's heads."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxclf.core.errors import InputError
from jaxclf.core.suggest import did_you_mean
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.tasks import SlotFormat, Task, head_labels
from jaxclf.training import losses
from jaxclf.training.losses import Objective, Term


def head_objective(
    config: ConfigDict,
    tasks: Sequence[Task],
    examples: Sequence[Encoded],
    slot_format: SlotFormat,
    temperature: float = 1.0,
) -> Objective:
    """One term a task; raises InputError where a weight is for no task or no label.

    `examples`: those with gold labels, whose classes are counted. `temperature`: see `Term`.
    """
    weights = config.task_weights or (1.0,) * len(tasks)
    if len(weights) != len(tasks):
        raise InputError(
            f"loss.task_weights has {len(weights)} numbers for {len(tasks)} tasks: "
            f"{', '.join(task.name for task in tasks)}"
        )
    known = {label for task in tasks for label in head_labels(task, slot_format)}
    for label, _ in config.class_weights:
        if label not in known:
            raise InputError(
                f"loss.class_weights names {label!r}, which is no label of the data"
                f"{did_you_mean(label, known)}"
            )
    terms = {
        task.name: Term(
            task.kind,
            float(weight),
            _class_weights(config, task, examples, slot_format),
            config.label_smoothing if task.kind in ("class", "slots") else 0.0,
            temperature,
        )
        for task, weight in zip(tasks, weights, strict=True)
    }
    return Objective(losses.head_scores, terms)


def _class_weights(
    config: ConfigDict, task: Task, examples: Sequence[Encoded], slot_format: SlotFormat
) -> tuple[float, ...]:
    """The weight of every class in the head's order; empty where all are 1.

    Balanced: inverse to a class's count, so that each class weighs the same in sum; classes that
    do not occur have 1. `class_weights` are factors of these. Source: scikit-learn's
    class_weight="balanced".
    """
    names = head_labels(task, slot_format)
    weights = np.ones(len(names))
    if config.balanced and task.kind in ("class", "slots"):
        labels = np.concatenate([example.targets[task.name][1] for example in examples])
        counts = np.bincount(labels, minlength=len(names))
        weights = np.where(counts, len(labels) / (len(names) * np.maximum(counts, 1)), 1.0)
    for label, weight in config.class_weights:
        if label in names:
            weights[names.index(label)] *= weight
    return () if np.all(weights == 1) else tuple(map(float, weights))
