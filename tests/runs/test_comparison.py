"""Two runs compared, from folders that are written here and not trained."""

import dataclasses
import json

import pytest

from jaxclf import compare, report
from jaxclf.config.defaults import default
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.metrics import metrics, significance
from jaxclf.runs import comparison

GOLD = ("spam", "ham", "ham", "eggs")
TEXTS = ("buy <now>", "see you", "hi there", "two please")
# b wins r1 and r3 from a, and loses r0.
A = ("spam", "spam", None, "ham")
B = ("ham", "ham", "spam", "eggs")
# Of all texts the second word is a slot; b finds them all, a none.
SLOTS = {"A": ("Other", "Other"), "B": ("Other", "name")}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A data set of four test texts with a class and slots each."""
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rows = [
        {"id": f"r{n}", "text": text, "label": label, "slots": ["O", "B-name"]}
        for n, (text, label) in enumerate(zip(TEXTS, GOLD, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default()
    with config.unlocked():
        config.data.update(name="file", train=str(file), test=str(file), id="id", slots="slots")
    return config


def write(path, config, answers, slots, change=lambda predictions: predictions, **facts):
    """A run's folder: report and predictions, as training leaves them."""
    dataset = datasets.load(config.data)
    predictions = change(
        [
            Prediction(each.id, each.text, each.labels, {"label": answer, "slots": slots}, "raw")
            for each, answer in zip(dataset.splits["test"], answers, strict=True)
        ]
    )
    found = {
        "config": config.to_dict(),
        "data": {
            "name": "file",
            "fingerprint": dataset.fingerprint,
            "tasks": report.describe_tasks(dataset.tasks),
        },
        "model": {"name": "m"},
        "train": {},
        "eval": metrics.compute(predictions, dataset.tasks),
        "eval_split": "test",
        "versions": {},
        **facts,
    }
    report.write(path, found, predictions, dataset.tasks, [])
    return path


@pytest.fixture
def runs(config, tmp_path):
    for name, answers in (("A", A), ("B", B)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, config, answers, SLOTS[name])
    return tmp_path


def test_two_runs_from_folders_to_page(runs, capsys):
    compare.main([f"{runs}/A", f"{runs}/B", "--output", f"{runs}/out", "--samples", "500"])
    shown = capsys.readouterr().out
    assert "label" in shown
    assert "+25.00" in shown
    found = json.loads((runs / "out/comparison.json").read_text())
    label, slots = found["tasks"]["label"], found["tasks"]["slots"]
    assert (label["a"]["value"], label["b"]["value"]) == (0.25, 0.5)
    assert label["difference"]["value"] == 0.25
    assert label["difference"]["low"] < 0 < label["difference"]["high"]
    # Two won of three texts that one alone has right: 2 (1 + 3) / 2³.
    assert label["mcnemar"] == {"lost": 1, "won": 2, "p": 1.0, "test": "exact binomial"}
    assert [(each["id"], each["text"]) for each in label["lost"]] == [("r0", "buy <now>")]
    assert label["won"] == [
        {"id": "r1", "text": "see you", "gold": "ham", "a": "spam", "b": "ham"},
        {"id": "r3", "text": "two please", "gold": "eggs", "a": "ham", "b": "eggs"},
    ]
    # spam: F1 of a 2·1 / (1 + 2), of b 0; ham: 0 and 2·1 / (2 + 2); eggs: 0 and 1.
    changes = [(row["class"], row["f1"]["difference"]) for row in label["classes"]]
    assert changes == [("spam", pytest.approx(-2 / 3)), ("ham", 0.5), ("eggs", 1.0)]
    assert [row["recall"]["difference"] for row in label["classes"]] == [-1, 0.5, 1]
    assert slots["difference"] == {"value": 1, "low": 1, "high": 1}
    assert slots["mcnemar"]["won"] == 4
    joint = found["joint"]
    assert (joint["metric"], joint["a"]["value"], joint["b"]["value"]) == ("exact_match", 0, 0.5)
    run = found["runs"]["a"]
    assert (run["path"], run["data"]) == (f"{runs}/A", "file")
    assert (
        run["provenance"]["data"]
        == json.loads((runs / "A/report.json").read_text())["data"]["fingerprint"]
    )
    page = (runs / "out/comparison.html").read_text()
    assert "buy &lt;now&gt;" in page
    assert "buy <now>" not in page


