"""A learning curve's runs, with a stand-in for training that writes what a run leaves."""

import csv
import json
from pathlib import Path

import pytest

from jaxclf import curve, report, train
from jaxclf.config import loading
from jaxclf.core.errors import ArtifactError, InputError, Preempted
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.metrics import metrics
from jaxclf.runs import learning_curve

CONFIG = str(Path(__file__).parents[2] / "configs/my_task.py")


@pytest.fixture
def data(tmp_path) -> list[str]:
    """The fields of a data set of 30 texts."""
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(30)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.train={file}", f"data.test={file}", "data.dev=", "data.dev_fraction=0"]


@pytest.fixture
def trained(monkeypatch):
    """The folders that were trained; the more examples, the more of four texts are right."""
    folders = []

    def run(config, workdir):
        folders.append(workdir.name)
        dataset = datasets.load(config.data, config.seed)
        count = len(dataset.splits["train"])
        right = min(4, count // 10 + config.seed)
        predictions = [
            Prediction(
                each.id, each.text, each.labels, each.labels if n < right else {"label": None}
            )
            for n, each in enumerate(dataset.splits["test"][:4])
        ]
        found = {
            "config": config.to_dict(),
            "data": {"tasks": report.describe_tasks(dataset.tasks), "records": {"train": count}},
            "model": {},
            "train": {},
            "versions": {},
            "eval": metrics.compute(predictions, dataset.tasks),
        }
        workdir.mkdir(parents=True, exist_ok=True)
        report.write(workdir, found, predictions, dataset.tasks, [])

    monkeypatch.setattr(train, "run", run)
    return folders


@pytest.fixture
def command(data, tmp_path, trained):
    """The command line with further words."""

    def run(*more: str) -> None:
        fields = [f"--config.{field}" for field in data]
        curve.main(["--config", CONFIG, "--workdir", str(tmp_path), *fields, *more])

    return run


def test_a_run_for_every_size_and_seed(command, trained, tmp_path, capsys):
    command("--sizes", "all,10,020", "--seeds", "2")
    assert trained == ["10-0", "10-1", "20-0", "20-1", "all-0", "all-1"]
    found = json.loads((tmp_path / "curve.json").read_text())
    label = found["tasks"]["label"]
    assert label["metric"] == "accuracy"
    # Of 4 texts 1, 2 and 3 are right with seed 0, one more with seed 1.
    names = ("size", "examples", "mean")
    points = [tuple(point[name] for name in names) for point in label["points"]]
    assert points == [("10", 10, 0.375), ("20", 20, 0.625), ("all", 30, 0.875)]
    assert [point["values"] for point in label["points"]] == [[0.25, 0.5], [0.5, 0.75], [0.75, 1]]
    assert all(point["deviation"] == pytest.approx(0.25 / 2**0.5) for point in label["points"])
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    accuracies = [
        (row["size"], row["seed"], row["value"]) for row in rows if row["metric"] == "accuracy"
    ]
    assert accuracies[0] == ("10", "0", "0.25")
    assert len(accuracies) == 6
    assert "37.50 % ± 17.68" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    page = (tmp_path / "curve.html").read_text()
    assert "37.50 % ± 17.68" in page
    assert "data:image/svg+xml;base64," in page


def reported(tasks: dict[str, str], seed: int, **values) -> tuple[dict, dict]:
    """A run of these tasks by their kinds, and what its report says."""
    described = {
        name: {"kind": kind, "labels": [] if kind == "regression" else ["a", "b"]}
        for name, kind in tasks.items()
    }
    found = {"data": {"tasks": described}, "eval": values, "provenance": {"checkpoint": "c"}}
    return {"size": "5", "examples": 5, "seed": seed}, found


def test_several_tasks_have_a_curve_together_where_all_are_right_or_wrong():
    tasks = {"intent": "class", "stars": "regression"}
    each = {"intent": {"accuracy": 0.5}, "stars": {"pearson": 0.25}}
    joint = {"joint": {"exact_match": 0.125, "support": 8}}
    found = learning_curve.summary([reported(tasks, 0, **each, **joint)])
    assert [*found["tasks"]] == ["intent", "stars", "joint"]
    assert found["tasks"]["joint"]["metric"] == "exact_match"
    assert found["tasks"]["joint"]["points"][0]["mean"] == 0.125
    assert [*learning_curve.summary([reported(tasks, 0, **each)])["tasks"]] == ["intent", "stars"]
    # A task alone may be called so.
    alone = learning_curve.summary([reported({"joint": "class"}, 0, joint={"accuracy": 0.5})])
    assert alone["tasks"]["joint"]["metric"] == "accuracy"
    assert alone["tasks"]["joint"]["points"][0]["values"] == [0.5]


def test_a_run_without_the_metric_is_in_no_mean():
    values = [{"accuracy": 0.5}, {}, {"accuracy": 1.0}]
    runs = [reported({"label": "class"}, n, label=each) for n, each in enumerate(values)]
    (point,) = learning_curve.summary(runs)["tasks"]["label"]["points"]
    assert point["values"] == [0.5, None, 1.0]
    assert (point["mean"], point["deviation"]) == (0.75, pytest.approx(0.5 / 2**0.5))
    (point,) = learning_curve.summary(runs[:2])["tasks"]["label"]["points"]
    assert (point["mean"], point["deviation"]) == (0.5, None)
    (point,) = learning_curve.summary(runs[1:2])["tasks"]["label"]["points"]
    assert (point["mean"], point["deviation"]) == (None, None)


def test_finished_runs_are_read_and_others_made(command, trained, monkeypatch):
    command("--sizes", "10", "--seeds", "1")
    command("--sizes", "10,20", "--seeds", "1")
    assert trained == ["10-0", "20-0"]
    command("--sizes", "10", "--seeds", "1", "--config.eval.batch_size=7")
    assert trained == ["10-0", "20-0", "10-0"]  # scored otherwise: not that run

    def stop(*_):
        raise Preempted("stopped")

    monkeypatch.setattr(train, "run", stop)
    with pytest.raises(Preempted):
        command("--sizes", "20,all", "--seeds", "1")


def test_an_altered_run_is_noticed(command, tmp_path):
    command("--sizes", "10", "--seeds", "1")
    (tmp_path / "10-0/predictions.jsonl").write_text("")
    with pytest.raises(ArtifactError, match="predictions.jsonl: altered"):
        command("--sizes", "10", "--seeds", "1")


def test_a_run_that_counted_its_steps_is_finished(trained, data, tmp_path):
    config = loading.load(CONFIG, [*data, "train.epochs=2.0"])
    counted = config.copy_and_resolve_references()
    with counted.unlocked():
        counted.train.steps = 17
    train.run(counted, tmp_path / "run")
    assert report.finished(config, tmp_path / "run")
    assert not report.finished(config, tmp_path)


def test_all_seeds_are_checked_before_the_first_run(command, trained):
    largest = 2**32 - 1
    with pytest.raises(InputError, match=f"seed is {largest + 1}"):
        command("--sizes", "10", "--seeds", "2", f"--config.seed={largest}")
    assert trained == []
    command("--sizes", "10", "--seeds", "1", f"--config.seed={largest}")
    assert trained == [f"10-{largest}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "10,some"], "--sizes 10,some: 'some' is neither a number from 1 nor 'all'"),
        (["--sizes", "0"], "--sizes 0: '0' is neither"),
        (["--sizes", "10,40"], "asks for 40 examples; the train split has 30"),
        (["--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["--config.data.train_examples=5"], "is what --sizes sets"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_first_run(command, trained, words, message):
    with pytest.raises(InputError, match=message):
        command(*words)
    assert trained == []
