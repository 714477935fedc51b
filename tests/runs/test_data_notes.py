"""What runs say of their data, in the terminal and in the report."""

import contextlib
import io
import json

import pytest

from jaxclf import predict
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core.errors import InputError
from jaxclf.data.records import Schema
from jaxclf.runs import labelling
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.training import train
from tests.runs.test_training import ROOT


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def row(text, label):
    return {"text": text, "label": label}


def config(folder, model="encoder_smoke", **splits):
    """Two steps on these files."""
    files = {"dev": "", "test": ""} | {
        name: write(folder / f"{name}.jsonl", rows) for name, rows in splits.items()
    }
    return loading.load(
        str(ROOT / "configs/my_task.py:smoke"),
        [
            f"model.name={model}",
            "train.max_length=16",
            "train.steps=2",
            "train.batch_size=2",
            "eval.max_new_tokens=8",
            "data.on_defect=skip",
            "data.dev_fraction=0",
            "data.test_fraction=0",
            *(f"data.{name}={file}" for name, file in files.items()),
        ],
    )


TRAIN = [row(f"text {number}", "xy"[number % 2]) for number in range(8)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose data have something of everything, what it said, and where its files are."""
    folder = tmp_path_factory.mktemp("data")
    long = row("word " * 40, "x")
    test = [row("other", "x"), row("unknown", "z"), long, row("", "x")]
    splits = {"train": [*TRAIN, long, row("", "x")], "test": test}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train(config(folder, **splits), folder / "run")
    return folder, said.getvalue()


def test_training_says_what_is_left_out_cut_or_unseen(finished):
    folder, said = finished
    for line in (
        "data: records left out for a defect: 1 of train, 1 of test; the first: ",
        "data: 1 of 3 records of test have a label that train lacks (task label) and count as",
        "data: 1 of 9 texts of train are too long and cut, by ",
        "data: 1 of 3 texts of test are too long and cut, by ",
    ):
        assert line in said
    report = json.loads((folder / "run/report.json").read_text("utf-8"))
    data = report["data"]
    assert data["skipped"] == {"train": 1, "test": 1}
    assert data["unseen_labels"] == {"test": {"label": {"z": 1}}}
    assert data["cut"]["train"]["texts"] == data["cut"]["test"]["texts"] == 1
    assert report["eval"]["label"]["support"] == 3
    assert report["eval"]["label"]["accuracy"] < 1
    page = (folder / "run/report.html").read_text("utf-8")
    assert "records left out for a defect: 1 of train, 1 of test" in page
    rows = (folder / "run/predictions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(each)["cut"] > 0 for each in rows] == [False, False, True]


def test_evaluating_says_it_again(finished, capsys):
    folder, _ = finished
    result = evaluate(open_run(folder / "run"), folder / "again")
    said = capsys.readouterr().out
    assert "1 of 3 records of test have a label that train lacks" in said
    assert "1 of 3 texts of test are too long and cut" in said
    assert result["data"]["unseen_labels"] == {"test": {"label": {"z": 1}}}


def test_labelling_says_which_rows_are_missing(finished, tmp_path, capsys):
    folder, _ = finished
    texts = tmp_path / "texts.jsonl"
    write(texts, [row("a", ""), row("", ""), row("word " * 40, ""), {}])
    words = ["--checkpoint", str(folder / "run"), "--input", str(texts)]
    output = tmp_path / "labels.jsonl"
    with pytest.raises(InputError, match="--on-defect skip"):
        predict.main([*words, "--output", str(output)])
    predict.main([*words, "--output", str(output), "--on-defect", "skip"])
    said = capsys.readouterr().out
    assert f"data: 2 of 4 records of {texts} left out for a defect" in said
    assert "so that the output has 2 rows; the first: " in said
    assert "data: 1 of 2 texts are too long and cut, by " in said
    assert len(output.read_text("utf-8").splitlines()) == 2


def test_texts_that_are_all_good_need_no_word(tmp_path, capsys):
    write(tmp_path / "texts.jsonl", [row("a", "")])
    assert len(labelling.read_texts(tmp_path / "texts.jsonl", Schema("text"), skip=True)) == 1
    assert capsys.readouterr().out == ""


def test_dev_is_scored_where_there_is_no_test_split(tmp_path, capsys):
    report = train(config(tmp_path, train=TRAIN, dev=TRAIN[:3]), tmp_path / "run")
    assert "there is no split 'test'; dev is scored in its place" in capsys.readouterr().out
    assert report["eval_split"] == "dev"
    assert report["eval"]["label"]["support"] == 3


def test_a_run_without_a_split_to_score_says_so(tmp_path, capsys):
    report = train(config(tmp_path, train=TRAIN), tmp_path / "run")
    said = capsys.readouterr().out
    assert "there is no split 'test', nor dev: nothing will be scored" in said
    assert "accuracy" not in said
    assert report["eval_split"] == "none"
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "no split was scored" in page
    with pytest.raises(InputError, match="no split"):
        evaluate(open_run(tmp_path / "run"), tmp_path / "again")


def test_a_split_that_is_not_there_is_told_before_training(tmp_path):
    wanted = config(tmp_path, train=TRAIN, test=TRAIN[:2])
    wanted.eval.split = "heldout"
    with pytest.raises(InputError, match="eval.split is 'heldout'; data set file has train, test"):
        train(wanted, tmp_path / "run")