def test_texts_are_told_apart_by_their_ids_in_the_order_of_a(runs, config):
    """However b wrote its predictions down."""
    a, b = comparison.read(runs / "A"), comparison.read(runs / "B")
    expected = comparison.compare(a, b, samples=50)
    write(runs / "B", config, B, SLOTS["B"], lambda predictions: predictions[::-1])
    turned = comparison.compare(a, comparison.read(runs / "B"), samples=50)
    assert turned["tasks"] == expected["tasks"]
    assert turned["joint"] == expected["joint"]
    back = comparison.compare(comparison.read(runs / "B"), a, samples=50)["tasks"]
    assert [each["id"] for each in back["slots"]["lost"]] == ["r3", "r2", "r1", "r0"]
    assert [each["id"] for each in back["label"]["lost"]] == ["r3", "r1"]
    assert [each["id"] for each in back["label"]["won"]] == ["r0"]


@pytest.mark.parametrize(
    ("lost", "won", "test"),
    [(5, 19, "exact binomial"), (5, 20, "chi-square, continuity corrected")],
)
def test_the_test_that_was_made_is_named(lost, won, test):
    a = [True] * lost + [False] * won + [True, False]
    b = [False] * lost + [True] * won + [True, False]
    found = comparison._mcnemar(a, b)
    assert found == {
        "lost": lost,
        "won": won,
        "p": significance.mcnemar(lost, won),
        "test": test,
    }


def test_one_task_alone(runs):
    a, b = comparison.read(runs / "A"), comparison.read(runs / "B")
    found = comparison.compare(a, b, "slots", samples=10)
    assert list(found["tasks"]) == ["slots"]
    assert found["joint"] is None
    with pytest.raises(InputError, match=r"--task lable: .*label, slots. Did you mean 'label'"):
        comparison.compare(a, b, "lable")


def test_texts_are_left_out_where_the_data_are_others(runs, config):
    facts = {"data": {"fingerprint": "another"}}
    other = json.loads((runs / "A/report.json").read_text())
    facts["data"] = other["data"] | facts["data"]
    write(runs / "A", config, A, SLOTS["A"], **facts)
    found = comparison.compare(comparison.read(runs / "A"), comparison.read(runs / "B"), "label")
    assert [each["text"] for each in found["tasks"]["label"]["won"]] == [None, None]
    assert "not at hand" in report.comparison_page(found)


def test_results_of_older_versions_still_compare(runs):
    for name in "AB":
        found = json.loads((runs / name / "report.json").read_text())
        del found["provenance"]
        for task in found["data"]["tasks"].values():
            del task["metric"], task["positive"]
        (runs / name / "report.json").write_text(json.dumps(found))
    with pytest.warns(UserWarning, match="is not sealed"):
        a, b = comparison.read(runs / "A"), comparison.read(runs / "B")
    assert comparison.compare(a, b, samples=10)["tasks"]["label"]["mcnemar"]["won"] == 2


def _without_first(predictions):
    return predictions[1:]


def _other_gold(predictions):
    gold = {**predictions[2].gold, "label": "spam"}
    return [*predictions[:2], dataclasses.replace(predictions[2], gold=gold), predictions[3]]


def _hidden(predictions):
    gold = {"label": None, "slots": None}
    return [dataclasses.replace(each, gold=gold) for each in predictions]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_first, "1 of 4 texts that .*A scored are not in .*B, first 'r0'"),
        (_other_gold, "gold labels of 1 of 4 texts differ, first 'r2': .'ham'. in .*A, .'spam'."),
        (lambda predictions: predictions * 2, "B: 4 ids of predictions occur twice"),
        (_hidden, "4 of 4 texts that .*A scored are not in"),
    ],
)
def test_what_cannot_be_compared_is_told(runs, config, change, message):
    write(runs / "B", config, B, SLOTS["B"], change)
    with pytest.raises(InputError, match=message):
        compare.main([f"{runs}/A", f"{runs}/B"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "predictions.jsonl").unlink(), "predictions.jsonl: missing"),
        (lambda run: (run / "report.json").unlink(), "report.json: missing"),
        (lambda run: (run / "predictions.jsonl").write_text(""), "predictions.jsonl: altered"),
    ],
)
def test_a_damaged_result_is_no_result(runs, damage, message):
    damage(runs / "B")
    with pytest.raises(ArtifactError, match=message):
        compare.main([f"{runs}/A", f"{runs}/B"])


def test_other_labels_cannot_be_compared(runs, config):
    found = json.loads((runs / "B/report.json").read_text())["data"]
    found["tasks"]["label"]["labels"] = ["ham"]
    write(runs / "B", config, B, SLOTS["B"], data=found)
    with pytest.raises(InputError, match=r"label has other answers in .*3 labels.*1\)"):
        compare.main([f"{runs}/A", f"{runs}/B"])


def test_a_report_without_tasks_is_no_result(runs, config):
    write(runs / "B", config, B, SLOTS["B"], data={"name": "file"})
    with pytest.raises(ArtifactError, match="no result of ours"):
        comparison.read(runs / "B")
