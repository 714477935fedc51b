"""A run of the attention ensemble: adapters, then features, then combiners, whatever is missing.

    WORKDIR/adapters/MODULE    a run of its own for every module (or `attens.adapters`/MODULE)
    WORKDIR/features/TARGET    what base and modules see in the target's texts
    WORKDIR/combiners/NAME     what was trained on that
    WORKDIR/report.html …      of all targets

Each part goes on where it was stopped, and none is made twice. Source: Beiranvand et al. 2025.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.model_dir import ModelSource
from jaxclf.classifiers.heads import READ, inputs, whole_text_prediction
from jaxclf.core import locks, logs
from jaxclf.core.errors import InputError, Preempted, StorageError
from jaxclf.data.datasets import Dataset
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record, Task, has_gold
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.distributed.preemption import Interrupts
from jaxclf.ensemble import attens, features, fitting
from jaxclf.ensemble.attens import Combiner
from jaxclf.ensemble.features import AdaptedBase
from jaxclf.ensemble.fitting import Data, FeatureHead, combiner_of
from jaxclf.ensemble.modules import (
    FromPeft,
    Modules,
    load_data,
    own_base,
    scored_split,
    short,
)
from jaxclf.metrics import calibration, metrics
from jaxclf.models import registry
from jaxclf.models.registry import ModelConfig
from jaxclf.prompts.source import prompt_source
from jaxclf.runs import claims, facts
from jaxclf.training.losses import Term


@locks.holds_folder("workdir")
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
    if jax.process_count() > 1:
        raise InputError(
            "an ensemble runs in one process, on all of its devices; train large adapters with "
            "--distributed one by one, and name their folder in attens.adapters"
        )
    claims.check(workdir, config)
    with Interrupts():
        names = config.attens.targets or (config.data.name,)
        data = {name: load_data(config, name) for name in names}
        if base is None:
            claims.mark(workdir, config)
            base = own_base(config, workdir)
        modules = Modules(config, workdir, base, from_peft)
        base_is = modules.dimensions, modules.tokenizer
        targets = [_Target(config, name, data[name], *base_is) for name in names]
        tasks = tuple(task for target in targets for task in target.tasks)
        recipe = dataclasses.replace(targets[0].recipe, tasks=tasks)
        missing = modules.missing(names)
        claims.claim(workdir, config, _fingerprints(data), recipe)
    modules.train(missing)
    with Interrupts() as interrupts, sharding.use(config.mesh):
        seen = modules.open(modules.wanted(names))
        interrupts.hold()
        parts = [_Part(modules, target, seen, interrupts).finish() for target in targets]
        return _write(modules, parts, {features.BASE: seen.fingerprint, **seen.fingerprints})


def _fingerprints(data: Mapping[str, Dataset]) -> dict[str, str]:
    return {
        f"{name}/{split}": fingerprint
        for name, dataset in data.items()
        for split, fingerprint in dataset.fingerprints.items()
    }


# Targets ------------------------------------------------------------------------------------------


class _Target:
    """A data set whose tasks the modules are combined for."""

    def __init__(
        self,
        config: ConfigDict,
        name: str,
        dataset: Dataset,
        dimensions: ModelConfig,
        tokenizer: Tokenizer,
    ):
        self.name, self.dataset = name, dataset
        self.tasks = self.dataset.tasks
        for task in self.tasks:
            if task.kind not in ("class", "regression"):
                raise InputError(
                    f"task {task.name} is of kind {task.kind}; an ensemble combines vectors of "
                    "whole texts, for classes and numbers. Choose another data.task"
                )
        self.split = scored_split(self.dataset, config.eval.split)
        scored = registry.has_heads(config.model.output, dimensions)
        self.recipe = Recipe(
            tasks=self.tasks,
            prompt=None if scored else prompt_source(config, self.dataset, tokenizer)[0],
            slot_format=config.prompt.slots,
            max_length=config.train.max_length,
            max_new_tokens=0,
            seed=config.seed,
        )

    def records(self, split: str) -> list[Record]:
        """Those with all labels."""
        return [each for each in self.dataset.splits[split] if has_gold(each, self.tasks)]


class _Part:
    """All that is done for one target."""

    def __init__(
        self, modules: Modules, target: _Target, seen: AdaptedBase, interrupts: Interrupts
    ):
        self.run, self.target, self.seen, self.interrupts = modules, target, seen, interrupts
        self.metrics: dict[str, dict[str, float]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.calibration: dict[str, dict[str, Any]] = {}
        self.predictions: list[Prediction] = []
        self.combiners: dict[str, Any] = {}  # task → parameters of the one that answers
        self.history: list[dict[str, Any]] = []
        self.cut: dict[str, list[int]] = {}  # split → tokens cut from each text

    def finish(self) -> "_Part":
        """Features, then every task's combiners, their scores and what they attend to."""
        target = self.target
        vectors = {split: self.vectors(split) for split in ("train", target.split)}
        records = target.records(target.split)
        scores = {}
        for task in target.tasks:
            scores[task.name] = self.combine(task, vectors)
        self.predictions = _predictions(records, target.tasks, scores, self.cut[target.split])
        self.metrics = metrics.compute(self.predictions, target.tasks)
        wanted = self.run.config.eval.target_accuracy
        self.calibration = calibration.measure(self.predictions, target.tasks, {}, wanted)
        if "joint" in self.metrics and len(self.run.config.attens.targets) > 1:
            self.metrics[f"{short(target.name)} joint"] = self.metrics.pop("joint")
        return self

    def vectors(self, split: str) -> dict[str, np.ndarray]:
        """What base and modules see in a split's texts, from disk as far as it is there."""
        run, target = self.run, self.target
        folder = run.workdir / "features" / short(target.name) / split
        records = target.records(split)
        truncate = run.config.data.truncate
        examples = inputs(records, target.recipe, run.tokenizer, truncate=truncate)
        self.cut[split] = [each.cut for each in examples]
        names = [features.BASE, *self.seen.adapters]
        size = run.dimensions.hidden_size
        if need := features.need(folder, examples, names, size):
            free = shutil.disk_usage(run.workdir).free
            what = (
                f"features of {short(target.name)} {split}: {len(examples):,} texts, "
                f"{len(names)} vectors of {size} numbers each: {need / 2**20:,.1f} MiB on disk, of "
                f"{free / 2**20:,.1f} free"
            )
            if need > free:
                raise StorageError(f"{what}. Free some, or lower data.train_limit or attens.k")
            print(what, flush=True)
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
                sharding.divisible(run.config.eval.batch_size),
                run.pooling,
                progress,
            )

    def combine(self, task: Task, vectors: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
        """Train and score what is asked for one task; the scores [N, C] of the ensemble."""
        run, fields, target = self.run, self.run.config.attens, self.target
        combiner = combiner_of(run.config, run.dimensions.hidden_size, task)
        head = fitting.combiner_head(combiner)
        said: dict[str, Any] = {"split": target.split, "methods": {}, "by_k": {}}
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
            results = fitting.apply(function, data[target.split], run.config.eval.batch_size)
            scores, attention = results
            values = self.score(task, scores)
            said["by_k"][str(len(modules))] = values
            if k == fields.k:
                found = scores
                said["methods"]["AttEns"] = values
                said["modules"] = modules
                if fields.across == "modules":
                    said["attention"] = np.round(attention.mean(axis=0), 6).tolist()
                self.combiners[task.name] = params
                self.read_history(task, name)
        if fields.baselines:
            said["methods"] = self.baselines(task, vectors) | said["methods"]
        self.facts[task.name] = said
        return found

    def baselines(
        self, task: Task, vectors: Mapping[str, Mapping[str, np.ndarray]]
    ) -> dict[str, dict[str, float]]:
        """The untrained head, one layer on the frozen base, and the target's own adapter's run."""
        run, target = self.run, self.target
        head = fitting.layer_head(run.dimensions.hidden_size, max(1, len(task.labels)))
        data = {
            split: self.data(task, split, [arrays[features.BASE]])
            for split, arrays in vectors.items()
        }
        folder = f"{task.name}-ffn"
        start = fitting.random_start(head, run.config.seed, folder)
        trained = self.fit(folder, task, head, data["train"])
        found = {}
        for name, params in (("Model", start), ("FFN", trained)):
            results = fitting.apply(
                lambda rows, params=params: head.scores(params, rows),
                data[target.split],
                run.config.eval.batch_size,
            )
            found[name] = self.score(task, results)
        own = run.folder / short(target.name)
        if (own / report.REPORT).is_file():
            found["FT_LoRA"] = report.read(own)["eval"][task.name]
        return found

    def fit(self, name: str, task: Task, head: FeatureHead, data: Data) -> Any:
        run = self.run
        print(f"training {name} on {len(data):,} texts", flush=True)
        directory = run.workdir / "combiners" / name
        return fitting.fit(
            head, Term(task.kind), data, run.config, run.config.seed, directory, self.interrupts
        )

    def data(self, task: Task, split: str, arrays: Sequence[np.ndarray]) -> Data:
        gold = [record.labels[task.name] for record in self.target.records(split)]
        if task.kind == "regression":
            return Data(arrays, np.array(gold, np.float32))
        index = {label: number for number, label in enumerate(task.labels)}
        # A label that training never saw has no number; only features are read of such a text.
        return Data(arrays, np.array([index.get(str(label), -1) for label in gold], np.int32))

    def score(self, task: Task, scores: np.ndarray) -> dict[str, float]:
        records = self.target.records(self.target.split)
        cut = self.cut[self.target.split]
        predictions = _predictions(records, (task,), {task.name: scores}, cut)
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
    records: Sequence[Record],
    tasks: Sequence[Task],
    scores: Mapping[str, np.ndarray],
    cut: Sequence[int],
) -> list[Prediction]:
    """One a record, by the highest score of every task."""
    values = {task.name: np.asarray(READ[task.kind](scores[task.name])) for task in tasks}
    return [
        whole_text_prediction(
            record, tasks, {name: each[row] for name, each in values.items()}, cut[row]
        )
        for row, record in enumerate(records)
    ]


