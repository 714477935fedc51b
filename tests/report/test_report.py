"""What a run leaves to read."""

import base64
import dataclasses
import hashlib
import json
import math
import os
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from jaxclf import report
from jaxclf.core.errors import ArtifactError
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.metrics import metrics
from jaxclf.report.page import find_confusions
from jaxclf.report.plots import heat_map, learning_curves

INTENT = Task("intent", "class", ("alarm_set", "play_music", "play_radio"))
SLOTS = Task("slots", "slots", ("date", "time"))
TASKS = (INTENT, SLOTS)
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\"'&$x_{\x00\u202e"


def prediction(
    number: int, gold: str, predicted: str | None, slots=("Other", "time"), **fields
) -> Prediction:
    return Prediction(
        **{
            "id": f"r{number}",
            "text": f"text{number} word",
            "gold": {"intent": gold, "slots": ("O", "B-time")},
            "predicted": {"intent": predicted, "slots": slots},
            "raw": f"output {number}",
            **fields,
        }
    )


PREDICTIONS = [
    *(prediction(number, "play_music", "play_radio") for number in range(5)),
    prediction(5, "play_radio", "play_music"),
    prediction(6, "alarm_set", None, slots=None, raw='{"task1": "alarm<b>'),
    prediction(7, "alarm_set", "alarm_set", slots=("date", "Other"), unknown_slots=1),
    prediction(8, "alarm_set", "alarm_set", guessed=("intent",)),
]
HISTORY = [
    {"step": 1, "train/loss": 2.0, "train/learning_rate": 1e-3},
    {"step": 2, "train/loss": None, "train/learning_rate": 1e-3},
    {"step": 2, "dev/intent.accuracy": 0.5, "dev/intent.support": 9.0},
]


def full_report(predictions=PREDICTIONS, tasks=TASKS, **changes) -> dict:
    return {
        "config": {"seed": 0, "prompt": {"slots": "names"}, "train": {"learning_rate": 1e-3}},
        "data": {
            "name": "massive",
            "records": {"train": 1000, "test": 9},
            "skipped": {"empty text": 4321},
            "cut_texts": 8765,
            "tasks": {task.name: {"kind": task.kind, "labels": task.labels} for task in tasks},
        },
        "model": {"name": "llama_tiny", "checkpoint": "", "parameters": 1234567},
        "train": {"steps": 77, "seconds": 60.0},
        "versions": {"jax": "0.0.1"},
        "eval": metrics.compute(predictions, tasks),
        "eval_split": "test",
        **changes,
    }


