"""What is said of a data set."""

import json

import pytest

from jaxclf.config.defaults import default
from jaxclf.data import datasets
from jaxclf.data.notes import notes, unseen


def said(folder, kind="class", **splits):
    """The notes on these (text, label) pairs by split, and the data set."""
    config = default().data
    config.name, config.task, config.kind, config.on_defect = "file", "label", kind, "skip"
    for split, rows in splits.items():
        path = folder / f"{split}.jsonl"
        lines = (json.dumps(dict(zip(("text", "label"), row, strict=False))) for row in rows)
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
        config[split] = str(path)
    dataset = datasets.load(config)
    return notes(dataset), dataset


PLAIN = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")]


def test_nothing_is_said_of_what_is_as_it_should_be(tmp_path):
    assert said(tmp_path, train=PLAIN, test=[("e", "x")])[0] == []


CASES = {
    "skipped": (
        {"train": [*PLAIN, ("", "x"), ("z",)], "test": [("e", "x"), ("", "x")]},
        "records left out for a defect: 2 of train, 1 of test; the first: ",
    ),
    "unseen": (
        {"train": PLAIN, "test": [("e", "x"), ("f", "z"), ("g", "z"), ("h", "w")]},
        "3 of 4 records of test have a label that train lacks (task label) and count as wrong: "
        "'z' (2), 'w' (1)",
    ),
    "missing": (
        {"train": [*PLAIN, ("e", "nan"), ("f", "nan")]},
        "task label has classes named as a missing value is (and so many records of train): "
        "'nan' (2). ",
    ),
    "missing texts": (
        {"train": [*PLAIN, ("NaN", "x")]},
        "1 texts of train are what is written for a missing value",
    ),
    "spelling": (
        {"train": [*PLAIN, ("e", "X"), ("f", "X")]},
        "task label has classes that differ by case, spaces or accents alone: 'X', 'x'",
    ),
    "one class": (
        {"train": [("a", "x"), ("b", "x")]},
        "task label has one class, 'x': there is nothing to learn",
    ),
    "rare": (
        {"train": [*PLAIN, ("e", "z")]},
        "task label has classes of one record in train: 'z'",
    ),
    "contradiction": (
        {"train": [*PLAIN, ("a", "y")]},
        "1 texts of train stand there with different labels",
    ),
    "leak": (
        {"train": PLAIN, "dev": [("a", "x"), ("e", "x"), ("b", "x")]},
        "2 of 3 texts of dev are also in train",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_for_each(tmp_path, name):
    splits, expected = CASES[name]
    (line,), _ = said(tmp_path, **splits)
    assert line.startswith(expected)


def test_many_labels_are_counted_and_five_named(tmp_path):
    others = [(f"text {number}", f"label{number}") for number in range(9)]
    (line,), dataset = said(tmp_path, train=PLAIN, test=others)
    assert line.endswith("'label4' (1) and 4 more")
    assert unseen(dataset) == {"test": {"label": {f"label{number}": 1 for number in range(9)}}}


def test_unseen_labels_among_several(tmp_path):
    train = [("a", ["x", "y"]), ("b", [])]
    (line, empty), dataset = said(tmp_path, "multilabel", train=train, test=[("c", ["x", "z"])])
    assert line.startswith("1 of 1 records of test have a label that train lacks")
    assert empty == "1 records of train have none of the labels (task label)"
    assert unseen(dataset) == {"test": {"label": {"z": 1}}}