def _write(
    modules: Modules, parts: Sequence["_Part"], fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """The report of all targets, and their predictions, in the folder of the run.

    `fingerprints`: of the base and the modules by their names.
    """
    tasks = tuple(task for part in parts for task in part.target.tasks)
    sets = {part.target.name: part.target.dataset for part in parts}
    combiners = {name: params for part in parts for name, params in part.combiners.items()}
    total = sum(leaf.size for leaf in jax.tree.leaves(combiners))
    each_data = {
        part.target.name: facts.data_facts(
            part.target.dataset, split=part.target.split, predictions=part.predictions
        )
        for part in parts
    }
    data = {
        **{
            key: {name: found[key] for name, found in each_data.items()}
            for key in ("records", "skipped", "unseen_labels", "cut")
        },
        "name": ", ".join(sets),
        "notes": [
            f"{name}: {line}" for name, found in each_data.items() for line in found["notes"]
        ],
        "fingerprint": ", ".join(each.fingerprint for each in sets.values()),
        "tasks": report.describe_tasks(tasks),
    }
    model = {
        "name": modules.config.model.name,
        "family": modules.dimensions.family,
        "checkpoint": modules.config.model.checkpoint,
        "dimensions": dataclasses.asdict(modules.dimensions),
        "modules": [*map(short, modules.names)],
        "fingerprints": dict(fingerprints),
        "trained_parameters_of_the_combiners": total,
        "tokenizer": modules.tokenizer.fingerprint,
    }
    result = facts.describe(modules.config, data, model, {"device": facts.device()})
    result |= {
        "eval": {name: values for part in parts for name, values in part.metrics.items()},
        "eval_split": " and ".join(dict.fromkeys(part.target.split for part in parts)),
        "calibration": {
            name: figures for part in parts for name, figures in part.calibration.items()
        },
        "attens": {name: found for part in parts for name, found in part.facts.items()},
    }
    predictions = [each for part in parts for each in part.predictions]
    history = [row for part in parts for row in part.history]
    checkpoint = tree_store.fingerprint(tree_store.describe(combiners))
    methods = report.methods_table(result["attens"], tasks)
    facts.publish(modules.workdir, result, predictions, tasks, history, checkpoint, more=methods)
    return result
