"""A run of the attention ensemble: adapters, then features, then combiners, whatever is missing.

    WORKDIR/adapters/MODULE    a run of its own for every module (or `attens.adapters`/MODULE)
    WORKDIR/features/TARGET    what base and modules see in the target's texts
    WORKDIR/combiners/NAME     what was trained on that
    WORKDIR/report.html …      of all targets

Each part goes on where it was stopped, and none is made twice. Source: Beiranvand et al. 2025.
"""

import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf import attens, combining, features, logs, metrics, report, storage, transfer
from jaxclf.attens import Combiner, Pooling
from jaxclf.checkpoints import (
    ModelSource,
    check_base,
    load_adapters,
    read_model,
    resolve,
    write_base,
)
from jaxclf.classify import create_model, prompt_source
from jaxclf.combining import Data, Head
from jaxclf.data import datasets
from jaxclf.data.datasets import Dataset
from jaxclf.data.encode import encode
from jaxclf.data.loader import Examples
from jaxclf.data.tasks import Record, Task
from jaxclf.data.tokenize import Tokenizer, tokenize
from jaxclf.errors import InputError, Preempted
from jaxclf.features import Seen
from jaxclf.interrupts import Interrupts
from jaxclf.labels import Prediction
from jaxclf.losses import Term
from jaxclf.models import zoo
from jaxclf.models.encoder import EncoderConfig
from jaxclf.preparation import with_vocabulary
from jaxclf.scoring import READ, label_of
from jaxclf.training import claim, train

FromPeft = Callable[[Path, Path, str], None]  # (peft directory, new directory, base)

_PEFT_FILE = "adapter_config.json"


def short(name: str) -> str:
    """`"glue/rte" → "rte"`."""
    return name.rpartition("/")[2]


def train_ensemble(
    config: ConfigDict,
    workdir: Path,
    base: ModelSource | None = None,
    from_peft: FromPeft | None = None,
) -> dict[str, Any]:
    """Run or resume the ensemble in `workdir`; returns the report.

    `base`: the converted checkpoint that `config.model.checkpoint` names, if it names one.
    `from_peft` converts adapters of the peft library. Raises what `training.train` raises.
    """
    claim(workdir, config)
    with Interrupts():
        targets = [_Target(config, name) for name in config.attens.targets or (config.data.name,)]
        if base is None:
            base = _own_base(config, workdir)
    run = _Ensemble(config, workdir, base, from_peft)
    run.train_adapters([target.name for target in targets])
    with Interrupts() as interrupts:
        seen = run.open_adapters()
        interrupts.hold()
        parts = [_Part(run, target, seen, interrupts).finish() for target in targets]
        return run.write(parts)


# Adapters -----------------------------------------------------------------------------------------


