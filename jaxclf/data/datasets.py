"""The named data sets: where they are, their splits, labels and published sizes.

| name    | tasks           | files under a local root                     | public source      |
|---------|-----------------|----------------------------------------------|--------------------|
| builtin | intent, slots   | none                                         | made by `builtin`  |
| massive | intent, slots   | massive/en-US.jsonl.gz                       | hub                |
| 20ng    | 7class, 20class | 20newsgroups/train.jsonl.gz, …/test.jsonl.gz | scikit-learn       |
| file    | label, slots    | none                                         | data.train … test  |
| hub:ID  | label, slots    | OWNER/NAME                                   | hub                |

and those of `published`: GLUE, IMDB, AG News and TREC.

The local root is `data.root`, else the environment variable JAXCLF_DATA_ROOT; with neither, the
public source is used.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.core.suggest import did_you_mean
from jaxclf.data import builtin, hub, own_files, published, readers, records
from jaxclf.data import splits as drawing
from jaxclf.data.readers import RawRow
from jaxclf.data.records import Column, Defects, Schema
from jaxclf.data.tasks import Record, Task, label_names

Splits = dict[str, list[Record]]
Domain = Literal["News", "Utter", "Text"]  # what a text is called in a prompt
Loader = Callable[[Any, Defects], tuple[Domain, tuple[Task, ...], Splits]]

ROOT_VARIABLE = "JAXCLF_DATA_ROOT"
SPLITS = ("train", "dev", "heldout", "test")
NO_SPLIT = "none"  # what a report names where nothing is scored
COUNTS = {
    "massive": {"train": 11_514, "dev": 2_033, "test": 2_974},
    "20ng": {"train": 11_314, "test": 7_532},
}
LABEL_COUNTS = {
    "massive": {"intent": 60, "slots": 55},
    "20ng": {"7class": 7, "20class": 20},
}

MASSIVE_SCHEMA = Schema(
    id="id",
    text="utt",
    split="partition",
    targets=(Column("intent", "class", "intent"), Column("slots", "slots", "annot_utt")),
)
# The hub turns every data set into parquet files on this branch. Its main branch holds only a
# loading script, and `datasets` runs none since version 4.
MASSIVE_REPOSITORY = "AmazonScience/massive"
MASSIVE_REVISION = "refs/convert/parquet"
MASSIVE_FILES = tuple(f"en-US/{split}/0000.parquet" for split in ("train", "validation", "test"))

NEWSGROUPS_SCHEMA = Schema(id="id", text="text", targets=(Column("20class", "class", "label"),))


@dataclass(frozen=True)
class Dataset:
    """A data set as a run sees it: the selected tasks and the records of each split.

    `skipped`: records left out for a defect, by split; `defects`: the first of these, located.
    `fingerprint`: SHA-256 over splits, ids, texts and labels. `guesses`: what was guessed of the
    files, a line each. `drawn`: the splits that were drawn from train. `left_out`: training records
    that `data.train_limit` and `data.train_examples` keep from learning.

    The labels of a record need not be among its task's: those of a test split that train lacks are
    kept, and count as wrong whatever is answered.
    """

    name: str
    domain: Domain
    tasks: tuple[Task, ...]
    splits: Splits
    skipped: dict[str, int]
    fingerprint: str
    defects: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    left_out: tuple[Record, ...] = ()

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """`fingerprint` of each split by itself."""
        return {split: _fingerprint({split: found}) for split, found in self.splits.items()}


def load(config: Any, seed: int = 0) -> Dataset:
    """The data set that `config` (a run's `config.data`) names.

    `seed`: the run's, by which `train_examples` are drawn. Raises InputError if the config or a
    record is wrong, StorageError if the public source cannot be reached, ArtifactError if the data
    are not the published ones.
    """
    loaders = {"builtin": _builtin, "massive": _massive, "20ng": _newsgroups, "file": _own}
    loaders |= dict.fromkeys(published.DATASETS, _published)
    if config.name.startswith(hub.PREFIX):
        loader = _own
    else:
        loader = loaders[_one_of("data.name", config.name, loaders)]
    skip = _one_of("data.on_defect", config.on_defect, ("fail", "skip")) == "skip"
    shares = {"dev": config.dev_fraction, "test": config.get("test_fraction", 0.0)}
    for split, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(f"data.{split}_fraction is {share}; it must be in [0, 1)")
    if sum(shares.values()) >= 1:
        raise InputError("data.dev_fraction and data.test_fraction leave nothing to train on")
    if config.limit < 0:
        raise InputError(f"data.limit is {config.limit}; it must be 0 (all) or more")

    defects = Defects(skip=skip)
    domain, tasks, splits = _read(loader, config, defects)
    if not splits.get("train"):
        raise InputError(f"{config.train or config.name}: no usable record to train on")
    if config.check_counts:
        _check_counts(config.name, tasks, splits)
    if config.task not in ("both", "auto"):
        name = _one_of("data.task", config.task, [*(task.name for task in tasks), "both"])
        tasks = tuple(task for task in tasks if task.name == name)
        splits = {split: _with_labels(found, (name,)) for split, found in splits.items()}
    splits, drawn = _drawn(config, splits, shares, tasks)
    if config.limit:
        splits = {split: drawing.spread(found, config.limit) for split, found in splits.items()}
    whole = splits["train"]
    if config.train_limit:
        splits["train"] = drawing.spread(splits["train"], config.train_limit)
    if count := config.get("train_examples", 0):  # which older runs do not have
        splits["train"] = drawing.few(splits["train"], count, tasks, seed)
    splits = {split: splits[split] for split in SPLITS if split in splits}
    counts, shown, said = dict(defects.counts), tuple(defects.shown), tuple(defects.notes())
    digest = _fingerprint(splits)
    kept = {*map(id, splits["train"])}
    rest = tuple(record for record in whole if id(record) not in kept)
    return Dataset(config.name, domain, tasks, splits, counts, digest, shown, said, drawn, rest)


def _drawn(
    config: Any, splits: Splits, shares: Mapping[str, float], tasks: Sequence[Task]
) -> tuple[Splits, tuple[str, ...]]:
    """The splits with those that are drawn from train, and the names of these.

    Of folds, one is test; dev is drawn from the others. Test is drawn where there is neither dev
    nor test.
    """
    train, seed = splits["train"], config.get("split_seed", 0)
    drawn: list[str] = []
    if count := config.get("folds", 0):
        if not 0 <= config.fold < count:
            raise InputError(f"data.fold is {config.fold}; expected 0 to {count - 1} (data.folds)")
        fold_of = drawing.folds(train, count, tasks, seed)
        test = [record for record, fold in zip(train, fold_of, strict=True) if fold == config.fold]
        train = [record for record, fold in zip(train, fold_of, strict=True) if fold != config.fold]
        splits = splits | {"train": train, "test": test}
        drawn.append("test")
    has = {split for split in ("dev", "test") if splits.get(split)}
    wanted = {split: share for split, share in shares.items() if split not in has and share}
    if "dev" in has:
        wanted.pop("test", None)
    if wanted:
        found = drawing.hold_out(train, wanted, tasks, seed)
        splits, drawn = splits | found, [*drawn, *(split for split in wanted if split in found)]
    return splits, tuple(split for split in ("dev", "test") if split in drawn)


def scored_split(dataset: Dataset, wanted: str) -> str:
    """The split to report on: the wanted one; where there is no test split dev, or NO_SPLIT where
    there is none but train. Raises InputError where another was wanted, or there are others."""
    for split in (wanted, "dev") if wanted == "test" else (wanted,):
        if dataset.splits.get(split):
            return split
    if wanted == "test" and {*dataset.splits} <= {"train"}:
        return NO_SPLIT
    raise InputError(
        f"eval.split is {wanted!r}; data set {dataset.name} has {', '.join(dataset.splits)}. Set "
        "eval.split to one of these, or hold out a dev split with data.dev_fraction"
    )


_kept: dict[tuple[str, ...], tuple[Any, Defects]] | None = None


def keep_records() -> None:
    """From here on read each named data set once: for a process that makes many small runs."""
    global _kept
    _kept = {} if _kept is None else _kept


def _read(loader: Loader, config: Any, defects: Defects) -> tuple[Domain, tuple[Task, ...], Splits]:
    """What the loader gives, or gave before where records are kept."""
    if _kept is None or loader is _own:
        return loader(config, defects)
    key = (config.name, str(local_root(config)), config.on_defect)
    if key not in _kept:
        _kept[key] = loader(config, defects), defects
    (domain, tasks, splits), found = _kept[key]
    defects.counts, defects.shown = found.counts, found.shown
    return domain, tasks, dict(splits)


def local_root(config: Any) -> tuple[Path, str] | None:
    """The folder of local data and the setting that names it; None if neither setting does."""
    if config.root:
        return Path(config.root), "data.root"
    root = os.environ.get(ROOT_VARIABLE, "")
    return (Path(root), ROOT_VARIABLE) if root else None


# The data sets. Each gives the prompt's word for a text, its tasks in the order of the prompt's
# task1, task2, and the records by split.


def _builtin(config: Any, defects: Defects) -> tuple[Domain, tuple[Task, ...], Splits]:
    splits = _builtin_splits()
    return "Utter", _tasks(MASSIVE_SCHEMA, splits.values()), dict(splits)


@functools.cache
def _builtin_splits() -> Splits:
    """The same in every run of a process: a test suite makes many."""
    rows = (RawRow(f"builtin:{line}", fields) for line, fields in enumerate(builtin.rows(), 1))
    return records.parse(rows, MASSIVE_SCHEMA, Defects(skip=False))


def _massive(config: Any, defects: Defects) -> tuple[Domain, tuple[Task, ...], Splits]:
    paths = _local_files(config, ("massive/en-US.jsonl.gz",)) or download_massive()
    splits: Splits = {}
    for path in paths:
        for split, found in records.read(path, MASSIVE_SCHEMA, defects).items():
            splits.setdefault(split, []).extend(found)
    defects.check()
    # From all splits: some slots and intents are so rare that a split may lack them.
    return "Utter", _tasks(MASSIVE_SCHEMA, splits.values()), splits


def download_massive() -> list[Path]:
    """The parquet files of MASSIVE en-US, from the hub or the hub's cache on this machine."""
    return _download(MASSIVE_REPOSITORY, MASSIVE_REVISION, MASSIVE_FILES)


def _published(config: Any, defects: Defects) -> tuple[Domain, tuple[Task, ...], Splits]:
    source = published.DATASETS[config.name]
    paths = _local_files(config, [*source.local.values()])
    places = source.local if paths else source.hub
    paths = paths or _download(source.repository, source.revision, [*source.hub.values()])
    schema = source.schema(local=places is source.local)
    splits: Splits = {}
    for split, path in zip(places, paths, strict=True):
        rows = published.joined(readers.rows(path, schema.columns))
        splits |= records.parse(rows, schema, defects, split)
    defects.check()
    return "Text", source.tasks, splits


def _newsgroups(config: Any, defects: Defects) -> tuple[Domain, tuple[Task, ...], Splits]:
    paths = _local_files(config, [f"20newsgroups/{split}.jsonl.gz" for split in ("train", "test")])
    splits: Splits = {}
    for number, split in enumerate(("train", "test")):
        if paths:
            splits |= records.read(paths[number], NEWSGROUPS_SCHEMA, defects, split)
        else:
            splits |= records.parse(fetch_newsgroups(split), NEWSGROUPS_SCHEMA, defects, split)
    defects.check()
    (classes,) = _tasks(NEWSGROUPS_SCHEMA, splits.values())
    roots = Task("7class", "class", tuple(sorted({root_class(name) for name in classes.labels})))
    return "News", (roots, classes), {split: _with_roots(found) for split, found in splits.items()}


def _with_roots(found: Iterable[Record]) -> list[Record]:
    labels = ((record, str(record.labels["20class"])) for record in found)
    return [
        Record(record.id, record.text, {"7class": root_class(label), "20class": label})
        for record, label in labels
    ]


def root_class(group: str) -> str:
    """`"comp.graphics" → "comp"`."""
    return group.partition(".")[0]


def fetch_newsgroups(split: str) -> list[RawRow]:
    """A split of "bydate", headers kept, in the order of group and number.

    scikit-learn decodes the posts as Latin-1 and keeps them in its own cache.
    """
    from sklearn.datasets import fetch_20newsgroups

    try:
        found: Any = fetch_20newsgroups(subset=split, remove=(), shuffle=False)
    except Exception as error:  # whatever the download or unpacking ran into
        raise _unreachable("20 Newsgroups (scikit-learn)", error) from error
    rows = []
    for file, text, target in zip(found.filenames, found.data, found.target, strict=True):
        label = found.target_names[target]
        identity = f"{label}/{Path(file).name}"
        rows.append(RawRow(identity, {"id": identity, "label": label, "text": text}))
    return sorted(rows, key=lambda row: row.where)


def _own(config: Any, defects: Defects) -> tuple[Domain, tuple[Task, ...], Splits]:
    schema, splits = own_files.read(config, defects)
    return "Text", _tasks(schema, [splits["train"]]), splits


# What they share.


def _download(repository: str, revision: str, names: Sequence[str]) -> list[Path]:
    """Files of a data set, from the hub or the hub's cache on this machine."""
    from huggingface_hub import hf_hub_download

    try:
        return [
            Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
            for name in names
        ]
    except Exception as error:  # of several libraries, with no base in common
        raise _unreachable(f"the data set {repository} of the hub", error) from error


def _local_files(config: Any, names: Sequence[str]) -> list[Path] | None:
    found = local_root(config)
    if found is None:
        return None
    root, setting = found
    paths = [root / name for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"{setting} is {str(root)!r}, but {path} does not exist. Put the file there, or "
                f"unset {setting} to fetch the data from their public source."
            )
    return paths


def _unreachable(source: str, error: Exception) -> StorageError:
    return StorageError(
        f"{source} could not be fetched: {type(error).__name__}: {error}. Check the network, or "
        f"set data.root or {ROOT_VARIABLE} to a folder that holds the data."
    )


def _tasks(schema: Schema, splits: Iterable[Iterable[Record]]) -> tuple[Task, ...]:
    """The tasks of a schema with the labels that occur in the records, sorted."""
    labels: dict[str, set[str]] = {target.task: set() for target in schema.targets}
    for record in itertools.chain.from_iterable(splits):
        for target in schema.targets:
            labels[target.task] |= label_names(record.labels[target.task], target.kind)
    return tuple(
        Task(target.task, target.kind, tuple(sorted(labels[target.task])))
        for target in schema.targets
    )


def _check_counts(name: str, tasks: Sequence[Task], splits: Splits) -> None:
    found = {split: len(records_) for split, records_ in splits.items()}
    source = published.DATASETS.get(name)
    if source is not None:
        if found in (source.counts, source.sample):
            return
        raise ArtifactError(
            f"{name}: {_sizes(found)}, where the published data set has {_sizes(source.counts)}. "
            "Fetch it again, or set data.check_counts=False to use it as it is."
        )
    found |= {f"{task.name} labels": len(task.labels) for task in tasks}
    expected = COUNTS.get(name, {}) | {
        f"{task} labels": count for task, count in LABEL_COUNTS.get(name, {}).items()
    }
    for what, count in expected.items():
        if found.get(what, 0) != count:
            raise ArtifactError(
                f"{name}: {found.get(what, 0):,} {what}, where the published data set has "
                f"{count:,}. Fetch it again, or set data.check_counts=False to use it as it is."
            )


def _sizes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def _with_labels(found: Iterable[Record], names: Sequence[str]) -> list[Record]:
    return [
        dataclasses.replace(record, labels={name: record.labels[name] for name in names})
        for record in found
    ]


def fingerprint(found: Sequence[Record]) -> str:
    """SHA-256 over the ids, texts and labels of records in their order."""
    return _fingerprint({"": [*found]})


def _fingerprint(splits: Splits) -> str:
    digest = sha256()
    for split in sorted(splits):
        for record in splits[split]:
            labels = sorted(record.labels.items())
            fields = [split, record.id, record.text, labels, *filter(None, [record.pair])]
            digest.update(json.dumps(fields).encode() + b"\n")
    return digest.hexdigest()


def _one_of(field: str, value: str, possible: Iterable[str] | Mapping[str, Any]) -> str:
    names = list(possible)
    if value in names:
        return value
    hint = did_you_mean(value, names, cutoff=0.4)
    raise InputError(f"{field} is {value!r}; possible: {', '.join(names)}{hint}")
