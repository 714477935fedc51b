"""Soups of runs: what is averaged, what is chosen and by what, and what cannot be averaged."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclf import soup as command
from jaxclf.checkpoint.model_dir import load_params, resolve
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core.errors import InputError
from jaxclf.core.tree import flatten
from jaxclf.runs import facts, soup
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.soup import cook, mixture
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]


def tiny(*overrides: str):
    """Four steps of a tiny encoder on built-in utterances."""
    fields = ["data.name=builtin", "data.task=intent", "model.unroll=9", "train.steps=4"]
    fields += ["train.learning_rate=0.01", "train.max_length=32", *overrides]
    return loading.load(str(ROOT / "configs/minilm_massive.py:smoke"), fields)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("soups") / "base"
    train(tiny(), workdir)
    return workdir


@pytest.fixture(scope="module")
def runs(base) -> list[str]:
    """Three runs from one base with other seeds."""
    found = []
    for seed in range(3):
        workdir = base.with_name(f"seed-{seed}")
        fields = ("model.name=", f"model.checkpoint={base}", f"seed={seed}")
        train(tiny(*fields), workdir, resolve(base))
        found.append(str(workdir))
    return found


@pytest.fixture
def qualities(monkeypatch):
    """Makes dev give these scores, in the order in which it is asked."""

    def set_(*scores: float) -> None:
        left = iter(scores)
        real = facts.dev_metrics
        monkeypatch.setattr(
            facts, "dev_metrics", lambda *given: real(*given) | {"score": next(left)}
        )

    return set_


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.5, 0.7, 0.6, 0.7, 0.8), (1, 2, 0)),  # alone; with seed 2; with seed 0 too
        ((0.5, 0.7, 0.6, 0.6, 0.7), (1, 0)),
        ((0.5, 0.7, 0.6, 0.6, 0.6), (1,)),
    ],
)
def test_ingredients_are_added_where_the_mean_is_no_worse(
    runs, scores, chosen, qualities, tmp_path
):
    qualities(*scores)
    result = cook(runs, tmp_path / "soup")
    assert [each["chosen"] for each in result["soup"]["runs"]] == [n in chosen for n in range(3)]
    abstract = open_run(Path(runs[0])).classifier.model.abstract
    parts = [load_params(resolve(runs[number]), abstract) for number in chosen]
    expected = flatten(jax.tree.map(lambda *each: np.mean(each, axis=0), *parts))
    opened = open_run(tmp_path / "soup")
    for path, leaf in flatten(opened.classifier.params).items():
        size = float(np.abs(expected[path]).max()) + 1e-9
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-6 * size)


def test_a_soup_is_a_run_that_is_evaluated_as_it_was_reported(runs, tmp_path):
    command.main([*runs, "--output", str(tmp_path / "soup"), "--config.eval.batch_size=8"])
    report = json.loads((tmp_path / "soup/report.json").read_text())
    assert report["eval_split"] == "test"
    assert report["soup"]["dev"] >= max(each["dev"] for each in report["soup"]["runs"])
    of_runs = [json.loads((Path(run) / "report.json").read_text()) for run in runs]
    total = sum(each["train"]["seconds"] for each in of_runs)
    assert report["train"]["seconds"] == pytest.approx(total)
    opened = open_run(tmp_path / "soup")
    again = evaluate(opened, tmp_path / "again")
    assert again["eval"] == report["eval"]
    assert again["calibration"] == report["calibration"]
    assert (tmp_path / "again/predictions.jsonl").read_text() == (
        tmp_path / "soup/predictions.jsonl"
    ).read_text()
    with pytest.raises(InputError, match="not empty"):
        cook(runs, tmp_path / "soup")


def test_a_mean_weighs_all_that_are_in_it_alike():
    ones, twos = {"a": np.ones(2, np.float32)}, {"a": np.full(2, 4, np.float32)}
    np.testing.assert_allclose(mixture(ones, twos, 2)["a"], 2.0)


def test_what_cannot_be_averaged_is_named(base, runs, tmp_path):
    for fields, message in [
        (("seed=7",), "base: 'a random start of seed 7' there"),
        (
            ("data.task=slots", "model.name=", f"model.checkpoint={base}"),
            "labels of task slots|tasks",
        ),
        (
            ("model.name=", f"model.checkpoint={base}", "model.layers=1"),
            "model num_layers: 1 there",
        ),
        (("model.name=", f"model.checkpoint={base}", "tune=bitfit"), "holds adapters"),
    ]:
        workdir = tmp_path / str(abs(hash(fields)))
        source = resolve(base) if len(fields) > 1 else None
        train(tiny(*fields), workdir, source)
        with pytest.raises(InputError, match=message):
            cook([runs[0], str(workdir)], tmp_path / "soup")
        assert not (tmp_path / "soup").exists()
    with pytest.raises(InputError, match="expected 2 runs or more, each once"):
        cook([runs[0], runs[0]], tmp_path / "soup")


def test_without_dev_records_or_with_others_nothing_is_chosen(runs, tmp_path):
    with pytest.raises(InputError, match="other dev records"):
        cook(runs[:2], tmp_path / "soup", ["data.limit=12"])
    dataset = soup.datasets.load(open_run(Path(runs[0])).config.data)
    dataset.splits.pop("dev")
    with pytest.raises(InputError, match="no dev split"):
        soup._check_dev(dataset, runs, [resolve(run) for run in runs])
