"""GLUE, IMDB, AG News and TREC: local root and hub give the same records; sizes are checked."""

import gzip
import json

import pytest

from jaxclf.config.defaults import default
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import datasets, published

NAMES = list(published.DATASETS)


def load(name, root="", **fields):
    config = default().data
    config.name, config.root = name, root
    config.update({"check_counts": False} | fields)
    return datasets.load(config)


def raw(name, split, count=5):
    """Rows with the columns of the hub: labels are numbers, -1 where they are hidden."""
    source = published.DATASETS[name]
    rows = []
    for number in range(count):
        row = {source.text: f"text {number} of {split}"} | (
            {source.pair: f"pair {number}" if number else ""} if source.pair else {}
        )
        for each in source.asked:
            hidden = split == "test" and name.startswith("glue/")
            number_of = number % (len(each.names) or 5)
            value = number_of + 0.25 if each.kind == "regression" else number_of
            row[each.column] = (-1.0 if each.kind == "regression" else -1) if hidden else value
        rows.append(row)
    return rows


def named(name, row):
    """The row as a local root has it: names or null instead of numbers."""
    source = published.DATASETS[name]
    row = dict(row)
    for each in source.asked:
        value = row.pop(each.column)
        if value == -1:
            value = None
        elif each.names and name in ("glue/rte", "trec", "glue/mnli"):
            value = each.names[value]
        row[each.local_column] = value
    if name == "ag_news" and " test" in row["text"]:
        title, _, rest = row.pop("text").partition(" of ")
        row |= {"title": title, "description": f"of {rest}"}
    return row


@pytest.fixture(params=NAMES)
def both(request, tmp_path, monkeypatch):
    """The same rows under a local root and as the hub's parquet files."""
    import datasets as hub
    import huggingface_hub

    name, source = request.param, published.DATASETS[request.param]
    asked = []
    for split, file in source.hub.items():
        path = tmp_path / "hub" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.Dataset.from_list(raw(name, split)).to_parquet(str(path))
    by_file = {}
    for split in source.hub:
        file = source.local.get(split) or source.local[""]
        split_field = {"split": split} if "" in source.local else {}
        by_file.setdefault(file, []).extend(
            split_field | named(name, row) for row in raw(name, split)
        )
    for file, rows in by_file.items():
        path = tmp_path / "root" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))

    def download(repository, file, *, repo_type, revision):
        asked.append((repository, file, revision))
        return str(tmp_path / "hub" / file)

    monkeypatch.delenv("JAXCLF_DATA_ROOT", raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return name, str(tmp_path / "root"), asked


def contents(dataset):
    return {
        split: [(each.text, each.pair, dict(each.labels)) for each in found]
        for split, found in dataset.splits.items()
    }


def test_a_local_root_equals_the_hub(both):
    name, root, asked = both
    local, remote = load(name, root), load(name)
    assert contents(local) == contents(remote)
    assert local.tasks == remote.tasks == published.DATASETS[name].tasks
    source = published.DATASETS[name]
    assert asked == [(source.repository, file, source.revision) for file in source.hub.values()]
    first = local.splits["train"][1]
    assert first.text == "text 1 of train"
    assert first.pair == ("pair 1" if source.pair else "")
    for each in source.asked:
        assert first.labels[each.name] == (each.names[1] if each.names else 1.25)
    if name.startswith("glue/"):
        assert set(local.splits["test"][0].labels.values()) == {None}


def test_one_task_of_trec(tmp_path):
    path = tmp_path / "trec/train.jsonl"
    for split in ("train", "test"):
        path = tmp_path / f"trec/{split}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        row = {"label": "NUM", "fine_label": "NUM:dist", "text": "How far is it ?"}
        path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    found = load("trec", str(tmp_path), task="fine")
    assert [task.name for task in found.tasks] == ["fine"]
    assert dict(found.splits["train"][0].labels) == {"fine": "NUM:dist"}
    assert len(found.tasks[0].labels) == 50


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 2}, "'2' is none of entailment, not_entailment, nor the number of one"),
        ({"label": "maybe"}, "'maybe' is none of entailment"),
        ({"label": 0, "sentence2": None}, "sentence2: missing"),
        ({"label": 0, "split": "blind"}, "'blind' is no split"),
    ],
)
def test_defects_are_located(row, message, tmp_path):
    path = tmp_path / "glue/rte.jsonl.gz"
    path.parent.mkdir()
    good = {"split": "train", "sentence1": "a", "sentence2": "b", "label": 1}
    rows = [good, good | row]
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    with pytest.raises(InputError, match=rf"rte.jsonl.gz:2: .*{message}"):
        load("glue/rte", str(tmp_path))


def test_sizes_other_than_the_published_ones_are_refused(both):
    name, root, _ = both
    with pytest.raises(ArtifactError, match=rf"{name}: 5 train, .* published data set has [\d,]+ "):
        load(name, root, check_counts=True)


def test_train_alone_is_limited(both):
    name, root, _ = both
    found = load(name, root, train_limit=2)
    assert len(found.splits["train"]) == 2
    assert all(len(found.splits[split]) == 5 for split in found.splits if split != "train")


@pytest.mark.parametrize("name", NAMES)
def test_the_real_data(name, shared_root):
    found = load(name, str(shared_root / "data"), check_counts=True)
    sizes = {split: len(records) for split, records in found.splits.items()}
    source = published.DATASETS[name]
    assert sizes in (source.counts, source.sample)
    for task in found.tasks:
        occur = {record.labels[task.name] for record in found.splits["train"]}
        if task.kind == "class":
            assert occur == set(task.labels)
        else:
            assert min(occur) == 0.0
            assert max(occur) == 5.0
