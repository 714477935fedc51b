"""A run that was stopped, however often and wherever, ends bit for bit as one that was not."""

import gc
import json
import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxclf.checkpoint.steps import meta_file, saved_steps
from jaxclf.config import loading
from jaxclf.core.errors import ArtifactError, Preempted
from jaxclf.runs import training
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]
STEPS = 6

COMMON = (
    f"train.steps={STEPS}",
    "train.eval_steps=2",
    "train.save_steps=3",
    "train.keep=2",
    "train.logging_steps=1",
    "train.learning_rate=0.02",
    "train.max_length=64",
    "data.name=builtin",
    "data.limit=14",
    "eval.limit=4",
)
DECODER = ("quickstart.py:smoke", "data.task=intent", "eval.max_new_tokens=4")
RUNS = {
    "few shapes": (
        *DECODER,
        "train.pack=false",
        "train.batch_size=2",
        "train.max_shapes=1",
        "model.dropout=0.3",
    ),
    "packed adapters of fresh examples": (
        *DECODER,
        "tune=lora",
        "lora.dropout=0.3",
        "lora.target_modules=q,v",
        "prompt.template=listing",
        "prompt.shots=1",
        "prompt.fresh_shots=true",
        "train.pack=true",
        "train.max_length=256",
        "train.batch_size=4",
        "train.gradient_accumulation_steps=2",
        "eval.decoding=score",
    ),
    "shared prefixes": (
        *DECODER,
        "prompt.template=listing",
        "train.max_length=256",
        "train.pack=true",
        "train.batch_size=2",
        "train.trained=last:1",
        "model.dropout=0.2",
    ),
    "in less memory": (
        *DECODER,
        "model.param_dtype=bfloat16",
        "model.checkpoint_layers=2",
        "train.adam_moments=int8",
        "train.stochastic_rounding=true",
        "train.pack=true",
        "train.batch_size=4",
        "train.gradient_accumulation_steps=2",
    ),
    "adapted heads of like lengths": (
        *("minilm_massive.py:smoke", "model.unroll=9"),
        "tune=lora",
        "lora.dropout=0.3",
        "model.dropout=0.3",
        "train.pack=false",
        "train.group_by_length=true",
        "train.batch_size=2",
        "train.max_shapes=1",
    ),
}


def config(name: str, *overrides: str):
    file, *words = RUNS[name]
    return loading.load(str(ROOT / "configs" / file), [*COMMON, *words, *overrides])


@pytest.fixture(scope="module", autouse=True)
def kept_programs():
    """The same programs are compiled for every part of a run."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """Runs that nobody stopped, by name."""
    folder = tmp_path_factory.mktemp("whole")

    def of(name: str) -> Path:
        if not (folder / name).is_dir():
            train(config(name), folder / name)
        return folder / name

    return of


def ask_to_stop(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop_at(patch: pytest.MonkeyPatch, wanted: Callable[[Any], bool], method: str) -> None:
    """SIGTERM before `method` of a run that is as `wanted`."""
    real = getattr(training._Run, method)

    def stopping(run, *arguments):
        if wanted(run):
            ask_to_stop()
        return real(run, *arguments)

    patch.setattr(training._Run, method, stopping)


def left(workdir: Path) -> dict[str, Any]:
    """What has to be equal: all but the speed, and the memory that this process ever took."""
    report = json.loads((workdir / "report.json").read_text())
    del report["cost"]
    for name in [*report["train"]]:
        if "second" in name or "process" in name or "saved" in name:
            del report["train"][name]
    del report["provenance"]["seal"]
    checkpoints = workdir / "checkpoints"
    return {
        "report": report,
        "metrics": (workdir / "metrics.jsonl").read_text(),
        "predictions": (workdir / "predictions.jsonl").read_text(),
        # These hold the checksums of all arrays, the place in the data and the score.
        "checkpoints": {
            step: meta_file(checkpoints / str(step)).read_text()
            for step in saved_steps(checkpoints)
        },
    }


def resume(name: str, workdir: Path) -> int:
    """Train to the end, however often it takes; returns how often it was stopped."""
    for stops in range(3 * STEPS):
        try:
            train(config(name), workdir)
        except Preempted:
            continue
        return stops
    raise AssertionError("it does not end")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_stopped_after_every_step(name, whole, tmp_path, monkeypatch):
    """Where a step is due for evaluation, it is saved before that and scored by the next run."""
    last = 0

    def is_new(run) -> bool:
        nonlocal last
        found, last = run.step > last, run.step
        return found

    with monkeypatch.context() as patch:
        stop_at(patch, is_new, "count")
        assert resume(name, tmp_path) == STEPS
    assert left(tmp_path) == left(whole(name))


@pytest.mark.parametrize("step", [2, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_stopped_during_an_evaluation(step, whole, tmp_path, monkeypatch):
    """And again while it is made up."""
    with monkeypatch.context() as patch:
        stop_at(patch, lambda run: run.step == step, "evaluate_dev")
        for _ in range(2):
            with pytest.raises(Preempted, match=f"saved step {step} of {STEPS}"):
                train(config("few shapes"), tmp_path)
    assert resume("few shapes", tmp_path) == 0
    assert left(tmp_path) == left(whole("few shapes"))


class Killed(BaseException):
    """What a kill is within a process: nothing more is done."""


@pytest.mark.parametrize("where", ["log_dev", "finish"])
def test_killed_where_an_evaluation_is_made_up(where, whole, tmp_path, monkeypatch):
    """Between its score and its line of metrics, and before the old checkpoints are deleted."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        stop_at(patch, lambda run: run.step == 4, "evaluate_dev")
        with pytest.raises(Preempted):
            train(config("few shapes"), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, where, die)
        with pytest.raises(Killed):
            train(config("few shapes"), tmp_path)
    assert resume("few shapes", tmp_path) == 0
    assert left(tmp_path) == left(whole("few shapes"))


def test_the_best_checkpoint_may_be_one_that_was_scored_later(tmp_path, monkeypatch):
    """All are kept, so that the last of equals is the best, if all have their score."""
    words = ("train.keep=9", "train.learning_rate=0.0")
    with monkeypatch.context() as patch:
        stop_at(patch, lambda run: run.step == STEPS, "count")
        with pytest.raises(Preempted):
            train(config("few shapes", *words), tmp_path)
    assert train(config("few shapes", *words), tmp_path)["train"]["best_step"] == STEPS


def test_a_place_in_the_data_of_another_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, lambda run: run.step == 1, "count")
        patch.setattr(training.loader, "_VERSION", 1)
        with pytest.raises(Preempted):
            train(config("few shapes"), tmp_path)
    with pytest.raises(ArtifactError, match=r"step 1: the place in the data is that of version 1"):
        train(config("few shapes"), tmp_path)


def test_parameters_of_an_evaluation_are_not_kept(tmp_path, monkeypatch):
    """Where layers are trained one by one they are copies, a second set beside the training's."""
    copies, alive = [], []
    params, log_dev = training._Run.params, training._Run.log_dev

    def copied(run):
        copy = jax.tree.map(lambda leaf: leaf + 0, params(run))
        copies.append(weakref.ref(jax.tree.leaves(copy)[0]))
        return copy

    def logged(*arguments):
        gc.collect()
        alive.extend(copy() for copy in copies if copy() is not None)
        log_dev(*arguments)

    monkeypatch.setattr(training._Run, "params", copied)
    monkeypatch.setattr(training._Run, "log_dev", logged)
    train(config("few shapes", "train.steps=2"), tmp_path)
    assert copies
    assert not alive