class _Ensemble:
    """What the parts share: settings, folders, base and modules."""

    def __init__(
        self, config: ConfigDict, workdir: Path, base: ModelSource, from_peft: FromPeft | None
    ):
        self.config, self.workdir, self.base, self.from_peft = config, workdir, base, from_peft
        fields = config.attens
        self.folder = Path(fields.adapters) if fields.adapters else workdir / "adapters"
        self.modules = tuple(fields.modules)
        if len({*map(short, self.modules)}) < len(self.modules):
            raise InputError(f"attens.modules names a module twice: {', '.join(self.modules)}")
        for k in (fields.k, *fields.sweep):
            if k > len(self.modules):
                raise InputError(
                    f"attens.k or attens.sweep asks for {k} modules; attens.modules names "
                    f"{len(self.modules)}"
                )
        self.dimensions, _ = read_model(base.model_json)
        if self.dimensions.hidden_size % fields.heads:
            raise InputError(
                f"attens.heads is {fields.heads}; expected a divisor of the model's size, which is "
                f"{self.dimensions.hidden_size}"
            )
        self.pooling = Pooling(fields.tokens, fields.padding)
        self.tokenizer = Tokenizer.load(base.tokenizer_dir)

    def train_adapters(self, targets: Sequence[str]) -> None:
        """A run for every module that has none yet; with baselines, for targets as well."""
        extra = targets if self.config.attens.baselines else ()
        names = list(dict.fromkeys((*self.modules, *extra)))
        for number, name in enumerate(names):
            folder = self.folder / short(name)
            if (folder / _PEFT_FILE).is_file() or (folder / "report.json").is_file():
                continue
            print(f"adapter {number + 1} of {len(names)}: {short(name)}", flush=True)
            train(self.adapter_config(name), folder, self.base)

    def adapter_config(self, name: str) -> ConfigDict:
        """The settings of a module's own run, which nothing of the combiner's changes."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            del config["attens"]
            config.data.name, config.data.task = name, "both"
            # Two modules of the same texts (MNLI's) are two modules by their seeds alone.
            config.seed = 1_000 * config.seed + zlib.crc32(name.encode()) % 1_000
            config.eval.split = scored_split(datasets.load(config.data), config.eval.split)
            if not config.model.checkpoint:
                # The zoo's dimensions with a vocabulary of the run's own.
                config.model.name, config.model.checkpoint = "", str(self.base.model_json.parent)
        return config.lock()

    def open_adapters(self) -> Seen:
        """Base and modules in memory; raises ArtifactError where a module has another base."""
        dimensions = self.dimensions
        if isinstance(dimensions, EncoderConfig):
            dimensions = dataclasses.replace(dimensions, heads=(), pooler=False)
        model = create_model(self.config, dimensions)
        plan = transfer.plan(model, self.base, "new")
        params = transfer.load(model, self.base, plan, jax.random.key(0))
        found, fingerprints = {}, {}
        for name in map(short, self.modules):
            source = self.find_adapters(name)
            assert source.adapters is not None
            check_base(source.adapters, self.base, self.folder / name)
            own, _ = read_model(source.model_json)
            found[name] = load_adapters(source, create_model(self.config, own).abstract)
            spec = json.dumps(dataclasses.asdict(source.adapters.spec), sort_keys=True)
            fingerprints[name] = f"{storage.fingerprint(source.manifest)} {spec}"
        return Seen(model, params, storage.fingerprint(self.base.manifest), found, fingerprints)

    def find_adapters(self, name: str) -> ModelSource:
        """The last checkpoint of a module's run, or a peft directory converted."""
        folder = self.folder / name
        if (folder / _PEFT_FILE).is_file():
            converted = self.workdir / "converted" / name
            if not converted.is_dir():
                if self.from_peft is None:
                    raise InputError(
                        f"{folder} is a directory of peft; convert it with python -m "
                        "conversion.from_peft first"
                    )
                self.from_peft(folder, converted, str(self.base.model_json.parent))
            folder = converted
        source = resolve(folder, "last")
        if source.adapters is None:
            raise InputError(
                f"{folder} holds a whole model; attens.adapters expects adapters, such as those of "
                "a run with tune=lora"
            )
        return source

    def chosen(self, target: str, k: int) -> list[str]:
        """The k modules combined for a target, as listed: its own first, then the others in order.

        0: all of them.
        """
        ordered = sorted(self.modules, key=lambda name: name != target)
        kept = ordered[: k or len(ordered)]
        return [short(name) for name in self.modules if name in kept]

    def write(self, parts: Sequence["_Part"]) -> dict[str, Any]:
        """The report of all targets, and their predictions, in the folder of the run."""
        tasks = tuple(task for part in parts for task in part.target.tasks)
        sets = {part.target.name: part.target.dataset for part in parts}
        total = sum(part.combiner_size * len(part.target.tasks) for part in parts)
        result = {
            "config": self.config.to_dict(),
            "data": {
                "name": ", ".join(sets),
                "records": {
                    name: {split: len(found) for split, found in each.splits.items()}
                    for name, each in sets.items()
                },
                "fingerprints": {name: each.fingerprint for name, each in sets.items()},
                "tasks": {
                    task.name: {"kind": task.kind, "labels": list(task.labels)} for task in tasks
                },
            },
            "model": {
                "name": self.config.model.name,
                "family": zoo.family_of(self.dimensions),
                "checkpoint": self.config.model.checkpoint,
                "dimensions": dataclasses.asdict(self.dimensions),
                "modules": [*map(short, self.modules)],
                "trained_parameters_of_the_combiners": total,
                "tokenizer": self.tokenizer.fingerprint,
            },
            "train": {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"},
            "eval": {name: values for part in parts for name, values in part.metrics.items()},
            "eval_split": " and ".join(dict.fromkeys(part.target.split for part in parts)),
            "attens": {name: facts for part in parts for name, facts in part.facts.items()},
            "versions": report.versions(),
        }
        predictions = [each for part in parts for each in part.predictions]
        history = [row for part in parts for row in part.history]
        report.write(self.workdir, result, predictions, tasks, history)
        print(report.table(result))
        print(report.methods_table(result["attens"], tasks))
        print(f"report: {self.workdir / 'report.html'}")
        return result


def scored_split(dataset: Dataset, wanted: str) -> str:
    """The wanted split where it has labels, else the held-out or the test split.

    Raises InputError where none has.
    """
    for split in (wanted, "heldout", "test"):
        if any(_has_gold(record, dataset.tasks) for record in dataset.splits.get(split, ())):
            return split
    raise InputError(f"data set {dataset.name} has no split with labels to score")


def _own_base(config: ConfigDict, workdir: Path) -> ModelSource:
    """A random base with a tokenizer trained on all texts, which the run keeps."""
    own = workdir / "base"
    if not (own / "tokenizer").is_dir():
        shutil.rmtree(own, ignore_errors=True)
        texts: list[str] = []
        for name in (*config.attens.modules, *(config.attens.targets or (config.data.name,))):
            train_split = _load(config, name).splits["train"]
            texts += [text for each in train_split for text in (each.text, each.pair) if text]
        tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
        model = create_model(config, with_vocabulary(zoo.find(config.model.name), tokenizer, None))
        params = jax.jit(model.init)(jax.random.key(config.seed))
        write_base(own, params, model.config, config.model.param_dtype, config.model.quantise)
        tokenizer.save(own / "tokenizer.partial")
        (own / "tokenizer.partial").rename(own / "tokenizer")
    return resolve(own)


# Targets ------------------------------------------------------------------------------------------


class _Target:
    """A data set whose tasks the modules are combined for."""

    def __init__(self, config: ConfigDict, name: str):
        self.name = name
        self.dataset = _load(config, name)
        self.tasks = self.dataset.tasks
        for task in self.tasks:
            if task.kind not in ("class", "regression"):
                raise InputError(
                    f"task {task.name} is of kind {task.kind}; an ensemble combines vectors of "
                    "whole texts, for classes and numbers. Choose another data.task"
                )
        self.split = scored_split(self.dataset, config.eval.split)

    def records(self, split: str) -> list[Record]:
        """Those with all labels."""
        return [each for each in self.dataset.splits[split] if _has_gold(each, self.tasks)]


def _load(config: ConfigDict, name: str) -> Dataset:
    fields = config.data.copy_and_resolve_references()
    with fields.unlocked():
        if name != fields.name:
            fields.name, fields.task = name, "both"
    return datasets.load(fields)


def _has_gold(record: Record, tasks: Iterable[Task]) -> bool:
    return all(record.labels.get(task.name) is not None for task in tasks)


class _Part:
    """All that is done for one target."""

    def __init__(self, run: _Ensemble, target: _Target, seen: Seen, interrupts: Interrupts):
        self.run, self.target, self.seen, self.interrupts = run, target, seen, interrupts
        self.metrics: dict[str, dict[str, float]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.predictions: list[Prediction] = []
        self.history: list[dict[str, Any]] = []
        self.combiner_size = 0

    def finish(self) -> "_Part":
        """Features, then every task's combiners, their scores and what they attend to."""
        target = self.target
        vectors = {split: self.vectors(split) for split in ("train", target.split)}
        records = target.records(target.split)
        scores = {}
        for task in target.tasks:
            scores[task.name] = self.combine(task, vectors)
        self.predictions = _predictions(records, target.tasks, scores)
        self.metrics = metrics.compute(self.predictions, target.tasks)
        if "joint" in self.metrics and len(self.run.config.attens.targets) > 1:
            self.metrics[f"{short(target.name)} joint"] = self.metrics.pop("joint")
        return self

    def vectors(self, split: str) -> dict[str, np.ndarray]:
        """What base and modules see in a split's texts, from disk as far as it is there."""
        run, target = self.run, self.target
        folder = run.workdir / "features" / short(target.name) / split
        records = target.records(split)
        examples = self.examples(records)
        names = [features.BASE, *self.seen.adapters]
        size = run.dimensions.hidden_size
        if need := features.need(folder, examples, names, size):
            free = shutil.disk_usage(run.workdir).free
            print(
                f"features of {short(target.name)} {split}: {len(examples):,} texts, "
                f"{len(names)} vectors of {size} numbers each: {need / 2**20:,.1f} MiB on disk "
                f"({free / 2**30:,.1f} GiB free)",
                flush=True,
            )
        with logs.count(f"features of {short(target.name)} {split}", len(examples)) as advance:

            def progress(count: int) -> None:
                advance(count)
                if self.interrupts.requested:
                    raise Preempted(
                        "stopped by SIGTERM while computing features, which are kept. The same "
                        "command goes on with them"
                    )

            return features.load(
                folder,
                self.seen,
                examples,
                run.config.eval.batch_size,
                run.pooling,
                progress,
            )

    def examples(self, records: Sequence[Record]) -> Examples:
        """The texts as the base reads them; of a decoder without answers."""
        config, tasks = self.run.config, self.target.tasks
        slot_format, length = config.prompt.slots, config.train.max_length
        if isinstance(self.run.dimensions, EncoderConfig):
            return encode(
                records,
                tasks,
                self.run.tokenizer,
                slot_format,
                length,
                truncate=config.data.truncate,
            )
        if any(record.pair for record in records):
            raise InputError(
                f"{self.target.name} has pairs of texts, which prompts have no place for; choose "
                "an encoder as model"
            )
        _, source = prompt_source(config, self.target.dataset)
        bare = [dataclasses.replace(record, labels={}) for record in records]
        return tokenize(bare, tasks, source, self.run.tokenizer, slot_format, length)

    def combine(self, task: Task, vectors: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
        """Train and score what is asked for one task; the scores [N, C] of the ensemble."""
        run, fields, target = self.run, self.run.config.attens, self.target
        classes, size = max(1, len(task.labels)), run.dimensions.hidden_size
        combiner = Combiner(
            size, classes, fields.heads, fields.over, fields.combine, fields.norms, fields.across
        )
        head = combining.combiner_head(combiner)
        facts: dict[str, Any] = {"split": target.split, "methods": {}, "by_k": {}}
        found = np.zeros(0)
        for k in dict.fromkeys((fields.k, *fields.sweep)):
            modules = run.chosen(target.name, k)
            data = {
                split: self.data(task, split, [arrays[name] for name in (features.BASE, *modules)])
                for split, arrays in vectors.items()
            }
            name = f"{task.name}-{len(modules)}"
            params = self.fit(name, task, head, data["train"])
            function = _with_attention(combiner, params)
            results = combining.apply(function, data[target.split], run.config.eval.batch_size)
            scores, attention = results
            values = self.score(task, scores)
            facts["by_k"][str(len(modules))] = values
            if k == fields.k:
                found = scores
                facts["methods"]["AttEns"] = values
                facts["modules"] = modules
                if fields.across == "modules":
                    facts["attention"] = np.round(attention.mean(axis=0), 6).tolist()
                self.combiner_size = sum(leaf.size for leaf in jax.tree.leaves(params))
                self.read_history(task, name)
        if fields.baselines:
            facts["methods"] = self.baselines(task, vectors) | facts["methods"]
        self.facts[task.name] = facts
        return found

    def baselines(
        self, task: Task, vectors: Mapping[str, Mapping[str, np.ndarray]]
    ) -> dict[str, dict[str, float]]:
        """The untrained head, one layer on the frozen base, and the target's own adapter's run."""
        run, target = self.run, self.target
        head = combining.layer_head(run.dimensions.hidden_size, max(1, len(task.labels)))
        data = {
            split: self.data(task, split, [arrays[features.BASE]])
            for split, arrays in vectors.items()
        }
        start = jax.jit(head.init)(jax.random.key(run.config.seed))
        trained = self.fit(f"{task.name}-ffn", task, head, data["train"])
        found = {}
        for name, params in (("Model", start), ("FFN", trained)):
            results = combining.apply(
                lambda rows, params=params: head.scores(params, rows),
                data[target.split],
                run.config.eval.batch_size,
            )
            found[name] = self.score(task, results)
        path = run.folder / short(target.name) / "report.json"
        if path.is_file():
            found["FT_LoRA"] = storage.read_json(path)["eval"][task.name]
        return found

    def fit(self, name: str, task: Task, head: Head, data: Data) -> Any:
        run = self.run
        print(f"training {name} on {len(data):,} texts", flush=True)
        directory = run.workdir / "combiners" / name
        return combining.fit(
            head, Term(task.kind), data, run.config, run.config.seed, directory, self.interrupts
        )

    def data(self, task: Task, split: str, arrays: Sequence[np.ndarray]) -> Data:
        gold = [record.labels[task.name] for record in self.target.records(split)]
        if task.kind == "regression":
            return Data(arrays, np.array(gold, np.float32))
        index = {label: number for number, label in enumerate(task.labels)}
        return Data(arrays, np.array([index[str(label)] for label in gold], np.int32))

    def score(self, task: Task, scores: np.ndarray) -> dict[str, float]:
        records = self.target.records(self.target.split)
        predictions = _predictions(records, (task,), {task.name: scores})
        return metrics.compute(predictions, (task,))[task.name]

    def read_history(self, task: Task, name: str) -> None:
        """The losses of a combiner, by its task where there are several."""
        rows = logs.read_metrics(self.run.workdir / "combiners" / name)
        several = len(self.run.config.attens.targets) > 1 or len(self.target.tasks) > 1
        ending = f" {task.name}" if several else ""
        self.history += [
            {"step": row["step"], f"train/loss{ending}": row["train/loss"]} for row in rows
        ]


def _with_attention(combiner: Combiner, params: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Features → scores and, where modules attend to modules, the mean over heads `[B, A, A]`."""

    def function(rows: Any):
        scores, weights = attens.combine(combiner, params, rows)
        within = combiner.across == "modules"
        return scores, weights.mean(axis=1) if within else scores

    return function


def _predictions(
    records: Sequence[Record], tasks: Sequence[Task], scores: Mapping[str, np.ndarray]
) -> list[Prediction]:
    """One a record, by the highest score of every task."""
    values = {task.name: np.asarray(READ[task.kind](scores[task.name])) for task in tasks}
    return [
        Prediction(
            record.id,
            record.text,
            {task.name: record.labels[task.name] for task in tasks},
            {task.name: label_of(task, task.labels, values[task.name][row]) for task in tasks},
            scores={
                task.name: dict(
                    zip(task.labels or ("value",), map(float, values[task.name][row]), strict=True)
                )
                for task in tasks
            },
        )
        for row, record in enumerate(records)
    ]
