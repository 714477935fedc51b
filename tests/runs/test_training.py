"""A whole run on the built-in data: what it leaves behind, and what it does when stopped."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from jaxclf import report
from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.model_dir import resolve
from jaxclf.checkpoint.tree_store import manifest_to_json
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.config.defaults import default
from jaxclf.core.errors import InputError, NonFiniteError
from jaxclf.core.logs import Logger
from jaxclf.data.tasks import Task
from jaxclf.runs import facts, training
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.training import train
from jaxclf.training.losses import Objective

ROOT = Path(__file__).parents[2]


def tiny(*overrides: str):
    """Six steps of a tiny model on 64 built-in utterances."""
    return loading.load(
        str(ROOT / "configs/quickstart.py:smoke"),
        [
            "train.steps=6",
            "train.save_steps=2",
            "train.eval_steps=3",
            "train.logging_steps=1",
            "data.limit=24",
            "eval.max_new_tokens=16",
            *overrides,
        ],
    )


def leaves(workdir: Path) -> dict:
    """Checksums of the last parameters."""
    return manifest_to_json(resolve(workdir, "last").manifest)


def losses(workdir: Path) -> list:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(), workdir)
    return workdir


def test_run_leaves_the_contract_of_files(finished):
    report = json.loads((finished / "report.json").read_text())
    assert {"config", "data", "model", "train", "eval", "versions"} <= set(report)
    assert 0 <= report["eval"]["intent"]["accuracy"] <= 1
    assert 0 <= report["eval"]["slots"]["slot_f1"] <= 1
    assert report["data"]["records"] == {"train": 24, "dev": 24, "test": 24}
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 24
    assert {"id", "gold", "predicted", "scores", "raw", "unparsed"} <= set(rows[0])
    assert [step for step, _ in losses(finished)] == [1, 2, 3, 4, 5, 6]
    assert "<script" not in (finished / "report.html").read_text()
    assert list((finished / "tensorboard").iterdir())


def test_evaluate_gives_the_same_numbers(finished, tmp_path):
    result = evaluate(open_run(finished), tmp_path / "again")
    assert result["eval"] == json.loads((finished / "report.json").read_text())["eval"]
    assert (tmp_path / "again/predictions.jsonl").read_text() == (
        finished / "predictions.jsonl"
    ).read_text()
    first, second = (report.read(path)["provenance"] for path in (finished, tmp_path / "again"))
    assert first["checkpoint"] == tree_store.fingerprint(resolve(finished).manifest)
    assert first["seed"] == 0
    assert len(first["data"]) == 64
    assert {**first, "seal": 0} == {**second, "seal": 0}


@pytest.mark.parametrize("mode", ["constrained", "score"])
def test_evaluate_may_decode_otherwise(finished, tmp_path, mode):
    run = open_run(finished, overrides=[f"eval.decoding={mode}"])
    result = evaluate(run, tmp_path)
    assert result["eval"]["intent"]["unparsed"] == result["eval"]["slots"]["unknown_slots"] == 0
    facts = json.loads((tmp_path / "report.json").read_text())["decoding"]
    assert facts["mode"] == mode
    assert facts.get("unread", 0) <= 1e-3
    rows = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    for row in rows:
        assert (row["scores"] is not None) == (mode == "score")
        if mode == "score":
            assert sum(row["scores"]["intent"].values()) == pytest.approx(1)


def test_an_unknown_way_of_decoding_is_told(finished):
    with pytest.raises(InputError, match=r"eval\.decoding is 'scores'.*Did you mean 'score'"):
        open_run(finished, overrides=["eval.decoding=scores"])


@pytest.mark.slow
def test_same_seed_same_run_other_seed_another(finished, tmp_path):
    train(tiny(), tmp_path / "again")
    train(tiny("seed=1", "train.steps=1", "train.eval_steps=0"), tmp_path / "other")
    assert leaves(tmp_path / "again") == leaves(finished)
    assert losses(tmp_path / "again") == losses(finished)
    assert losses(tmp_path / "other")[0] != losses(finished)[0]


def constant(*overrides: str):
    """A run that may be made longer: its learning rates do not depend on its end."""
    return tiny("train.schedule=constant", "train.pack=true", "train.eval_steps=0", *overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run of `constant`."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(constant(), workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("lengths", "count"), [((5, 8, 8), 0), ((9, 8, 12), 2)])
def test_texts_beyond_the_models_positions_are_counted_and_said(lengths, count, monkeypatch):
    monkeypatch.setattr(training.batching, "row", lambda length: {"tokens": [0] * length})
    model = SimpleNamespace(config=SimpleNamespace(max_position=8))
    run = SimpleNamespace(setup=SimpleNamespace(model=model, examples=lengths), config=default())
    logger = Mock(Logger)
    training._Run.warn_of_long_texts(run, logger)
    said = [call.args[0] for call in logger.say.call_args_list]
    start = f"warning: {count} training examples are longer than the 8 positions"
    assert [line.startswith(start) for line in said] == [True] * (count > 0)


@pytest.mark.parametrize(
    ("every", "steps"), [(4, [4, 8, 10]), (0, [10]), (5, [5, 10]), (100, [10])]
)
def test_what_is_due_now_and_then_is_due_at_the_end(every, steps):
    assert [step for step in range(1, 11) if training._due(step, every, 10)] == steps


def test_the_best_step_is_chosen_by_a_metric_that_is_measured():
    tasks = (Task("topic", "class", ("a", "b")), Task("stars", "regression", ()))
    config = default()
    for name, chosen in (
        ("", ("score", True)),
        ("topic.macro_f1", ("topic.macro_f1", True)),
        ("stars.mse", ("stars.mse", False)),
        ("topic.unparsed", ("topic.unparsed", False)),
    ):
        config.train.metric_for_best_model = name
        assert facts.best_metric(config, tasks) == chosen
    config.train.metric_for_best_model = "topic.support"  # a count is no quality
    with pytest.raises(InputError, match="expected one of topic.accuracy"):
        facts.best_metric(config, tasks)


def test_longer_run_resumes_exactly(whole, tmp_path):
    train(constant("train.steps=3"), tmp_path)
    train(constant(), tmp_path)
    assert leaves(tmp_path) == leaves(whole)
    assert losses(tmp_path) == losses(whole)


def test_workdir_of_another_config_is_refused(finished):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"train\.learning_rate.*another"):
        train(tiny("train.learning_rate=0.5"), finished)
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["last:1", "norms", r"layers/mlp/.*"])
def test_partial_training_leaves_the_rest(trained, tmp_path):
    train(tiny(f"train.trained={trained}", "train.steps=1", "train.eval_steps=0"), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["model"]["trained_parameters"] < report["model"]["parameters"]


def infinite(self, *arguments, real=Objective.sums):
    """An objective whose loss is not finite."""
    sums = real(self, *arguments)
    return sums._replace(loss=sums.loss * np.inf)


@pytest.mark.slow
def test_non_finite_training_stops_and_keeps_what_was_good(whole, tmp_path, monkeypatch):
    train(constant("train.steps=2"), tmp_path)
    good = leaves(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "sums", infinite)
        with pytest.raises(NonFiniteError, match=r"step 3.*max_skipped"):
            train(constant(), tmp_path)
    assert leaves(tmp_path) == good
    train(constant(), tmp_path)
    assert leaves(tmp_path) == leaves(whole)
    assert losses(tmp_path) == losses(whole)


@pytest.mark.slow
def test_skipped_steps_are_allowed_up_to_n(tmp_path, monkeypatch):
    monkeypatch.setattr(Objective, "sums", infinite)
    with pytest.raises(NonFiniteError, match=r"step 4.*4 step\(s\) in a row"):
        train(tiny("train.max_skipped=3", "train.eval_steps=0"), tmp_path)


def test_training_ends_when_dev_gets_worse_and_stays_ended(tmp_path, monkeypatch, capsys):
    scores = {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.5, 5: 0.3, 6: 0.9}
    monkeypatch.setattr(
        training._Run, "evaluate_dev", lambda self, logger: {"score": scores[self.step]}
    )
    config = tiny("train.eval_steps=1", "train.patience=2")
    for _ in range(2):  # the second time from the checkpoints
        result = train(config, tmp_path)
        assert (result["train"]["steps"], result["train"]["best_step"]) == (5, 3)
    assert capsys.readouterr().out.count("ended at step 5 of 6: 2 evaluations on dev were") == 2


def test_patience_without_evaluations_is_refused():
    with pytest.raises(InputError, match=r"train\.patience is 2, .* but train\.eval_steps is 0"):
        tiny("train.eval_steps=0", "train.patience=2")


def test_unknown_best_metric_is_told_before_training(tmp_path):
    with pytest.raises(InputError, match=r"Did you mean 'intent\.accuracy'"):
        train(tiny("train.metric_for_best_model=intent.acuracy"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
