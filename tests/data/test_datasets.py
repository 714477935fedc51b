import gzip
import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxclf.config.defaults import default
from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.data import builtin, datasets
from jaxclf.data.tasks import plain_slots, words

ROWS = builtin.rows()


@pytest.fixture(autouse=True)
def small_world(request, monkeypatch):
    """Tests state their own root, reach no network and have a small built-in data set."""
    monkeypatch.delenv("JAXCLF_DATA_ROOT", raising=False)
    if request.node.name != "test_builtin":
        monkeypatch.setattr(builtin, "rows", lambda: ROWS[:300])

    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)


def load(name, **fields):
    config = default().data
    config.name = name
    config.update(fields)
    return datasets.load(config)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def sizes(dataset):
    return {split: len(found) for split, found in dataset.splits.items()}


GROUPS = ("alt.atheism", "comp.graphics", "comp.windows.x", "sci.space")


def newsgroups(split, count=6):
    return [
        {"id": f"{group}/{split}{number}", "label": group, "text": f"From: a\n\n{number}"}
        for group in GROUPS
        for number in range(count)
    ]


@pytest.fixture
def root(tmp_path):
    """A small local root with the layout of the real one."""
    write(tmp_path / "massive/en-US.jsonl.gz", ROWS[:300])
    for split in ("train", "test"):
        write(tmp_path / f"20newsgroups/{split}.jsonl.gz", newsgroups(split))
    return str(tmp_path)


# builtin


def test_builtin():
    dataset = load("builtin")
    assert dataset.domain == "Utter"
    assert [(task.name, task.kind) for task in dataset.tasks] == [
        ("intent", "class"),
        ("slots", "slots"),
    ]
    assert dataset.tasks[0].labels == tuple(sorted(builtin.TEMPLATES))
    assert dataset.tasks[1].labels == tuple(sorted(builtin.VALUES))
    assert list(dataset.splits) == ["train", "dev", "test"]
    record = dataset.splits["train"][0]
    assert record.text == "i want sushi from green garden"
    assert record.labels["intent"] == "takeaway_order"
    assert plain_slots(record.labels["slots"]) == (
        *("Other", "Other", "food_type", "Other", "business_name", "business_name"),
    )
    for found in dataset.splits.values():
        for record in found:
            assert len(words(record.text)) == len(record.labels["slots"])


def test_one_task_leaves_the_other_out():
    dataset = load("builtin", task="slots", limit=5)
    assert [task.name for task in dataset.tasks] == ["slots"]
    assert all(set(record.labels) == {"slots"} for record in dataset.splits["train"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "massiv"}, "data.name is 'massiv'; .* Did you mean 'massive'"),
        ({"name": "20NG"}, "data.name is '20NG'; possible: builtin, massive, 20ng, file"),
        (
            {"task": "intents"},
            "data.task is 'intents'; .* Did you mean 'intent'",
        ),
        ({"on_defect": "ski"}, "data.on_defect is 'ski'; .*'skip'"),
        ({"dev_fraction": 1.0}, "data.dev_fraction is 1.0"),
        ({"limit": -1}, "data.limit is -1"),
    ],
)
def test_wrong_config(fields, message):
    with pytest.raises(InputError, match=message):
        load(**{"name": "builtin"} | fields)


def few(tmp_path, count, seed=0, **fields):
    """Ids of `count` of 40 records, of which 24 are a, 12 b, 3 c and one d."""
    rows = [
        {"id": str(n), "text": f"text {n}", "label": label}
        for n, label in enumerate("a" * 24 + "b" * 12 + "c" * 3 + "d")
    ]
    train = write(tmp_path / "train.jsonl", rows)
    config = default().data
    config.update(name="file", task="label", train=train, id="id", **fields)
    config.train_examples = count
    return [(each.id, each.labels["label"]) for each in datasets.load(config, seed).splits["train"]]


@pytest.mark.parametrize(
    ("count", "labels"),
    [
        (1, "a"),
        (3, "abc"),
        (4, "abcd"),
        (5, "aabcd"),
        # 24 : 12 : 3 : 1, of which c and d have their one already.
        (10, "aaaaabbbcd"),
        (20, "a" * 12 + "b" * 6 + "cd"),
        (40, "a" * 24 + "b" * 12 + "cccd"),
    ],
)
def test_few_labels_are_stratified(tmp_path, count, labels):
    found = few(tmp_path, count)
    assert sorted(label for _, label in found) == list(labels)
    assert found == sorted(found, key=lambda each: int(each[0]))  # in the file's order


