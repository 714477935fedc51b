"""Fine-tuning from config to report: set up, step, evaluate on dev, save, score the test split."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.adapters import tuning
from jaxclf.adapters.tuning import Adapted, Whole
from jaxclf.checkpoint import model_files, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.checkpoint.model_dir import (
    AdapterInfo,
    ModelSource,
    adapters_text,
    check_base,
    read_adapters,
    resolve,
    write_base,
)
from jaxclf.classifiers import transfer
from jaxclf.classifiers.opening import make_classifier
from jaxclf.config.rules import LARGEST
from jaxclf.core import streams
from jaxclf.core.errors import ArtifactError, InputError, NonFiniteError, Preempted
from jaxclf.core.logs import Logger, read_metrics
from jaxclf.core.types import Params
from jaxclf.data import batching, datasets, loader
from jaxclf.data.loader import Examples
from jaxclf.data.predictions import Prediction
from jaxclf.data.prefixes import NONE, SharedPrefixes
from jaxclf.data.splits import spread
from jaxclf.data.tasks import Record
from jaxclf.distributed import peers, processes, sharding
from jaxclf.distributed.preemption import Interrupts
from jaxclf.metrics import calibration
from jaxclf.models.t5 import T5Config
from jaxclf.runs import claims, facts
from jaxclf.runs.distillation import Lessons
from jaxclf.runs.setup import Setup, prepare
from jaxclf.runs.teacher import OpenTeacher
from jaxclf.training import optim
from jaxclf.training.train_step import Metrics, TrainState, init_state, make_train_step


def train(
    config: ConfigDict,
    workdir: Path,
    base: ModelSource | None = None,
    open_teacher: OpenTeacher | None = None,
) -> dict[str, Any]:
    """Run or resume the experiment in `workdir`; returns the report.

    `base`: the converted checkpoint that `config.model.checkpoint` names, if it names one.
    `open_teacher`: opens what `config.distil.teacher` names.
    Raises InputError for a config or data that cannot be trained on, or a workdir of another run;
    NonFiniteError, Preempted, ArtifactError and OSError as their names say. What was saved before
    stays good in each case.
    """
    tuning.check_trains(config)
    with Interrupts() as interrupts, sharding.use(config.mesh), processes.owned(workdir):
        with processes.first_then_others("prepare"):
            claims.check(workdir, config)
            _check_rows(config)
            setup = prepare(config, workdir, base)
            lessons = _lessons(config, workdir, setup, open_teacher)
            best = facts.best_metric(config, setup.dataset.tasks)
            counted = with_steps(config, setup.examples, setup.shared)
            _tuning(config, setup)  # names modules and layers that must be there
            claims.claim_for(workdir, config, setup)
        peers.agree("data", setup.fingerprints(base))
        config, taught = counted, {}
        if lessons is not None:
            with processes.first_then_others("teacher"):
                setup, taught = lessons.learned()
        with Checkpoints(workdir, config.train.keep, *best) as checkpoints:
            run = _Run(config, workdir, setup, checkpoints, interrupts, taught)
            run.start(base)
            interrupts.hold()
            with (
                processes.own_folder(workdir) as folder,
                Logger(
                    folder, config.train.steps, run.step, every=config.train.logging_steps
                ) as log,
            ):
                run.fit(log)
                return run.finish(log)


def _lessons(
    config: ConfigDict, workdir: Path, setup: Setup, open_teacher: OpenTeacher | None
) -> Lessons | None:
    """What is learned from a teacher; None where there is none."""
    if not config.distil.teacher:
        return None
    if open_teacher is None:
        raise InputError(
            f"distil.teacher is {config.distil.teacher!r}; here nothing is learned from a teacher. "
            "Use python -m jaxclf.train"
        )
    return Lessons(config, workdir, setup, claims.is_begun(workdir), open_teacher)


def _tuning(config: ConfigDict, setup: Setup) -> Whole | Adapted:
    """What is trained of the model; raises InputError where the config names what it has not."""
    used = config.train.vocabulary == "used"
    tokens = loader.used_tokens(setup.examples) if used else None
    if tokens is not None and isinstance(setup.model.config, T5Config):
        tokens = np.union1d(tokens, setup.model.config.start_id)  # what its decoder reads first
    return tuning.choose(config, setup.model.abstract, tokens)


def _check_rows(config: ConfigDict) -> None:
    """Raise InputError where the rows of a step cannot be divided over the mesh."""
    train, parts = config.train, sharding.rows()
    if train.batch_size % (parts * train.gradient_accumulation_steps):
        raise InputError(
            f"train.batch_size is {train.batch_size:,}; expected a multiple of {parts:,} (mesh.data"
            " times mesh.fsdp: the devices that share a step's rows) times "
            f"train.gradient_accumulation_steps, {train.gradient_accumulation_steps:,}. Raise it, "
            "or lower mesh.fsdp and raise mesh.tensor"
        )


def with_steps(config: ConfigDict, examples: Examples, shared: SharedPrefixes = NONE) -> ConfigDict:
    """The config with `train.steps` for as many `train.epochs`, where these are set.

    Of packed rows the steps are about as many: those that hold all tokens, less the `shared`
    prefixes, if the rows are full.
    """
    train = config.train
    if not train.epochs:
        return config
    share = len(examples) / train.batch_size
    if train.pack:
        rows = (batching.row(example, shared) for example in examples)
        tokens = sum(len(row["tokens"]) for row in rows)
        share = tokens / ((train.row_length or train.max_length) * train.batch_size)
    steps = math.ceil(train.epochs * share)
    if steps > LARGEST:
        raise InputError(
            f"train.epochs is {train.epochs:g}, which makes {steps:,} steps; a run has "
            f"{LARGEST:,} at most. Lower it"
        )
    counted = config.copy_and_resolve_references()
    with counted.unlocked():
        counted.train.steps = steps
    return counted


class _Run:
    """The loop's state between its parts: start, fit, finish."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        setup: Setup,
        checkpoints: Checkpoints,
        interrupts: Interrupts,
        taught: Mapping[str, Any],
    ):
        self.config, self.workdir, self.setup = config, workdir, setup
        self.taught = taught  # what the report says of the teacher
        self.checkpoints, self.interrupts = checkpoints, interrupts
        self.classifier = make_classifier(setup.model, setup.tokenizer, setup.recipe, config)
        self.tuning = _tuning(config, setup)
        self.optimizer = optim.optimizer(config.train, config.lora.loraplus_lr_ratio)
        self.step_function = make_train_step(
            setup.model,
            self.tuning,
            self.optimizer,
            optim.schedule(config.train),
            setup.objective,
            may_skip=config.train.max_skipped > 0,
            prng=config.train.prng,
            average_decay=config.train.average_decay,
        )
        self.averages = config.train.average != "none"
        self.batches = loader.train_batches(
            setup.examples,
            batch_size=config.train.batch_size,
            seed=config.seed,
            row_length=(config.train.row_length or config.train.max_length)
            if config.train.pack
            else 0,
            like_lengths=config.train.group_by_length,
            shared=setup.shared,
            groups=config.train.gradient_accumulation_steps,
            max_shapes=config.train.max_shapes,
        )
        # Of steps, since this process started.
        self.seconds = self.examples = self.tokens = self.saved_tokens = 0.0
        self.loss: float | None = None  # the last one read
        self.decoding: dict[str, Any] = {}  # how the labels of the last predictions came out

    # -- parameters and state

    def start(self, base: ModelSource | None) -> None:
        """Parameters and optimizer from the run's last checkpoint, the base, or a random start."""
        seed = self.config.seed
        model, key = self.setup.model, streams.key(seed, streams.INITIALIZATION)
        of_adapters, of_dropout = streams.key(seed, "adapters"), streams.key(seed, "dropout")
        tuned, latest = self.tuning, self.checkpoints.latest_step()
        if isinstance(tuned, Adapted):
            base = self.frozen_base(base, key)
        self.plan = transfer.plan(model, base, self.config.model.heads, self.setup.recipe)
        params = None
        if latest is None or isinstance(tuned, Adapted):
            params = transfer.load(model, base, self.plan, key)
        if latest is None:
            assert params is not None
            trained, self.frozen = sharding.put(tuned.start(params, of_adapters))
            self.state = sharding.born(
                lambda t, k: init_state(t, self.optimizer, k, self.averages),
                trained,
                of_dropout,
            )
            self.step = self.resumed = 0
            self.compile()
            return
        stored = sharding.abstract(tuned.abstract(model.abstract))
        abstract = jax.eval_shape(
            lambda stored, params: init_state(
                tuned.resume(stored, params)[0],
                self.optimizer,
                of_dropout,
                self.averages,
            ),
            stored,
            params,
        )
        state = sharding.abstract(self.beside_the_kept(abstract))
        restored = self.checkpoints.restore(latest, stored, state)
        trained, self.frozen = sharding.put(tuned.resume(restored.params, params))
        self.state: TrainState = restored.state
        if not self.averages:
            self.state = self.state._replace(trained=trained)
        try:
            self.batches.set_state(restored.iterator_state)
        except ArtifactError as error:
            raise ArtifactError(f"{self.workdir}, step {latest:,}: {error}") from error
        self.step = self.resumed = latest
        self.compile()

    def compile(self) -> None:
        """The step as one program, whose results lie where its arguments lay."""
        results = sharding.shardings(self.state), sharding.whole()
        self.train_step = jax.jit(self.step_function, donate_argnums=0, out_shardings=results)

    def frozen_base(self, base: ModelSource | None, key) -> ModelSource:
        """The base of the adapters, checked against the run's adapters.json, which it writes once.

        A base that starts at random has no other place to be found again: the run keeps it.
        """
        if base is None:
            own = self.workdir / "base"
            if not own.is_dir():
                self.write_base(own, key)
            base = resolve(own)
        path = self.workdir / "adapters.json"
        if path.is_file():
            check_base(read_adapters(path), base, self.workdir)
        else:
            assert isinstance(self.tuning, Adapted)
            fingerprint = tree_store.fingerprint(base.manifest)
            info = AdapterInfo(self.tuning.spec, self.config.model.checkpoint, fingerprint)
            if processes.is_first():
                model_files.replace(self.workdir, {path.name: adapters_text(info)})
        return base

    def write_base(self, directory: Path, key) -> None:
        model, fields = self.setup.model, self.config.model
        if jax.process_count() > 1:
            raise InputError(
                "adapters of several processes need a base on disk: set model.checkpoint"
            )
        params = sharding.born(model.init, key)
        write_base(directory, params, model.config, fields.param_dtype, fields.quantize)

    def params(self) -> Params:
        """The parameters that label: the whole tree as it is now, adapters bound to it."""
        return self.tuning.join(self.state.evaluated, self.frozen)

    def beside_the_kept(self, state: TrainState) -> TrainState:
        """What a checkpoint has to hold beside the kept parameters: what these are not."""
        return state if self.averages else state._replace(trained=None)

    def save(self, scores: dict[str, float], scheduled: bool) -> None:
        """Save the state after the current step; `scheduled`: see `Checkpoints.save`."""
        self.checkpoints.save(
            self.step,
            self.tuning.stored(self.state.evaluated, self.frozen),
            self.beside_the_kept(self.state),
            self.batches.get_state(),
            scores,
            scheduled,
        )

    # -- the loop

    def fit(self, logger: Logger) -> None:
        """Step until `train.steps`, with evaluations and checkpoints at their intervals."""
        train = self.config.train
        if self.step:
            logger.say(f"resumed at step {self.step:,}")
        self.say_what_was_loaded(logger)
        facts.say_data(self.config, self.setup.dataset, self.setup.examples, logger.say)
        self.warn_of_long_texts(logger)
        if self.step:
            self.make_up(logger)
        late: Metrics | None = None  # the previous step's, read while the device computes this one
        mark = time.perf_counter()
        while self.step < train.steps and not self.is_stale(logger):
            batch = next(self.batches)
            with jax.transfer_guard("disallow"):  # but for what is handed over by name
                device_batch = sharding.put_batch(
                    _micro_batches(batch, train.gradient_accumulation_steps), axis=1
                )
                self.state, step_metrics = self.train_step(self.state, self.frozen, device_batch)
            if late is not None:
                self.read(late, self.step, logger)
            late = step_metrics
            self.step += 1
            self.count(batch, logger)

            self.interrupts.reached(self.step)
            evaluates = self.evaluates()
            scheduled = evaluates or _due(self.step, train.save_steps, train.steps)
            if scheduled or self.stopping():
                self.read(step_metrics, self.step, logger)  # nothing that went wrong is saved
                late = None
                self.seconds += time.perf_counter() - mark
                scores = self.evaluate_dev(logger) if evaluates and not self.stopping() else {}
                if scores:
                    self.log_dev(scores, logger)
                self.save(scores, scheduled)
                if self.stopping():
                    self.stop()
                mark = time.perf_counter()
        self.checkpoints.wait()

    def make_up(self, logger: Logger) -> None:
        """Do what the run that saved this step was stopped before: its evaluation, or the rest."""
        self.checkpoints.prune()
        if not self.evaluates():
            return
        scores = self.checkpoints.metrics(self.step)
        if not scores:
            logger.say(f"step {self.step:,} was saved without its evaluation on dev, made up now")
            scores = self.evaluate_dev(logger)
            if not scores:
                self.stop()
            self.checkpoints.evaluated(self.step, scores)
        rows = read_metrics(self.workdir)
        if not any(row["step"] == self.step and "dev/score" in row for row in rows):
            self.log_dev(scores, logger)

    def stop(self) -> NoReturn:
        """End the run, whose current step is saved."""
        self.checkpoints.wait()
        raise Preempted(
            f"stopped by SIGTERM; saved step {self.step:,} of {self.config.train.steps:,}. The "
            "same command resumes"
        )

    def say_what_was_loaded(self, logger: Logger) -> None:
        """Name what the checkpoint does not have, and what it has in vain."""
        if self.plan.new:
            logger.say(f"started at random: {', '.join(self.plan.new)}")
        if self.plan.unused:
            logger.say(f"unused in the checkpoint: {', '.join(self.plan.unused)}")
        for note in self.plan.notes:
            logger.say(note)

    def warn_of_long_texts(self, logger: Logger) -> None:
        """Say how many examples go beyond the positions that the model was made for."""
        limit = self.setup.model.config.max_position
        long = sum(len(batching.row(example)["tokens"]) > limit for example in self.setup.examples)
        if long:
            logger.say(
                f"warning: {long:,} training examples are longer than the {limit:,} positions of "
                f"{self.config.model.name}; a lower train.max_length cuts them"
            )

    def stopping(self) -> bool:
        return self.interrupts.requested

    def count(self, batch, logger: Logger) -> None:
        """Add a batch to the throughput figures and the progress bar."""
        tokens = int(np.count_nonzero(batch.segment_ids))
        if batch.prefixes is not None:
            tokens += int(np.count_nonzero(batch.prefixes.numbers))
            self.saved_tokens += self.setup.shared.saved(
                batch.prefixes.seen,
                batch.segment_ids,
                self.config.train.gradient_accumulation_steps,
            )
        examples = int(batch.segment_ids.max(axis=-1).sum())
        self.tokens += tokens
        self.examples += examples
        logger.advance(self.step, examples=examples, tokens=tokens, loss=self.loss)

    def read(self, step_metrics: Metrics, step: int, logger: Logger) -> None:
        """Log a step's metrics, or raise NonFiniteError where too many went wrong in a row."""
        values = jax.device_get(step_metrics)
        self.loss = float(values.loss)
        allowed = self.config.train.max_skipped
        if values.skipped:
            if values.skipped > allowed:
                raise NonFiniteError(
                    f"step {step:,}: loss {values.loss}, gradient norm {values.gradient_norm}; "
                    f"{int(values.skipped)} step(s) in a row were not finite and train.max_skipped "
                    f"is {allowed}. Nothing of them is saved. Lower train.learning_rate or look "
                    "at the data of that step"
                )
            logger.say(f"step {step:,} skipped: loss {values.loss}")
        if step % self.config.train.logging_steps == 0 or step == self.config.train.steps:
            shown = {
                "train/loss": float(values.loss),
                "train/accuracy": float(values.accuracy),
                "train/gradient_norm": float(values.gradient_norm),
                "train/learning_rate": float(values.learning_rate),
            }
            if math.isnan(values.accuracy):  # of numbers there is none
                del shown["train/accuracy"]
            logger.metrics(step, shown)

    # -- evaluation

    def is_stale(self, logger: Logger) -> bool:
        """Whether the best evaluation on dev lies `train.patience` evaluations back, which it says.

        It follows from what is saved alone, so that a resumed run ends where it would have.
        """
        train = self.config.train
        best = self.checkpoints.best_scored() if train.patience else None
        if best is None:
            return False
        since = self.step // train.eval_steps - best // train.eval_steps
        if since >= train.patience:
            logger.say(
                f"ended at step {self.step:,} of {train.steps:,}: {since} evaluations on dev were "
                f"worse than that of step {best:,} (train.patience)"
            )
        return since >= train.patience

    def evaluates(self) -> bool:
        """Whether the current step is to be scored on dev."""
        train = self.config.train
        return _due(self.step, train.eval_steps, train.steps) and bool(self.dev_records())

    def dev_records(self) -> list[Record]:
        records = self.setup.dataset.splits.get("dev", [])
        limit = self.config.eval.limit
        return spread(records, limit) if limit else records

    def evaluate_dev(self, logger: Logger) -> dict[str, float]:
        """Flat metrics on the dev split; empty when asked to stop meanwhile."""
        records = self.dev_records()
        try:
            predictions = self.predict(self.params(), records, "dev", logger)
        except _Stopped:
            return {}
        return facts.dev_metrics(predictions, self.setup.dataset.tasks, self.config.prompt.slots)

    def log_dev(self, values: Mapping[str, float], logger: Logger) -> None:
        logger.metrics(self.step, {f"dev/{name}": value for name, value in values.items()})

    def predict(self, params: Params, records: Sequence[Record], split: str, logger: Logger):
        """Predictions with progress; raises _Stopped when the run is asked to stop."""
        done = 0
        with logger.task(f"{split} evaluation", len(records)) as advance:

            def progress(count: int) -> None:
                nonlocal done
                done += count
                advance(count)
                if self.stopping():
                    raise _Stopped

            # Not kept: they may be copies, which training has no room for.
            classifier = self.classifier.with_params(params)
            predictions = classifier.predict(
                records,
                self.config.eval.batch_size,
                prompt=self.setup.prompt,
                progress=progress,
            )
            self.decoding = classifier.facts()
            return predictions

    # -- the end

    def finish(self, logger: Logger) -> dict[str, Any]:
        """Score the evaluation split with the best checkpoint and write the report."""
        split = datasets.scored_split(self.setup.dataset, self.config.eval.split)
        records = self.setup.dataset.splits.get(split, [])
        best = self.checkpoints.best_step()
        params = self.params()
        if best is not None and best != self.step:
            abstract = sharding.abstract(self.tuning.abstract(self.setup.model.abstract))
            stored = self.checkpoints.restore_params(best, abstract)
            params = self.tuning.join(*self.tuning.resume(stored, self.tuning.base(self.frozen)))
        try:
            start = time.perf_counter()
            predictions = self.predict(params, records, split, logger)
            cost = facts.cost(time.perf_counter() - start, len(records))
            decoding = report.decoding(self.decoding)
            temperatures = self.temperatures(params, split, predictions, logger)
        except _Stopped:
            raise Preempted(
                f"stopped by SIGTERM while scoring {split}; training is complete and saved. The "
                "same command scores it again"
            ) from None
        step = best if best is not None else self.step
        checkpoint = tree_store.fingerprint(self.manifest(best))
        tasks = self.setup.dataset.tasks
        result = self.describe(step, split, predictions) | decoding | cost
        if self.taught:
            result["distil"] = dict(self.taught)
        result |= facts.scores(self.config, self.setup.recipe, predictions, split, temperatures)
        if processes.is_first() and temperatures:
            text = calibration.to_text(temperatures, step, self.classifier.scoring or {})
            model_files.replace(self.workdir, {calibration.FILE: text})
        facts.publish(
            self.workdir,
            result,
            calibration.tempered(predictions, temperatures),
            tasks,
            read_metrics(self.workdir),
            checkpoint,
            say=logger.say,
        )
        return result

    def manifest(self, step: int | None) -> tree_store.Manifest:
        """That of the saved parameters, or of those at hand where no step was taken."""
        if step is not None:
            return self.checkpoints.manifest(step)
        return tree_store.describe(self.tuning.stored(self.state.evaluated, self.frozen))

    def temperatures(
        self, params: Params, split: str, predictions: Sequence[Prediction], logger: Logger
    ) -> dict[str, float]:
        """Those of the class tasks that `predictions` of `split` have scores for, fitted on dev."""
        tasks = calibration.scored_tasks(predictions, self.setup.dataset.tasks)
        records = self.dev_records()
        if self.config.eval.temperature == "none" or not tasks or not records:
            return {}
        if split != "dev":
            predictions = self.predict(params, records, "dev", logger)
        return calibration.fit(predictions, tasks)

    def describe(self, best: int, split: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """The report's parts other than the evaluation."""
        setup, config = self.setup, self.config
        trained = self.tuning.count(setup.model.abstract)
        return facts.describe(
            config,
            facts.data_facts(setup.dataset, setup.examples, split, predictions),
            facts.model_facts(config, setup, self.plan, trained),
            {
                "steps": self.step,
                "steps_by_this_process": self.step - self.resumed,
                "best_step": best,
                "seconds": round(self.seconds, 3),
                "examples_per_second": self.examples / self.seconds if self.seconds else None,
                "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
                "examples_seen_by_this_process": self.examples,
                "tokens_computed_by_this_process": self.tokens,
                "tokens_saved_by_shared_prefixes": self.saved_tokens,
                "compiled_shapes": len(self.batches.budget.shapes),
                "device": facts.device(),
            },
        )


class _Stopped(Exception):  # noqa: N818 - a request, not an error
    """Raised through an evaluation that SIGTERM ended."""


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _micro_batches(batch, count: int):
    """Split the rows `[B, …]` into `[count, B / count, …]`."""
    return jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), batch)
