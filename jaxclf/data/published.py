"""GLUE, IMDB, AG News and TREC: where their files lie, their fields, label names and sizes.

| name                                  | local root                         | hub                |
|---------------------------------------|------------------------------------|--------------------|
| glue/cola, mrpc, qnli, qqp, rte, sst2 | glue/NAME.jsonl.gz                 | nyu-mll/glue       |
| glue/stsb (numbers from 0 to 5), wnli | the same                           | the same           |
| glue/mnli, glue/mnli-mm               | glue/mnli.jsonl.gz                 | the same           |
| imdb                                  | imdb/train.jsonl.gz, test          | stanfordnlp/imdb   |
| ag_news                               | ag_news/train_subset, test         | fancyzhx/ag_news   |
| trec (tasks coarse, fine)             | trec/train.jsonl.gz, test          | CogComp/trec       |

MNLI has two development sets: `glue/mnli` has the matched one, `glue/mnli-mm` the mismatched. Most
of GLUE hides its test labels, so that its figures are of dev. Of MNLI, QQP and QNLI a local root
may hold a sample instead, with a split `heldout` of its own: no score on that is a GLUE score.

Source: Wang et al. 2019 (GLUE), Maas et al. 2011 (IMDB), Zhang et al. 2015 (AG News), Li & Roth
2002 (TREC).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jaxclf.data.readers import RawRow
from jaxclf.data.records import Column, Schema
from jaxclf.data.tasks import Task, TaskKind

_PAIR = ("sentence1", "sentence2")
_SAME = ("entailment", "not_entailment")
_COARSE = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
_FINE = {
    "ABBR": "abb exp",
    "ENTY": "animal body color cremat currency dismed event food instru lang letter other plant "
    "product religion sport substance symbol techmeth termeq veh word",
    "DESC": "def desc manner reason",
    "HUM": "gr ind title desc",
    "LOC": "city country mount other state",
    "NUM": "code count date dist money ord other period perc speed temp volsize weight",
}


@dataclass(frozen=True)
class PublishedTask:
    """One task: the column on the hub and under a local root, and what its numbers stand for."""

    name: str
    names: tuple[str, ...]
    column: str = "label"
    local_column: str = "label"
    kind: TaskKind = "class"
    positive: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Published:
    """A data set. `hub`, `local`: split → file; "" as split: the file's column `split` tells.

    `counts` are the published sizes, `sample` those of a part that a local root may hold instead.
    """

    asked: tuple[PublishedTask, ...]
    text: str
    pair: str
    repository: str
    revision: str
    hub: Mapping[str, str]
    local: Mapping[str, str]
    counts: Mapping[str, int]
    sample: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(
            Task(each.name, each.kind, tuple(sorted(each.names)), each.positive, each.metric)
            for each in self.asked
        )

    def schema(self, local: bool) -> Schema:
        """Which columns hold what; labels may be hidden, and a text of a pair be empty."""
        targets = tuple(
            Column(
                each.name,
                each.kind,
                each.local_column if local else each.column,
                names=each.names,
                may_be_hidden=True,
            )
            for each in self.asked
        )
        return Schema(
            text=self.text,
            pair=self.pair,
            split="split" if local and "" in self.local else "",
            targets=targets,
            may_be_empty=True,
        )


def _glue(
    name: str,
    columns: tuple[str, str],
    names: tuple[str, ...],
    counts: tuple[int, int, int],
    *,
    kind: TaskKind = "class",
    positive: str = "",
    metric: str = "",
    kept: str = "",
    sample: Mapping[str, int] | None = None,
) -> Published:
    """`kept`: which of two development sets (MNLI)."""
    folder, ending = name.partition("-")[0], f"_{kept}" if kept else ""
    hub = {"train": "train", "dev": f"validation{ending}", "test": f"test{ending}"}
    return Published(
        (PublishedTask(name, names, kind=kind, positive=positive, metric=metric),),
        *columns,
        repository="nyu-mll/glue",
        revision="main",
        hub={split: f"{folder}/{file}-00000-of-00001.parquet" for split, file in hub.items()},
        local={"": f"glue/{folder}.jsonl.gz"},
        counts=dict(zip(("train", "dev", "test"), counts, strict=True)),
        sample=sample or {},
    )


def _plain(
    repository: str,
    asked: tuple[PublishedTask, ...],
    counts: tuple[int, int],
    hub: str,
    local: tuple[str, str],
    revision: str = "main",
    sample: Mapping[str, int] | None = None,
) -> Published:
    """One text, train and test; `hub` with the split where it says SPLIT."""
    splits = ("train", "test")
    return Published(
        asked,
        "text",
        "",
        repository,
        revision,
        hub={split: hub.replace("SPLIT", split) for split in splits},
        local=dict(zip(splits, local, strict=True)),
        counts=dict(zip(splits, counts, strict=True)),
        sample=sample or {},
    )


_PART = {"train": 8_999, "heldout": 1_000}
_ENTAILED = ("entailment", "neutral", "contradiction")

DATASETS: dict[str, Published] = {
    "glue/cola": _glue(
        "cola",
        ("sentence", ""),
        ("unacceptable", "acceptable"),
        (8_551, 1_043, 1_063),
        metric="matthews",
    ),
    "glue/sst2": _glue("sst2", ("sentence", ""), ("negative", "positive"), (67_349, 872, 1_821)),
    "glue/mrpc": _glue(
        "mrpc",
        _PAIR,
        ("not_equivalent", "equivalent"),
        (3_668, 408, 1_725),
        positive="equivalent",
    ),
    "glue/qqp": _glue(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        (363_846, 40_430, 390_965),
        positive="duplicate",
        sample=_PART,
    ),
    "glue/mnli": _glue(
        "mnli",
        ("premise", "hypothesis"),
        _ENTAILED,
        (392_702, 9_815, 9_796),
        kept="matched",
        sample=_PART,
    ),
    "glue/mnli-mm": _glue(
        "mnli-mm",
        ("premise", "hypothesis"),
        _ENTAILED,
        (392_702, 9_832, 9_847),
        kept="mismatched",
        sample=_PART,
    ),
    "glue/qnli": _glue(
        "qnli",
        ("question", "sentence"),
        _SAME,
        (104_743, 5_463, 5_463),
        sample=_PART | {"dev": 5_463, "test": 5_463},
    ),
    "glue/rte": _glue("rte", _PAIR, _SAME, (2_490, 277, 3_000)),
    "glue/wnli": _glue("wnli", _PAIR, _SAME[::-1], (635, 71, 146)),
    "glue/stsb": _glue("stsb", _PAIR, (), (5_749, 1_500, 1_379), kind="regression"),
    "imdb": _plain(
        "stanfordnlp/imdb",
        (PublishedTask("imdb", ("negative", "positive")),),
        (25_000, 25_000),
        "plain_text/SPLIT-00000-of-00001.parquet",
        ("imdb/train.jsonl.gz", "imdb/test.jsonl.gz"),
    ),
    "ag_news": _plain(
        "fancyzhx/ag_news",
        (PublishedTask("ag_news", ("World", "Sports", "Business", "Sci/Tech")),),
        (120_000, 7_600),
        "data/SPLIT-00000-of-00001.parquet",
        ("ag_news/train_subset.jsonl.gz", "ag_news/test.jsonl.gz"),
        sample={"train": 4_999, "test": 7_600},
    ),
    # Its main branch holds a loading script alone.
    "trec": _plain(
        "CogComp/trec",
        (
            PublishedTask("coarse", _COARSE, "coarse_label"),
            PublishedTask(
                "fine",
                tuple(f"{kind}:{name}" for kind in _COARSE for name in _FINE[kind].split()),
                "fine_label",
                "fine_label",
            ),
        ),
        (5_452, 500),
        "default/SPLIT/0000.parquet",
        ("trec/train.jsonl.gz", "trec/test.jsonl.gz"),
        revision="refs/convert/parquet",
    ),
}


def joined(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """AG News as the hub has it: title and description as one text."""
    for row in rows:
        fields = row.fields
        if isinstance(fields, Mapping) and "title" in fields and "text" not in fields:
            text = f"{fields['title']} {fields.get('description') or ''}".strip()
            row = RawRow(row.where, {**fields, "text": text})
        yield row