def test_few_labels_hold_all_of_fewer_and_follow_the_seed(tmp_path):
    for seed in (0, 1):
        nested = [set(few(tmp_path, count, seed)) for count in range(1, 41)]
        assert all(fewer < more for fewer, more in itertools.pairwise(nested))
    assert few(tmp_path, 10) == few(tmp_path, 10)
    assert few(tmp_path, 10) != few(tmp_path, 10, seed=1)


def test_few_labels_of_a_task_without_classes(tmp_path):
    chosen = [
        {each.id for each in load("builtin", task="slots", train_examples=count).splits["train"]}
        for count in (5, 50)
    ]
    assert [len(each) for each in chosen] == [5, 50]
    assert chosen[0] < chosen[1]
    assert chosen[0] != {each.id for each in load("builtin", task="slots").splits["train"][:5]}


def test_more_labels_than_there_are(tmp_path):
    with pytest.raises(InputError, match=r"train_examples is 41; the train split has 40 records"):
        few(tmp_path, 41)


def test_fingerprint_follows_ids_texts_and_labels(tmp_path):
    rows = [{"id": str(n), "text": f"text {n}", "label": "ab"[n % 2]} for n in range(6)]

    def fingerprint(rows):
        train = write(tmp_path / "train.jsonl", rows)
        return load("file", train=train, id="id").fingerprint

    first = fingerprint(rows)
    assert first == fingerprint(rows)
    for changes in ({"id": "x"}, {"text": "x"}, {"label": "b"}):
        assert first != fingerprint([rows[0] | changes, *rows[1:]])
    assert first != fingerprint(rows[::-1])


# massive


def test_massive_from_a_local_root(root):
    dataset = load("massive", root=root, check_counts=False)
    expected = [row for row in ROWS[:300] if row["partition"] == "dev"]
    assert [record.id for record in dataset.splits["dev"]] == [row["id"] for row in expected]
    assert dataset.domain == "Utter"
    assert [task.name for task in dataset.tasks] == ["intent", "slots"]


