"""A teacher: what another model learns from, and its probabilities of all labels on disk.

    FOLDER/3f2a….jsonl    one file for each teacher and set of texts: a header, then a row a text

Rows are added a chunk of texts at a time, each line after a checksum. What was begun is gone on
with in the same chunks, so that the probabilities are the same, bit for bit.
"""

import base64
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclf.classifiers.base import Classifier
from jaxclf.core import files, locks, logs, sealed_rows
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.label_probabilities import Probabilities, of_prediction
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record, SlotFormat, Task, head_labels
from jaxclf.decoding.recipe import Recipe
from jaxclf.runs import labelling

_CHUNK_BATCHES = 8  # batches between two writes: what a kill can cost

Answer = Mapping[str, Probabilities | None]
"""Task → probabilities of its labels (see `label_probabilities`); None where there is no answer."""


@dataclasses.dataclass(frozen=True)
class Labeller:
    """A teacher in memory. fingerprint: of all that its answers depend on beside the text.

    batch_size: texts at once; 0: it knows best how many, and keeps its answers itself.
    """

    classifier: Classifier
    fingerprint: str
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What is known of a teacher before it is loaded. source: as the config names it."""

    source: str
    recipe: Recipe
    load: Callable[[], Labeller]

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.recipe.tasks

    @property
    def slot_format(self) -> SlotFormat:
        return self.recipe.slot_format

    def check(self, records: Sequence[Record]) -> None:
        """Raise InputError for texts that it cannot read."""
        if self.recipe.prompt is not None and any(record.pair for record in records):
            raise InputError(
                f"the texts come in pairs, which the prompts of distil.teacher {self.source} have "
                "no place for. Choose a teacher with heads, or put both texts into one column"
            )


@dataclasses.dataclass(frozen=True)
class Answers:
    """A teacher's answers to texts, in their order; `tasks` say what the columns stand for."""

    source: str
    fingerprint: str
    tasks: tuple[Task, ...]
    slot_format: SlotFormat
    rows: Sequence[Answer]


OpenTeacher = Callable[[str, Path], Teacher]
"""Opens a teacher by its source; the folder is for what it has to keep itself."""


def place(folder: Path, source: str, records: Sequence[Record]) -> Path:
    """The file of a teacher's answers to these texts."""
    name = files.digest_of(json.dumps([source, labelling.digest(records)]))[:16]
    return folder / f"{name}.jsonl"


def read(path: Path) -> Answers:
    """What `label` wrote; raises ArtifactError where it is missing, not complete or altered."""
    if not path.is_file():
        raise ArtifactError(
            f"{path}: missing; the run has learned from the answers of a teacher that were there. "
            "Restore it from a copy, or begin anew in another --workdir"
        )
    header, *rows = sealed_rows.read(path, _REMEDY) or [""]
    try:
        known = json.loads(header)
        tasks = tuple(Task(name, kind, tuple(labels)) for name, kind, labels in known["tasks"])
        slot_format = known["slot_format"]
        if len(rows) != known["count"]:
            raise ArtifactError(
                f"{path}: holds {len(rows):,} of {known['count']:,} answers. {_REMEDY}"
            )
        answers = [_read(json.loads(row), tasks, slot_format) for row in rows]
        return Answers(known["teacher"], known["fingerprint"], tasks, slot_format, answers)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: no answers of ours ({error!r}). {_REMEDY}") from error


_REMEDY = "Restore it from a copy, or remove the file to ask the teacher again"


def label(teacher: Teacher, records: Sequence[Record], path: Path) -> Answers:
    """The teacher's answers, from the file as far as they are there; the rest is added to it.

    Raises InputError where the file has the answers of another teacher of this name, or where one
    of several processes would have to ask.
    """
    if jax.process_count() > 1:
        if not path.is_file():
            raise InputError(
                f"distil.teacher {teacher.source} has not labelled the texts yet, which one "
                "process does alone. Run the same command on one host first, with distil.folder "
                "on a disk that all of them see"
            )
        return read(path)
    with locks.file(path):
        _complete(teacher, records, path)
    return read(path)


def _complete(teacher: Teacher, records: Sequence[Record], path: Path) -> None:
    loaded = teacher.load()
    header = json.dumps(
        {
            "teacher": teacher.source,
            "fingerprint": loaded.fingerprint,
            "count": len(records),
            "tasks": [[task.name, task.kind, [*task.labels]] for task in teacher.tasks],
            "slot_format": teacher.slot_format,
        }
    )
    lines = sealed_rows.read(path, _REMEDY) if path.is_file() else []
    if lines and lines[0] != header:
        raise InputError(
            f"{path} has the answers of another teacher than {teacher.source} is now. Remove it, "
            "or name another distil.folder"
        )
    chunk = loaded.batch_size * _CHUNK_BATCHES or len(records)
    done = max(0, len(lines) - 1)
    if done < len(records):
        done -= done % chunk
        _cut(path, lines[: 1 + done])
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", newline="\n") as file,
        logs.count(f"labelling by {teacher.source}", len(records), done) as advance,
    ):
        if not path.stat().st_size:
            file.write(sealed_rows.line(0, header))
        for start in range(done, len(records), chunk):
            texts = records[start : start + chunk]
            predictions = loaded.classifier.predict(texts, loaded.batch_size or len(texts))
            rows = [_row(each, teacher.tasks, teacher.slot_format) for each in predictions]
            file.write("".join(map(sealed_rows.line, itertools.count(start + 1), rows)))
            file.flush()
            os.fsync(file.fileno())
            advance(len(predictions))


def _cut(path: Path, lines: Sequence[str]) -> None:
    """Leave no more than these lines in the file: a chunk of which a part is lost is made again."""
    size = sum(len(sealed_rows.line(number, text).encode()) for number, text in enumerate(lines))
    if path.is_file() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)


def _row(prediction: Prediction, tasks: Sequence[Task], slot_format: SlotFormat) -> str:
    """One text's answers as float32 in base64; null where there is none."""
    found = {task.name: of_prediction(prediction, task, slot_format) for task in tasks}
    return json.dumps(
        {
            name: None if p is None else base64.b64encode(p.astype("<f4").tobytes()).decode()
            for name, p in found.items()
        }
    )


def _read(row: Mapping[str, Any], tasks: Sequence[Task], slot_format: SlotFormat) -> Answer:
    found = {}
    for task in tasks:
        text = row[task.name]
        width = max(1, len(head_labels(task, slot_format)))
        values = None if text is None else np.frombuffer(base64.b64decode(text), "<f4")
        found[task.name] = None if values is None else values.reshape(-1, width)
    return found
