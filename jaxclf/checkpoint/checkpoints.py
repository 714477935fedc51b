"""The checkpoints of a run: saved in the background, the last and the best kept."""

import contextlib
import dataclasses
import functools
import logging
import math
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.steps import (
    Which,
    best_step,
    choose_step,
    encode_iterator,
    metas,
    note_metrics,
    read_meta,
    saved_steps,
    step_directory,
)
from jaxclf.checkpoint.tree_store import Manifest
from jaxclf.core import files
from jaxclf.core.errors import InputError, Preempted, StorageError
from jaxclf.core.types import Tree
from jaxclf.distributed import processes

LONGEST_SAVE = 3600.0  # seconds that a save may take after the next step that saves has come


class Restored(NamedTuple):
    """A checkpoint in memory."""

    params: Tree
    state: Any
    iterator_state: Any
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one run: the last `keep` of them, and the best.

    One that was saved only because the run was asked to stop stays until there is a later one. The
    best has the highest `metrics[best_metric]`, or with `greater_is_better=False` the lowest; of
    equals the latest; a checkpoint without that metric, or with NaN, is never the best. Saving
    goes on in the background: an error of it is raised by the next call of `save`, `wait` or
    `close`. One process at a time may hold this.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep: int = 1,
        best_metric: str = "score",
        greater_is_better: bool = True,
    ):
        if keep < 1:
            raise InputError(f"train.keep is {keep}; a run keeps at least 1 checkpoint")
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.best_metric, self.sign = best_metric, 1 if greater_is_better else -1
        found = metas(self.directory)
        self._scores = {step: meta.score for step, meta in found.items()}
        self._unscheduled = {step for step, meta in found.items() if not meta.scheduled}
        self._policy = _LastAndBest(keep, self._scores, self._unscheduled)
        self._hangs = False
        _tell_errors_once()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,  # of a save that was killed
            save_root_metadata=False,
        )
        handlers = {
            "params": tree_store.handler(),
            "state": tree_store.handler(),
            "meta": ocp.JsonCheckpointHandler("meta.json"),
        }
        with _storage_errors(f"{self.directory}: cannot be opened"):
            self._manager = ocp.CheckpointManager(
                self.directory, item_handlers=handlers, options=options
            )

    def save(
        self,
        step: int,
        params: Tree,
        state: Any,
        iterator_state: Any,
        metrics: Mapping[str, float],
        scheduled: bool = True,
    ) -> None:
        """Save after `step` steps; the arrays may be donated as soon as this returns.

        `state`: any pytree of arrays, numbers and PRNG keys. `iterator_state`: bytes, or what
        JSON can hold. `metrics`: empty where the step is not evaluated, or not yet: see
        `evaluated`. `scheduled`: whether the run saves this step even where nobody stops it. A step
        that is already saved is left as it is.
        """
        self.wait()
        if step in saved_steps(self.directory):
            return
        meta = {
            "step": step,
            "score": self._score(metrics),
            "metrics": dict(metrics),
            "scheduled": scheduled,
            "iterator_state": encode_iterator(iterator_state),
            "manifest": {
                "params": tree_store.manifest_to_json(tree_store.describe(params)),
                "state": tree_store.manifest_to_json(tree_store.describe(state)),
            },
        }
        self._scores[step] = self._score(metrics)
        if not scheduled:
            self._unscheduled.add(step)
        arguments = ocp.args.Composite(
            params=tree_store.save_args(params),
            state=tree_store.save_args(state),
            meta=ocp.args.JsonSave(files.sealed(meta)),
        )
        with _storage_errors(f"{self.directory / str(step)}: cannot be saved"):
            self._manager.save(step, args=arguments, force=True)

    def _score(self, metrics: Mapping[str, float]) -> float | None:
        score = self.sign * float(metrics.get(self.best_metric, math.nan))
        return None if math.isnan(score) else score

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step that was saved before it could be evaluated."""
        self.wait()
        directory, score = self.directory / str(step), self._score(metrics)
        if processes.is_first():
            note_metrics(directory, score, metrics)
        processes.wait("evaluated")
        self._scores[step] = score
        self.prune()

    def prune(self) -> None:
        """Delete what is not kept: a run that was killed may not have come to it."""
        self.wait()
        with _storage_errors(f"{self.directory}: an old checkpoint cannot be deleted"):
            steps = sorted(self._manager.all_steps())
            for step in sorted({*steps} - self._policy.kept(steps)):
                self._manager.delete(step)

    def latest_step(self) -> int | None:
        return choose_step(self.directory, "last")

    def best_step(self) -> int | None:
        return choose_step(self.directory, "best")

    def best_scored(self) -> int | None:
        """The best of the steps that have a score, also while it is being written."""
        return best_step(self._scores)

    def restore(self, step: Which, abstract_params: Tree, abstract_state: Any) -> Restored:
        """Load bit for bit what was saved; raises ArtifactError naming each damaged leaf."""
        self.wait()
        directory = step_directory(self.directory, step)
        meta = read_meta(directory)
        params = tree_store.restore(directory / "params", meta.manifest["params"], abstract_params)
        state = tree_store.restore(directory / "state", meta.manifest["state"], abstract_state)
        return Restored(params, state, meta.iterator_state, meta.metrics)

    def restore_params(self, step: Which, abstract_params: Tree) -> Tree:
        """The parameters alone."""
        manifest = self.manifest(step)
        directory = step_directory(self.directory, step)
        return tree_store.restore(directory / "params", manifest, abstract_params)

    def metrics(self, step: Which) -> dict[str, float]:
        """Those of a step; empty where it was not evaluated."""
        self.wait()
        return read_meta(step_directory(self.directory, step)).metrics

    def manifest(self, step: Which) -> Manifest:
        """That of the parameters of a step."""
        self.wait()
        return read_meta(step_directory(self.directory, step)).manifest["params"]

    def wait(self) -> None:
        """Return when the last save is on disk; raises StorageError if it failed, or hangs."""
        self._finish(self._manager.wait_until_finished)

    def close(self) -> None:
        """The same, for the last time."""
        if not self._hangs:
            self._finish(self._manager.close)

    def _finish(self, function: Callable[[], None]) -> None:
        """Call what waits for a save, in a thread that may be left to itself."""
        failed: list[BaseException] = []

        def call() -> None:
            try:
                function()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=call, name="waits for a save", daemon=True)
        thread.start()
        thread.join(LONGEST_SAVE)
        self._hangs = thread.is_alive()
        if self._hangs:
            raise StorageError(
                f"{self.directory}: the last checkpoint was not saved within {LONGEST_SAVE:,.0f} s"
            )
        with _storage_errors(f"{self.directory}: the last checkpoint was not saved"):
            for error in failed:
                raise error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Preempted) and jax.process_count() > 1:
            return  # the others, who do not know of the error, would be waited for
        self.close()


@dataclasses.dataclass(frozen=True)
class _LastAndBest:
    """Orbax's preservation policy: which steps stay."""

    keep: int
    scores: Mapping[int, float | None]
    unscheduled: Collection[int]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self.kept(steps)
        return [step in kept for step in steps]

    def kept(self, steps: Sequence[int]) -> set[int | None]:
        """Of these steps, in their order."""
        scheduled = [step for step in steps if step not in self.unscheduled]
        best = best_step({step: self.scores.get(step) for step in steps})
        return {*scheduled[-self.keep :], *steps[-1:], best}


@functools.cache
def _tell_errors_once() -> None:
    """Keep the libraries from printing, thread by thread, the error of a save that we raise."""

    def is_news(record: logging.LogRecord) -> bool:
        return not ("orbax" in record.pathname and record.exc_info)

    def hook(found: Any) -> None:
        if "Event loop is closed" not in str(found.exc_value):  # of writes that go on meanwhile
            before(found)

    logging.getLogger("absl").addFilter(is_news)
    before, sys.unraisablehook = sys.unraisablehook, hook


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Orbax reports a full disk or a lost mount as any of several types."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(f"{what} ({type(error).__name__}: {error})") from error
