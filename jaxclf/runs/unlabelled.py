"""The texts that a run with a teacher learns from beside its training split."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from jaxclf.core.errors import InputError
from jaxclf.data.datasets import Dataset
from jaxclf.data.records import Schema
from jaxclf.data.tasks import Record
from jaxclf.runs import labelling

REST = "rest"


def unlabelled(config: ConfigDict, dataset: Dataset) -> list[Record]:
    """The records of `distil.unlabelled`, without any label; none where it is empty.

    Raises InputError where there is no such text.
    """
    wanted, data = config.distil.unlabelled, config.data
    if not wanted:
        return []
    if wanted != REST:
        schema = Schema(data.text, id=data.id, pair=data.pair)
        return labelling.read_texts(Path(wanted), schema, skip=data.on_defect == "skip")
    if not dataset.left_out:
        raise InputError(
            f"distil.unlabelled is {REST!r}, but no training record is left out. Set "
            "data.train_examples to learn from few labels, or name a file of texts"
        )
    return [dataclasses.replace(record, labels={}) for record in dataset.left_out]
