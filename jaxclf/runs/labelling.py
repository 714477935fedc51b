"""Labels for a file of texts, written so that a killed command loses nothing.

Rows go to OUTPUT.partial in the input's order, a chunk at a time, under a first line that says
which classifier and which texts they belong to, each line after its own checksum; the finished file
takes the place of OUTPUT in one step.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from jaxclf import report
from jaxclf.classifiers.opening import Opened
from jaxclf.core import logs, sealed_rows
from jaxclf.core.errors import InputError
from jaxclf.data import own_files
from jaxclf.data.readers import Options
from jaxclf.data.records import Defects, Schema
from jaxclf.data.tasks import Record
from jaxclf.prompts.builder import PromptSource

_CHUNK_BATCHES = 8  # batches between two writes: what a kill can cost


def read_texts(
    path: Path, schema: Schema, skip: bool = False, options: Options | None = None
) -> list[Record]:
    """The records of a file without labels; says how many are skipped, or raises InputError.

    The text's column is found out where the schema does not name it, which is said.
    """
    defects = Defects(skip=skip)
    found = own_files.read_texts(path, schema, defects, options)
    defects.check("Correct them, or go on without these records: --on-defect skip.")
    if not found:
        raise InputError(f"{path} holds no text to label")
    for line in defects.notes():
        logs.say(f"data: {line}")
    if skipped := sum(defects.counts.values()):
        logs.say(
            f"data: {skipped:,} of {skipped + len(found):,} records of {path} left out for a defect"
            f", so that the output has {len(found):,} rows; the first: {defects.shown[0]}"
        )
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
    if opened.classifier.recipe.prompt is not None and any(record.pair for record in records):
        raise InputError(
            "the texts come in pairs, which prompts have no place for; put both into one column"
        )
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; give another --output or --overwrite")
    partial = output.with_name(output.name + ".partial")
    header = _header(opened, records)
    done = _resume(partial, header)
    chunk = batch_size * _CHUNK_BATCHES
    with (
        partial.open("a", encoding="utf-8", newline="\n") as file,
        logs.count("labelling", len(records), done) as advance,
    ):
        if not partial.stat().st_size:
            file.write(sealed_rows.line(0, header))
        for start in range(done, len(records), chunk):
            predictions = opened.classifier.predict(
                records[start : start + chunk], batch_size, prompt=_from(opened.prompt, start)
            )
            rows = (
                json.dumps(report.prediction_row(each), ensure_ascii=False) for each in predictions
            )
            file.writelines(map(sealed_rows.line, itertools.count(start + 1), rows))
            file.flush()
            os.fsync(file.fileno())
            advance(len(predictions))
    _finish(partial, output)


def _from(prompt: PromptSource | None, start: int) -> PromptSource | None:
    """The prompts of the records from number `start` on, where each has one of its own."""
    if not callable(prompt):
        return prompt
    return lambda index, record: prompt(start + index, record)


def _header(opened: Opened, records: Sequence[Record]) -> str:
    return json.dumps({"classifier": opened.fingerprint, "texts": digest(records)})


def digest(records: Sequence[Record]) -> str:
    """SHA-256 over the ids and texts of records in their order."""
    texts = hashlib.sha256()
    for record in records:
        texts.update(json.dumps([record.id, record.text, record.pair]).encode())
    return texts.hexdigest()


def _resume(partial: Path, header: str) -> int:
    """How many whole rows the partial file has; what a kill left of a row is cut off."""
    if not partial.exists():
        return 0
    lines = sealed_rows.read(partial, "remove the file to label all texts again")
    if lines and lines[0] != header:
        raise InputError(
            f"{partial} was begun with another classifier or other texts; remove it or give "
            "another --output"
        )
    return max(0, len(lines) - 1)


def _finish(partial: Path, output: Path) -> None:
    """Drop first line and checksums, and put the rows where they were asked for."""
    complete = partial.with_name(partial.name + ".complete")
    with partial.open("rb") as rows, complete.open("wb") as file:
        rows.readline()
        file.writelines(map(sealed_rows.text_of, rows))
        file.flush()
        os.fsync(file.fileno())
    os.replace(complete, output)
    partial.unlink()


def say_cut(output: Path) -> None:
    """Say how many texts of a finished output were longer than the model reads."""
    with output.open(encoding="utf-8") as rows:
        cuts = [json.loads(row)["cut"] for row in rows]
    if count := sum(cut > 0 for cut in cuts):
        logs.say(
            f"data: {count:,} of {len(cuts):,} texts are too long and cut, by {sum(cuts):,} tokens "
            "in all; `cut` of a row says by how many"
        )