def test_root_from_the_environment_and_the_config_before_it(root, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLF_DATA_ROOT", root)
    assert sizes(load("20ng", check_counts=False)) == {"train": 24, "test": 24}
    with pytest.raises(InputError, match=r"data.root is '.*/none', but .*en-US.jsonl.gz does not"):
        load("massive", root=str(tmp_path / "none"))


def test_counts_that_differ_from_the_published_ones(root):
    with pytest.raises(ArtifactError, match=r"massive: 2\d\d train, where .* has 11,514"):
        load("massive", root=root)
    with pytest.raises(ArtifactError, match=r"20ng: 24 train, where .* has 11,314"):
        load("20ng", root=root)


def parquet_layout(folder, rows):
    """The files of the hub's parquet branch, written by the library that wrote those."""
    import datasets as hub

    intents = sorted({row["intent"] for row in rows})
    scenarios = sorted({row["scenario"] for row in rows})
    features = hub.Features({name: hub.Value("string") for name in rows[0]})
    features["intent"] = hub.ClassLabel(names=intents)
    features["scenario"] = hub.ClassLabel(names=scenarios)
    for split, partition in (("train", "train"), ("validation", "dev"), ("test", "test")):
        table = hub.Dataset.from_list(
            [
                row
                | {
                    "intent": intents.index(row["intent"]),
                    "scenario": scenarios.index(row["scenario"]),
                }
                for row in rows
                if row["partition"] == partition
            ],
            features=features,
        )
        path = folder / f"en-US/{split}/0000.parquet"
        path.parent.mkdir(parents=True)
        table.to_parquet(str(path))


def test_massive_from_the_hub_equals_the_local_file(root, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    parquet_layout(tmp_path / "hub", ROWS[:300])

    def download(repository, file, *, repo_type, revision):
        asked.append((repository, repo_type, revision))
        return str(tmp_path / "hub" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    dataset = load("massive", check_counts=False)
    assert asked == [("AmazonScience/massive", "dataset", "refs/convert/parquet")] * 3
    assert dataset == load("massive", root=root, check_counts=False)


def test_unreachable_sources_name_the_remedy(monkeypatch, tmp_path):
    import huggingface_hub
    import sklearn.datasets

    def refuse(*_, **__):
        raise ConnectionError("name not resolved")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", refuse)
    for name in ("massive", "20ng"):
        with pytest.raises(StorageError) as error:
            load(name)
        assert "name not resolved" in str(error.value)
        assert "set data.root or JAXCLF_DATA_ROOT" in str(error.value)


# 20 Newsgroups


def test_newsgroups_has_the_root_class_first(root):
    dataset = load("20ng", root=root, check_counts=False)
    assert dataset.domain == "News"
    assert [(task.name, task.labels) for task in dataset.tasks] == [
        ("7class", ("alt", "comp", "sci")),
        ("20class", GROUPS),
    ]
    assert dataset.splits["train"][-1].labels == {"7class": "sci", "20class": "sci.space"}
    roots = load("20ng", root=root, check_counts=False, task="7class")
    assert [dict(record.labels) for record in roots.splits["test"][:1]] == [{"7class": "alt"}]


def test_newsgroups_through_scikit_learn_equals_the_local_files(root, tmp_path, monkeypatch):
    import numpy as np
    import sklearn.datasets
    from sklearn.utils import Bunch

    def fetch(*, subset, remove, shuffle):
        assert remove == ()  # headers are kept
        rows = sorted(newsgroups(subset), key=lambda row: hash(row["text"]))
        return Bunch(
            data=[row["text"] for row in rows],
            filenames=np.array([f"/cache/20news-bydate-{subset}/{row['id']}" for row in rows]),
            target=np.array([GROUPS.index(row["label"]) for row in rows]),
            target_names=list(GROUPS),
        )

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    assert load("20ng", check_counts=False) == load("20ng", root=root, check_counts=False)


# held-out dev and limit


def test_dev_is_held_out_of_each_class_and_does_not_move(root):
    whole = load("20ng", root=root, check_counts=False)
    dataset = load("20ng", root=root, check_counts=False, dev_fraction=0.34)
    assert sizes(dataset) == {"train": 16, "dev": 8, "test": 24}
    for split, count in (("train", 4), ("dev", 2)):
        classes = [record.labels["20class"] for record in dataset.splits[split]]
        assert classes == [group for group in GROUPS for _ in range(count)]
    train, dev = ({record.id for record in dataset.splits[split]} for split in ("train", "dev"))
    assert train | dev == {record.id for record in whole.splits["train"]}
    assert not train & dev
    assert [record.id for record in dataset.splits["dev"]][:2] == [
        "alt.atheism/train1",
        "alt.atheism/train5",
    ]
    assert dataset == load("20ng", root=root, check_counts=False, dev_fraction=0.34)


def test_dev_fraction_leaves_a_record_of_each_class_and_an_existing_dev(root):
    dataset = load("20ng", root=root, check_counts=False, dev_fraction=0.99)
    assert sizes(dataset)["train"] == len(GROUPS)
    assert load("builtin", dev_fraction=0.5) == load("builtin")


def test_limit_spreads_over_a_file_sorted_by_class(root):
    dataset = load("20ng", root=root, check_counts=False, limit=8)
    assert sizes(dataset) == {"train": 8, "test": 8}
    for found in dataset.splits.values():
        assert {record.labels["20class"] for record in found} == set(GROUPS)
    assert len(dataset.tasks[1].labels) == len(GROUPS)
    assert sizes(load("20ng", root=root, check_counts=False, limit=1000))["train"] == 24


# a user's own files


def test_file_with_labels_and_slots(tmp_path):
    train = write(
        tmp_path / "train.jsonl",
        [
            {"utterance": "at five", "kind": "set", "tags": ["Other", "time"]},
            {"utterance": "for anna", "kind": "ask", "tags": "for [person : anna]"},
        ],
    )
    test = tmp_path / "test.csv"
    test.write_text('utterance,kind,tags\nat six,ask,"[""O"", ""B-time""]"\n')
    dataset = load(
        "file", train=train, test=str(test), text="utterance", label="kind", slots="tags"
    )
    assert dataset.domain == "Text"
    assert [(task.name, task.kind, task.labels) for task in dataset.tasks] == [
        ("label", "class", ("ask", "set")),
        ("slots", "slots", ("person", "time")),
    ]
    (record,) = dataset.splits["test"]
    assert (record.id, record.text) == ("test.csv:2", "at six")
    assert record.labels == {"label": "ask", "slots": ("O", "B-time")}


def test_file_with_one_task_is_what_both_means(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}])
    dataset = load("file", train=train)
    assert [task.name for task in dataset.tasks] == ["label"]
    with pytest.raises(InputError, match="which column holds the slots cannot be told. Set data"):
        load("file", train=train, task="slots")


def test_file_labels_come_from_train_and_defects_of_all_files_are_told_at_once(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}, {"text": ""}])
    dev = write(tmp_path / "dev.jsonl", [{"text": "a", "label": "y"}, {"text": "b", "label": "x"}])
    test = write(tmp_path / "test.jsonl", [{"text": "a", "label": "x"}, {"label": "x"}])
    files = {"train": train, "dev": dev, "test": test}
    with pytest.raises(InputError) as error:
        load("file", **files)
    assert f"{train}:2: text: empty" in str(error.value)
    assert f"{test}:2: text: missing" in str(error.value)
    dataset = load("file", **files, on_defect="skip")
    assert dataset.skipped == {"train": 1, "test": 1}
    assert dataset.defects[0].startswith(f"{train}:2: text: empty")
    # A label that train lacks is kept: it is an error of whoever answers.
    assert sizes(dataset) == {"train": 1, "dev": 2, "test": 1}
    assert dataset.tasks[0].labels == ("x",)


