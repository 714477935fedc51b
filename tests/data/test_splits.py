"""Splits that are drawn from train: by class, by seed, never a text or a group on both sides."""

from collections import Counter

import pytest

from jaxclf.core.errors import InputError
from jaxclf.data import splits
from jaxclf.data.notes import notes
from jaxclf.data.tasks import Record, Task
from tests.data.test_sources import delimited, load, write

TASKS = (Task("label", "class", ("a", "b", "c")),)


def records(count=100, group=lambda n: "", text=lambda n: f"text {n}"):
    labels = ["a" if n % 10 < 6 else "b" if n % 10 < 9 else "c" for n in range(count)]
    return [
        Record(str(n), text(n), {"label": label}, group=group(n)) for n, label in enumerate(labels)
    ]


def ids(found):
    return {split: {record.id for record in found_} for split, found_ in found.items()}


def test_each_split_has_its_share_of_every_class():
    found = splits.hold_out(records(), {"dev": 0.1, "test": 0.2}, TASKS, seed=0)
    counts = {
        split: Counter(record.labels["label"] for record in found_)
        for split, found_ in found.items()
    }
    assert counts == {
        "train": {"a": 42, "b": 21, "c": 7},
        "dev": {"a": 6, "b": 3, "c": 1},
        "test": {"a": 12, "b": 6, "c": 2},
    }


def test_a_draw_follows_the_seed_and_not_the_order():
    shares = {"dev": 0.1, "test": 0.1}
    found = ids(splits.hold_out(records(), shares, TASKS, seed=0))
    assert found == ids(splits.hold_out(records()[::-1], shares, TASKS, seed=0))
    assert found != ids(splits.hold_out(records(), shares, TASKS, seed=1))
    # Test does not move dev: a test file of one's own leaves the drawn dev split as it was.
    assert (
        splits.hold_out(records(), {"dev": 0.1}, TASKS, seed=0)["dev"]
        == (splits.hold_out(records(), shares, TASKS, seed=0)["dev"])
    )


def test_small_classes_give_together():
    train = [Record(str(n), f"text {n}", {"label": str(n % 20)}) for n in range(60)]
    found = splits.hold_out(train, {"dev": 0.1}, TASKS, seed=0)
    assert len(found["dev"]) == 6  # of each class 0.3 records
    alone = [Record(str(n), f"text {n}", {"label": str(n)}) for n in range(9)]
    assert splits.hold_out(alone, {"dev": 0.5}, TASKS, seed=0) == {"train": alone}


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_equal_texts_stay_together(seed):
    groups = records(group=lambda n: f"author {n % 23}")
    for found in (
        splits.hold_out(groups, {"dev": 0.2, "test": 0.2}, TASKS, seed),
        by_fold(groups, splits.folds(groups, 4, TASKS, seed)),
    ):
        sides = [{record.group for record in found_} for found_ in found.values()]
        assert sum(map(len, sides)) == 23
        assert len(sides) > 2
    again = records(text=lambda n: ("Text  {}", "text {}")[n % 2].format(n // 4))
    found = splits.hold_out(again, {"dev": 0.2}, TASKS, seed)
    sides = [{record.text.casefold().split()[1] for record in each} for each in found.values()]
    assert not sides[0] & sides[1]
    assert len(found["dev"]) == 20


def by_fold(train, folds):
    found = {}
    for record, fold in zip(train, folds, strict=True):
        found.setdefault(fold, []).append(record)
    return found


def test_folds_divide_every_class():
    folds = by_fold(records(), splits.folds(records(), 5, TASKS, seed=0))
    assert sorted(folds) == [0, 1, 2, 3, 4]
    for found in folds.values():
        counts = Counter(record.labels["label"] for record in found)
        assert counts == {"a": 12, "b": 6, "c": 2}
    with pytest.raises(InputError, match="data.folds is 9; the training split has 3 different"):
        splits.folds(records(3), 9, TASKS, seed=0)


# By the config -----------------------------------------------------------------------------------

ROWS = [(f"what is it {n}", "ab"[n % 2], f"author {n // 4}") for n in range(80)]


@pytest.fixture
def train(tmp_path):
    return write(tmp_path / "train.csv", delimited(ROWS, header=("text", "label", "author")))


def sizes(dataset):
    return {split: len(found) for split, found in dataset.splits.items()}


def test_what_is_missing_is_drawn(tmp_path, train):
    file = str(write(tmp_path / "more.csv", delimited([("more of it", "a")])))
    shares = {"dev_fraction": 0.1, "test_fraction": 0.2}
    for given, expected, drawn in (
        ({}, {"train": 56, "dev": 8, "test": 16}, ("dev", "test")),
        ({"dev": file}, {"train": 80, "dev": 1}, ()),
        ({"test": file}, {"train": 72, "dev": 8, "test": 1}, ("dev",)),
        ({"dev": file, "test": file}, {"train": 80, "dev": 1, "test": 1}, ()),
        ({"folds": 4, "fold": 1}, {"train": 54, "dev": 6, "test": 20}, ("dev", "test")),
    ):
        dataset = load(train, **shares, **given)
        assert (sizes(dataset), dataset.drawn) == (expected, drawn)
        assert ("drawn from the training split" in "".join(notes(dataset))) == bool(drawn)


def test_folds_are_out_of_each_other(train):
    held = [
        {record.id for record in load(train, folds=4, fold=fold).splits["test"]}
        for fold in range(4)
    ]
    assert len(set.union(*held)) == sum(map(len, held)) == 80
    with pytest.raises(InputError, match="data.fold is 4; expected 0 to 3"):
        load(train, folds=4, fold=4)


def test_a_group_of_both_sides_is_noted(tmp_path, train):
    drawn = load(train, group="author", dev_fraction=0.2)
    groups = [{record.group for record in found} for found in drawn.splits.values()]
    assert len(groups) == 2
    assert not groups[0] & groups[1]
    test = write(
        tmp_path / "t.csv",
        delimited([("x y", "a", "author 1")], header=("text", "label", "author")),
    )
    given = load(train, group="author", test=str(test))
    assert "1 of 1 records of test are of a group of train" in notes(given)
