"""Data sets of the hub by their id, from local folders of the same layout."""

import pytest

from jaxclf.config.defaults import default
from jaxclf.core.errors import InputError
from jaxclf.data import datasets, hub

library = pytest.importorskip("datasets")

LABELS = library.Features(
    {"text": library.Value("string"), "label": library.ClassLabel(names=["no", "yes"])}
)
TAGS = library.Features(
    {
        "tokens": library.List(library.Value("string")),
        "ner_tags": library.List(library.ClassLabel(names=["O", "B-time", "I-time"])),
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXCLF_DATA_ROOT", raising=False)


def store(folder, rows, features, split):
    folder.mkdir(parents=True, exist_ok=True)
    table = library.Dataset.from_list(rows, features=features)
    table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def rows(count):
    return [{"text": f"text {number}", "label": number % 2} for number in range(count)]


@pytest.fixture
def root(tmp_path):
    """OWNER/NAME with two configurations, of classes and of tags."""
    folder = tmp_path / "root/owner/name"
    for split, count in (("train", 6), ("validation", 4), ("test", 2)):
        store(folder / "plain", rows(count), LABELS, split)
    tagged = [{"tokens": ["at", "five", "am"], "ner_tags": [0, 1, 2]}]
    store(folder / "tagged", tagged, TAGS, "train")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: plain/{split}-*\n"
            for split in ("train", "validation", "test")
        )
        + "- config_name: tagged\n  data_files:\n  - split: train\n    path: tagged/train-*\n---\n"
    )
    return tmp_path / "root"


def load(root, name="hub:owner/name", **fields):
    config = default().data
    config.update({"name": name, "root": str(root), "task": "auto", **fields})
    return datasets.load(config)


@pytest.mark.parametrize("large", [False, True])
def test_a_configuration_with_its_splits_and_class_names(root, monkeypatch, large):
    if large:
        monkeypatch.setattr(hub, "_LARGE", 1)
    dataset = load(root, hub_config="plain")
    assert {split: len(found) for split, found in dataset.splits.items()} == {
        "train": 6,
        "dev": 4,
        "test": 2,
    }
    assert dataset.tasks[0].labels == ("no", "yes")
    assert [record.labels["label"] for record in dataset.splits["test"]] == ["no", "yes"]
    assert ("streamed" in "".join(dataset.guesses)) == large


def test_lists_of_class_numbers_are_tags(root):
    dataset = load(root, hub_config="tagged")
    (record,) = dataset.splits["train"]
    assert (record.text, record.labels) == ("at five am", {"slots": ("O", "B-time", "I-time")})


def test_splits_by_name_and_share(root):
    dataset = load(root, hub_config="plain", train="validation", dev="none", test="train[:50%]")
    assert {split: len(found) for split, found in dataset.splits.items()} == {"train": 4, "test": 3}


def test_a_folder_is_named_by_its_path(root):
    dataset = load("", f"hub:{root}/owner/name/plain")
    assert {*dataset.splits} == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has several configurations. Set data.hub_config to one of plain, tagged"),
        ({"hub_config": "plan"}, "plan"),
        ({"hub_config": "plain", "test": "tst"}, "has no split 'tst'. Set data.test to one of tr"),
        ({"hub_config": "plain", "label": "x"}, "column 'x' is not in the file; its columns: 'te"),
        ({"name": "hub:./none"}, "no such folder, nor the id of a data set of the hub"),
    ],
)
def test_what_does_not_exist(root, fields, message):
    with pytest.raises(InputError, match=message):
        load(root, **fields)