def test_the_split_that_is_scored(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    for names, wanted, scored in (
        (("train", "dev", "test"), "test", "test"),
        (("train", "dev"), "test", "dev"),
        (("train",), "test", "none"),
        (("train",), "train", "train"),
    ):
        dataset = load("file", **dict.fromkeys(names, file))
        assert datasets.scored_split(dataset, wanted) == scored
    dataset = load("file", train=file, test=file)
    with pytest.raises(InputError, match="eval.split is 'dev'; data set file has train, test"):
        datasets.scored_split(dataset, "dev")
    with pytest.raises(InputError, match="eval.split is 'heldout'"):  # asked for by name
        datasets.scored_split(load("file", train=file, dev=file), "heldout")


def test_file_config_that_lacks_something(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}])
    empty = write(tmp_path / "empty.jsonl", [])
    for fields, message in (
        ({}, "data.train is empty; name the training file"),
        ({"train": train, "label": "x"}, "column 'x' is not in the file; its columns: 'text', 'la"),
        ({"train": empty}, "empty.jsonl: no usable record to train on"),
        ({"train": train, "test": empty}, "empty.jsonl: no usable record"),
        ({"train": train, "dev": "none.jsonl"}, "none.jsonl: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            load("file", **fields)


def test_a_cheap_data_set_imports_nothing_heavy():
    code = (
        "import sys; from jaxclf.config.defaults import default; from jaxclf.data import datasets;"
        "datasets.load(default().data);"
        "print([name for name in ('jax', 'transformers', 'sklearn', 'pyarrow', 'datasets',"
        "'huggingface_hub', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# the real data


def test_real_massive(shared_root):
    dataset = load("massive", root=str(shared_root / "data"))
    assert sizes(dataset) == {"train": 11_514, "dev": 2_033, "test": 2_974}
    assert [len(task.labels) for task in dataset.tasks] == [60, 55]
    assert dataset.splits["test"][0].labels["slots"] == (
        *("O", "O", "O", "O", "B-time", "I-time", "B-date", "I-date"),
    )


def test_real_newsgroups(shared_root):
    dataset = load("20ng", root=str(shared_root / "data"))
    assert sizes(dataset) == {"train": 11_314, "test": 7_532}
    assert dataset.tasks[0].labels == ("alt", "comp", "misc", "rec", "sci", "soc", "talk")
    assert len(dataset.tasks[1].labels) == 20
    assert dataset.splits["train"][0].text.startswith("From: mathew <mathew@mantis.co.uk>\n")


def test_what_few_labels_leave_out_is_known(tmp_path):
    few(tmp_path, 1)
    config = default().data
    config.update(name="file", task="label", id="id", train=str(tmp_path / "train.jsonl"))
    assert datasets.load(config).left_out == ()
    whole = datasets.load(config).splits["train"]
    for fields in ({"train_examples": 10}, {"train_limit": 10}):
        config.update({"train_examples": 0, "train_limit": 0} | fields)
        found = datasets.load(config)
        assert len(found.left_out) == 30
        both = [*found.splits["train"], *found.left_out]
        assert sorted(both, key=whole.index) == whole
