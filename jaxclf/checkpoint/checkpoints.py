"""The checkpoints of a run: saved in the background, the last and the best kept."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.steps import (
    Which,
    best_step,
    choose_step,
    encode_iterator,
    read_meta,
    saved_steps,
    scores,
    sealed_meta,
    step_directory,
)
from jaxclf.checkpoint.tree_store import Manifest
from jaxclf.core.errors import InputError, StorageError
from jaxclf.core.types import Tree


class Restored(NamedTuple):
    """A checkpoint in memory."""

    params: Tree
    state: Any
    iterator_state: Any
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one run: the last `keep` of them, and the best.

    The best has the highest `metrics[best_metric]`, or with `greater_is_better=False` the lowest;
    of equals the latest; a checkpoint without that metric, or with NaN, is never the best. Saving
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
        self._scores = scores(self.directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(keep, self._scores),
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
    ) -> None:
        """Save after `step` steps; the arrays may be donated as soon as this returns.

        `state`: any pytree of arrays, numbers and PRNG keys. `iterator_state`: bytes, or what
        JSON can hold. A step that is already saved is left as it is.
        """
        self.wait()
        if step in saved_steps(self.directory):
            return
        score = self.sign * float(metrics.get(self.best_metric, math.nan))
        meta = {
            "step": step,
            "score": None if math.isnan(score) else score,
            "metrics": dict(metrics),
            "iterator_state": encode_iterator(iterator_state),
            "manifest": {
                "params": tree_store.manifest_to_json(tree_store.describe(params)),
                "state": tree_store.manifest_to_json(tree_store.describe(state)),
            },
        }
        self._scores[step] = meta["score"]
        arguments = ocp.args.Composite(
            params=tree_store.save_args(params),
            state=tree_store.save_args(state),
            meta=ocp.args.JsonSave(sealed_meta(meta)),
        )
        with _storage_errors(f"{self.directory / str(step)}: cannot be saved"):
            self._manager.save(step, args=arguments, force=True)

    def latest_step(self) -> int | None:
        return choose_step(self.directory, "last")

    def best_step(self) -> int | None:
        return choose_step(self.directory, "best")

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

    def manifest(self, step: Which) -> Manifest:
        """That of the parameters of a step."""
        self.wait()
        return read_meta(step_directory(self.directory, step)).manifest["params"]

    def wait(self) -> None:
        """Return when the last save is on disk; raises StorageError if it failed."""
        with _storage_errors(f"{self.directory}: the last checkpoint was not saved"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _storage_errors(f"{self.directory}: the last checkpoint was not saved"):
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _LastAndBest:
    """Orbax's preservation policy: which steps stay."""

    keep: int
    scores: Mapping[int, float | None]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], best_step({step: self.scores.get(step) for step in steps})}
        return [step in kept for step in steps]


# Finding ------------------------------------------------------------------------------------------


# Meta ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Orbax reports a full disk or a lost mount as any of several types."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(f"{what} ({type(error).__name__}: {error})") from error


# model.json ---------------------------------------------------------------------------------------


# adapters.json ------------------------------------------------------------------------------------
