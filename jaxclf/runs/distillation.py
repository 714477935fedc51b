"""Distillation: a teacher's probabilities as soft targets of a model with heads.

Each text, labelled or not, has the teacher's probabilities p of its labels; the student learns
p^(1/T) / sum, T being `distil.temperature`, beside the gold label where there is one. Of several
teachers the mean is taken before. Source: Hinton et al. 2015, for both.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxclf.core import logs
from jaxclf.core.errors import InputError
from jaxclf.data.encoder_inputs import Encoded, Soft, Target
from jaxclf.data.label_probabilities import Probabilities, mean
from jaxclf.data.loader import Examples
from jaxclf.data.tasks import Record, SlotFormat, Task, head_labels
from jaxclf.decoding.recipe import Recipe
from jaxclf.runs import teacher
from jaxclf.runs.setup import Setup
from jaxclf.runs.teacher import Answers, OpenTeacher, Teacher

FOLDER = "teacher"


class Lessons:
    """What a run learns from its teachers.

    begun: the run has taken steps, so that the answers are there; no teacher is needed any more.
    Raises InputError where a teacher has other labels than the run, or is nothing of the kind.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, setup: Setup, begun: bool, open_: OpenTeacher
    ):
        self.config, self.setup = config.distil, setup
        self.folder = Path(config.distil.folder) if config.distil.folder else workdir / FOLDER
        self.sources = [source.strip() for source in config.distil.teacher.split(",")]
        self.teachers = [] if begun else [open_(source, self.folder) for source in self.sources]
        for each in self.teachers:
            each.check(self.records)
            for task in setup.recipe.tasks:
                columns(task, setup.recipe.slot_format, each)

    @property
    def records(self) -> list[Record]:
        return [*self.setup.dataset.splits["train"], *self.setup.unlabelled]

    def learned(self) -> tuple[Setup, dict[str, Any]]:
        """The setup with soft targets, and what the report says of them."""
        records = self.records
        places = [teacher.place(self.folder, source, records) for source in self.sources]
        if self.teachers:
            found = [
                teacher.label(each, records, path)
                for each, path in zip(self.teachers, places, strict=True)
            ]
            self.teachers = []  # their parameters would lie beside the student's
        else:
            found = [teacher.read(path) for path in places]
        recipe, examples = self.setup.recipe, self.setup.examples
        examples, silent = soften(recipe, records, examples, found, self.config)
        facts = {
            "teachers": [
                {"source": each.source, "fingerprint": each.fingerprint} for each in found
            ],
            "labelled": len(records) - len(self.setup.unlabelled),
            "unlabelled": len(self.setup.unlabelled),
            "without_answer": dict(silent),
        }
        _say(facts)
        return dataclasses.replace(self.setup, examples=examples), facts


def _say(facts: dict[str, Any]) -> None:
    sources = ", ".join(each["source"] for each in facts["teachers"])
    logs.say(
        f"distillation: {facts['labelled']:,} labelled and {facts['unlabelled']:,} unlabelled "
        f"texts have soft targets of {sources}"
    )
    for task, count in facts["without_answer"].items():
        logs.say(
            f"distillation: {count:,} texts have none of task {task}, since no output of a teacher "
            "was a label; there a label is learned alone, if there is one"
        )


def columns(
    task: Task, slot_format: SlotFormat, taught: Teacher | Answers
) -> tuple[str, list[int]]:
    """The teacher's task for a student's, and where its labels stand in the student's order.

    Tasks are the same by name, or the only ones of both. Raises InputError where there is none of
    that kind, or its labels are others.
    """
    names = head_labels(task, slot_format)
    found = next((each for each in taught.tasks if each.name == task.name), None)
    if found is None and len(taught.tasks) == 1:
        (found,) = taught.tasks
    if found is None or found.kind != task.kind:
        listed = ", ".join(f"{each.name} ({each.kind})" for each in taught.tasks)
        raise InputError(
            f"distil.teacher {taught.source} answers {listed}; this run learns {task.name} "
            f"({task.kind}). Choose a teacher of that task"
        )
    theirs = head_labels(found, taught.slot_format)
    if {*theirs} != {*names}:
        more, less = sorted({*theirs} - {*names}), sorted({*names} - {*theirs})
        parts = [f"{_listed(more)} in the teacher alone"] if more else []
        parts += [f"{_listed(less)} in this run alone"] if less else []
        raise InputError(
            f"distil.teacher {taught.source} has other labels of task {task.name}: "
            f"{'; '.join(parts)}. Train both on the same labels, in the same prompt.slots"
        )
    return found.name, [theirs.index(name) for name in names] or [0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


def soften(
    recipe: Recipe,
    records: Sequence[Record],
    examples: Examples,
    taught: Sequence[Answers],
    config: ConfigDict,
) -> tuple[list[Encoded], Counter[str]]:
    """The examples with soft targets, and how many texts have none by task.

    `config`: the group `distil`. A place where neither a label nor a teacher's word counts is none.
    """
    read = {
        task.name: [columns(task, recipe.slot_format, each) for each in taught]
        for task in recipe.tasks
    }
    found: list[Encoded] = []
    silent: Counter[str] = Counter()
    for index, (record, example) in enumerate(zip(records, examples, strict=True)):
        assert isinstance(example, Encoded)
        targets, soft = {}, {}
        for task in recipe.tasks:
            answers = [
                None if (p := each.rows[index][name]) is None else p[:, order]
                for each, (name, order) in zip(taught, read[task.name], strict=True)
            ]
            p = mean(task, [each for each in answers if each is not None])
            silent[task.name] += p is None
            known = record.labels.get(task.name) is not None
            width = max(1, len(head_labels(task, recipe.slot_format)))
            targets[task.name], soft[task.name] = _target(task, example, p, width, known, config)
        found.append(dataclasses.replace(example, targets=targets, soft=soft))
    return found, +silent


def _target(
    task: Task,
    example: Encoded,
    p: Probabilities | None,
    width: int,
    known: bool,
    config: ConfigDict,
) -> tuple[Target, Soft]:
    """A task's positions and labels, and its soft targets `[J width]` with their shares."""
    positions, labels = example.targets[task.name]
    if p is None:
        here = np.zeros((len(positions), width))
    else:
        here = p[np.array(example.words, int)] if task.kind == "slots" else p
    answered = np.full(len(here), p is not None)
    if task.kind in ("class", "slots"):
        answered &= here.sum(axis=1) > 0
    if not known and p is not None:  # as if the teacher's best were gold, with no share in the loss
        best = {"multilabel": here > 0.5, "regression": here[:, 0]}
        labels = best.get(task.kind, here.argmax(axis=1)).astype(labels.dtype)
    shares = np.zeros((len(positions), 2), np.float32)
    shares[:, 0] = (1 - config.weight) * known
    shares[:, 1] = config.weight * answered
    kept = shares.any(axis=1)
    softened = soft_probabilities(task, here, config.temperature).astype(np.float32)
    return (positions[kept], labels[kept]), (softened[kept], shares[kept])


def soft_probabilities(task: Task, p: Probabilities, temperature: float) -> Probabilities:
    """Probabilities at a temperature: those of the logits divided by it. Numbers stay."""
    if task.kind == "regression":
        return p
    raised = p ** (1 / temperature)
    total = raised + (1 - p) ** (1 / temperature)
    if task.kind in ("class", "slots"):
        total = raised.sum(axis=1, keepdims=True)
    return np.divide(raised, total, out=np.zeros_like(raised), where=total > 0)
