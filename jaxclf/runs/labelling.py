"""Labels for a file of texts, written so that a killed command loses nothing.

Rows go to OUTPUT.partial in the input's order, a chunk at a time, under a first line that says
which model and which texts they belong to; the finished file takes the place of OUTPUT in one step.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxclf import report
from jaxclf.checkpoint import tree_store
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.classifiers.opening import Opened
from jaxclf.core import logs
from jaxclf.core.errors import InputError
from jaxclf.data import records as data_records
from jaxclf.data.records import Defects, Schema
from jaxclf.data.tasks import Record

_CHUNK_BATCHES = 8  # batches between two writes: what a kill can cost


def read_texts(path: Path, schema: Schema, skip: bool = False) -> list[Record]:
    """The records of a file without labels; raises InputError with the located defects."""
    defects = Defects(skip=skip)
    found = data_records.read(path, schema, defects).get("", [])
    defects.check()
    if not found:
        raise InputError(f"{path} holds no text to label")
    return found


def label_file(
    opened: Opened,
    records: Sequence[Record],
    output: Path,
    *,
    batch_size: int,
    overwrite: bool = False,
) -> None:
    """Write one JSON row a record to `output`, resuming a partial file of the same job.

    Raises InputError where `output` exists (unless `overwrite`), or where the partial file is of
    another model, other texts or another way of decoding.
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; give another --output or --overwrite")
    partial = output.with_name(output.name + ".partial")
    header = _header(opened, records)
    done = _resume(partial, header)
    chunk = batch_size * _CHUNK_BATCHES
    with (
        partial.open("a", encoding="utf-8") as file,
        logs.count("labelling", len(records), done) as advance,
    ):
        if not partial.stat().st_size:
            print(json.dumps(header), file=file, flush=True)
        for start in range(done, len(records), chunk):
            predictions = opened.classifier.predict(records[start : start + chunk], batch_size)
            file.writelines(
                json.dumps(report.prediction_row(prediction), ensure_ascii=False) + "\n"
                for prediction in predictions
            )
            file.flush()
            os.fsync(file.fileno())
            advance(len(predictions))
    _finish(partial, output)


def _header(opened: Opened, records: Sequence[Record]) -> dict[str, Any]:
    texts = hashlib.sha256()
    for record in records:
        texts.update(json.dumps([record.id, record.text, record.pair]).encode())
    header: dict[str, Any] = {
        "model": tree_store.fingerprint(opened.source.manifest),
        "temperatures": dict(opened.classifier.temperatures),
        "texts": texts.hexdigest(),
    }
    if isinstance(opened.classifier, GenerativeClassifier):
        header["decoding"] = dataclasses.asdict(opened.classifier.decoding)
    return header


def _resume(partial: Path, header: dict[str, Any]) -> int:
    """How many whole rows the partial file has; what a kill left of a row is cut off."""
    if not partial.exists():
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if lines and json.loads(lines[0]) != header:
        raise InputError(
            f"{partial} was begun with another model or other texts, or labels decoded otherwise; "
            "remove it or give another --output"
        )
    with partial.open("r+b") as file:
        file.truncate(len(whole))
    return max(0, len(lines) - 1)


def _finish(partial: Path, output: Path) -> None:
    """Drop the first line and put the rows where they were asked for."""
    complete = partial.with_name(partial.name + ".complete")
    with partial.open("rb") as rows, complete.open("wb") as file:
        rows.readline()
        while block := rows.read(1 << 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    os.replace(complete, output)
    partial.unlink()