class Page(HTMLParser):
    """The elements and visible text of a page; fails where elements do not nest."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def render(predictions=PREDICTIONS, tasks=TASKS, history=HISTORY, **changes) -> Page:
    return Page(
        report.page(full_report(predictions, tasks, **changes), predictions, tasks, history)
    )


def test_a_run_leaves_three_files_and_nothing_else(tmp_path):
    report.write(tmp_path, full_report(), PREDICTIONS, TASKS, HISTORY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json", "report.html", "predictions.jsonl"
    }  # fmt: skip


def test_report_json_is_plain_and_sorted(tmp_path):
    values = {"b": np.float32(0.5), "a": math.nan, 3: np.int64(7), "c": ("x", -math.inf)}
    report.write(tmp_path, full_report(train=values), PREDICTIONS, TASKS, [])
    text = (tmp_path / "report.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["train"] == {"b": 0.5, "a": None, "3": 7, "c": ["x", None]}
    assert list(found) == sorted(found)
    assert list(found["train"]) == sorted(found["train"])
    assert found["eval"]["intent"]["accuracy"] == pytest.approx(2 / 9)
    assert found["eval"]["joint"]["exact_match"] == pytest.approx(1 / 9)


def test_the_same_run_gives_the_same_page():
    pages = {report.page(full_report(), PREDICTIONS, TASKS, HISTORY) for _ in range(2)}
    assert len(pages) == 1


def test_predictions_come_back_as_they_were(tmp_path):
    odd = prediction(
        9, "alarm_set", "play_music", raw="\ud800\u2028\x00\n日", scores={"intent": {"a": 0.5}}
    )
    report.write_predictions(tmp_path / "p.jsonl", [*PREDICTIONS, odd])
    found = report.read_predictions(tmp_path / "p.jsonl")
    assert metrics.compute(found, TASKS) == metrics.compute([*PREDICTIONS, odd], TASKS)
    assert [each.unparsed for each in found[5:9]] == [[], ["intent", "slots"], [], ["intent"]]
    for each, original in zip(found, [*PREDICTIONS, odd], strict=True):
        assert each.text == ""
        assert report.prediction_row(each) == report.prediction_row(original)
        assert each.predicted == original.predicted
        assert each.gold == original.gold
    lines = (tmp_path / "p.jsonl").read_text().split("\n")
    assert len(lines) == len(PREDICTIONS) + 2
    assert set(json.loads(lines[0])) >= {"id", "gold", "predicted", "scores", "raw", "unparsed"}


def test_a_result_says_where_it_comes_from(tmp_path):
    odd = prediction(9, "alarm_set", "play_music", raw="\ud800\u2028日")
    values = full_report(train={"share": np.float32(0.1), "text": "\ud800", "nan": math.nan})
    values["data"]["fingerprint"] = "the records'"
    for _ in range(2):  # what a report said of its origin is not taken over
        report.write(tmp_path, values, [*PREDICTIONS, odd], TASKS, [], "the checkpoint's")
        values = report.read(tmp_path)
    content = (tmp_path / "predictions.jsonl").read_bytes()
    seal = values["provenance"].pop("seal")
    assert values["provenance"] == {
        "seed": 0,
        "data": "the records'",
        "checkpoint": "the checkpoint's",
        "predictions": hashlib.sha256(content).hexdigest(),
    }
    assert set(seal) == set(values)
    assert "the checkpoint's" in Page((tmp_path / "report.html").read_text()).text
    assert report.tasks_of(values) == TASKS


def _edit(change):
    def edit(folder):
        found = json.loads((folder / "report.json").read_text())
        change(found)
        (folder / "report.json").write_text(json.dumps(found))

    return edit


def _append(folder):
    with (folder / "predictions.jsonl").open("a") as file:
        file.write("\n")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (_edit(lambda r: r["eval"]["intent"].update(accuracy=0.9)), "report.json: .*in eval[.]"),
        (_edit(lambda r: r["provenance"].update(seed=1)), "report.json: .*in provenance[.]"),
        (_edit(lambda r: r.pop("data")), "report.json: .*in data[.]"),
        (_edit(lambda r: r.update(extra=1)), "report.json: .*in extra[.]"),
        (_edit(lambda r: r.update(provenance=[])), "report.json: not a report of ours"),
        (lambda folder: (folder / "report.json").write_text("{"), "report.json: not JSON"),
        (lambda folder: (folder / "report.json").unlink(), "report.json: missing"),
        (_append, "predictions.jsonl: altered since it was written"),
    ],
)
def test_an_altered_result_is_noticed(tmp_path, alter, message):
    report.write(tmp_path, full_report(), PREDICTIONS, TASKS, [])
    alter(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        report.read(tmp_path)


def test_a_rewritten_or_older_report_is_taken(tmp_path):
    report.write(tmp_path, full_report(), PREDICTIONS, TASKS, [])
    _edit(lambda found: None)(tmp_path)  # other white space, the same content
    assert report.read(tmp_path)["eval_split"] == "test"
    (tmp_path / "predictions.jsonl").unlink()
    assert report.read(tmp_path)["eval_split"] == "test"
    _edit(lambda found: found.pop("provenance"))(tmp_path)
    with pytest.warns(UserWarning, match="report.json is not sealed"):
        assert report.read(tmp_path)["eval_split"] == "test"


@pytest.mark.parametrize("content", [None, "[1]\n", '{"id": "a"}\n', "{"])
def test_predictions_that_are_none_are_told(tmp_path, content):
    path = tmp_path / "predictions.jsonl"
    if content is not None:
        report.write_predictions(path, PREDICTIONS[:1])
        path.write_text(path.read_text() + content)
    place = (
        "predictions.jsonl: missing" if content is None else "predictions.jsonl:2: no prediction"
    )
    with pytest.raises(ArtifactError, match=place):
        report.read_predictions(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    report.write(tmp_path, full_report(), PREDICTIONS, TASKS, [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        report.write(tmp_path, full_report(), PREDICTIONS[:2], TASKS, [])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_the_page_shows_the_run():
    page = render()
    for shown in (
        *("massive · llama_tiny", "1,234,567 parameters", "77 steps", "learning rate 0.001"),
        *("Results", "22.22 %", "Confusion matrix", "Worst confusions", "Unparsed outputs"),
        *("4,321", "8,765", "0.0.1"),  # skipped, cut, a version
        '{"task1": "alarm<b>',
    ):
        assert shown in page.text
    assert page.count("svg") == 1
    assert page.count("img") == 1


def test_the_page_loads_nothing_and_runs_nothing():
    page = render()
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:image/svg+xml;base64,") or (
            "src" not in attributes
        )
        assert attributes.get("href", "#").startswith("#")
    policies = [attributes.get("content", "") for tag, attributes in page.elements if tag == "meta"]
    assert any("default-src 'none'" in policy for policy in policies)


def test_hostile_text_stays_text():
    task = Task(HOSTILE, "class", (HOSTILE, "b"))
    predictions = [
        Prediction(HOSTILE, HOSTILE, {HOSTILE: gold}, {HOSTILE: value}, raw=HOSTILE)
        for gold, value in ((HOSTILE, "b"), ("b", HOSTILE), ("b", None))
    ]
    changes = {name: {HOSTILE: HOSTILE} for name in ("config", "model", "train", "versions")}
    history = [{"step": 1, f"dev/{HOSTILE}.accuracy": 1.0, f"train/{HOSTILE}": 1.0}]
    page = render(predictions, (task,), history, **changes, eval_split=HOSTILE)
    assert page.count("script") == 0
    assert page.count("img") == 1  # the curves
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in page.text
    assert "\\x00" in page.text


HIDDEN = dataclasses.replace(PREDICTIONS[0], gold={"intent": None, "slots": None})


@pytest.mark.parametrize("predictions", [[], [HIDDEN]])
def test_a_page_without_figures(predictions):
    page = render(predictions, history=[], data={}, model={}, train={})
    assert "Results" in page.text
    assert "Confusion matrix" not in page.text
    assert "Learning curves" not in page.text


def test_too_many_classes_for_a_picture():
    task = Task("intent", "class", tuple(f"c{number:03}" for number in range(300)))
    predictions = [prediction(1, "c001", "c002")]
    page = render(predictions, (task,))
    assert page.count("svg") == 0
    assert "Not drawn: 300 classes" in page.text


def test_bio_predictions_are_reported_in_their_format():
    predictions = [prediction(1, "alarm_set", "alarm_set", slots=("O", "B-date"))]
    values = metrics.compute(predictions, TASKS, slot_format="bio")
    values = full_report([], config={"prompt": {"slots": "bio"}}, eval=values)
    page = Page(report.page(values, predictions, TASKS))
    assert "Worst confusions" in page.text


def test_confusions_are_counted_and_carry_three_texts():
    first, second = find_confusions(PREDICTIONS, INTENT)
    assert first[:3] == ("play_music", "play_radio", 5)
    assert [f"text{number} " in first.texts for number in range(5)] == [True] * 3 + [False] * 2
    assert second[:3] == ("play_radio", "play_music", 1)


def test_slot_confusions_are_by_word_and_mark_it():
    first, second = find_confusions(PREDICTIONS, SLOTS)
    assert first[:3] == ("Other", "date", 1)
    assert "<mark>text7</mark> word" in first.texts
    assert second[:3] == ("time", "Other", 1)
    assert "text7 <mark>word</mark>" in second.texts


def test_the_heat_map_names_every_cell_that_is_not_empty():
    picture = heat_map(np.array([[7, 3, 0], [0, 5, 1]]), ["a<", "b"])
    page = Page(picture)
    for hint in ("a< → a<: 7 of 10", "a< → b: 3 of 10", "b → b: 5 of 6", "b → UNPARSED: 1 of 6"):
        assert hint in page.text
    assert page.text.count("→") == 4 + 1  # and in "predicted →"


def test_learning_curves_are_an_image_or_nothing():
    assert learning_curves([]) == ""
    assert learning_curves([{"step": 1, "other": 2.0}]) == ""
    uri = learning_curves([*HISTORY, *({"step": n, "train/loss": 1 / n} for n in range(3, 200))])
    image = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"))
    assert b"<svg" in image


def test_the_closing_table():
    lines = report.table(full_report()).splitlines()
    assert lines[0].split() == ["task", "metric", "test"]
    rows = [line.split() for line in lines]
    assert ["intent", "accuracy", "22.22", "%"] in rows
    assert ["joint", "exact", "match", "11.11", "%"] in rows
    assert rows.count(["records", "9"]) == 3


def test_the_model_card_tells_base_data_and_figures():
    _, front, body = report.model_card(full_report()).split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "transformers"
    assert meta["datasets"] == ["AmazonScience/massive"]
    assert "base_model" not in meta
    results = {
        (result["task"]["name"], metric["type"]): metric["value"]
        for result in meta["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert results["intent", "accuracy"] == pytest.approx(2 / 9, abs=1e-6)
    assert results["slots", "exact_match"] == pytest.approx(7 / 9, abs=1e-6)
    assert results["joint", "exact_match"] == pytest.approx(1 / 9, abs=1e-6)
    assert "Trained from scratch" in body
    assert "| intent | accuracy | 22.22 % |" in body
    assert "python -m jaxclf.predict" in body


def card_of(model, library="transformers", **changes):
    config = {"train": {"max_length": 64}, **changes.pop("config", {})}
    return report.model_card(full_report(model=model, config=config, **changes), library)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["eval.decoding=free", "from all of it", "eval.fallback=none", "counts as wrong"]),
        (
            {"decoding": "free", "fallback": "nearest", "first_line": True},
            ["first line alone", "spelled most like it"],
        ),
        ({"decoding": "constrained", "fallback": "first"}, ["among the labels alone."]),
        (
            {"decoding": "score", "normalize": "contextual"},
            ["probability of its tokens, divided by", "eval.normalize=contextual"],
        ),
    ],
)
def test_the_model_card_tells_how_a_decoder_is_read(fields, words):
    card = card_of({"name": "llama", "family": "llama"}, config={"eval": fields})
    for each in ("jaxclf.load(DIRECTORY)", "`jaxclf.json`", *words):
        assert each in card
    assert "pipeline(" not in card
    assert ("eval.fallback" in card) == (fields.get("decoding", "free") == "free")


def test_the_model_card_tells_temperatures_and_what_to_do_with_them():
    measured = {"intent": {"temperature": 1.23456}, "other": {"temperature": None}}
    card = card_of({"name": "bert", "family": "bert"}, calibration=measured)
    assert "Temperature: 1.2346 for `intent`, fitted on dev." in card
    assert "softmax of the scores (logits) divided by it" in card
    assert "Temperature" not in card_of({"name": "bert", "family": "bert"})


def test_the_model_card_of_an_encoder_opens_pipelines_that_cut_alike():
    card = card_of({"name": "bert", "family": "bert"})
    assert 'pipeline("text-classification", DIRECTORY)' in card
    assert 'pipeline("token-classification", DIRECTORY, ignore_labels=[])' in card
    assert "truncation=True" in card
    assert "cut at 64 tokens" in card
    adapters = card_of({"name": "bert", "family": "bert"}, "peft")
    assert "library_name: peft" in adapters
    assert "DIRECTORY" not in adapters.replace("RUN_DIRECTORY", "")


@pytest.mark.parametrize(
    ("checkpoint", "base"),
    [("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"), ("/data/models/mine", None)],
)
def test_the_model_card_names_a_base_of_the_hub_only(checkpoint, base):
    card = report.model_card(full_report(model={"name": "llama", "checkpoint": checkpoint}))
    assert yaml.safe_load(card.split("---\n")[1]).get("base_model") == base
    assert "Fine-tuned from" in card


def test_versions_are_of_what_is_installed():
    found = report.versions()
    assert found["numpy"] == np.__version__
    assert {"python", "jaxclf", "jax", "flax", "transformers"} <= set(found)
