"""What a report says of scores and data, whoever writes it."""

import dataclasses

import pytest

from jaxclf import report
from jaxclf.config.defaults import default
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.decoding.recipe import Recipe
from jaxclf.runs import facts

TASK = Task("topic", "class", ("a", "b"))
# The surer the more often right: .9 and .8 are, .6 is not.
SCORED = [
    Prediction(
        str(n), "", {"topic": gold}, {"topic": "a"}, scores={"topic": {"a": sure, "b": 1 - sure}}
    )
    for n, (sure, gold) in enumerate([(0.9, "a"), (0.8, "a"), (0.6, "b")])
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1.0, {"wanted": 1.0, "threshold": 0.8, "coverage": 2 / 3, "accuracy": 1.0}),
        (0.5, {"wanted": 0.5, "threshold": 0.6, "coverage": 1.0, "accuracy": 2 / 3}),
        (0.0, None),
        (None, None),  # a run from before the field answers always
    ],
)
def test_the_target_accuracy_is_the_configs(target, expected):
    config = default()
    with config.unlocked():
        if target is None:
            del config.eval.target_accuracy
        else:
            config.eval.target_accuracy = target
    found = facts.scores(config, Recipe((TASK,), None, "names", 16, 0), SCORED, "dev")
    abstention = found["calibration"]["topic"]["abstention"]
    assert abstention == (expected and pytest.approx(expected))
    assert found["eval_split"] == "dev"
    assert found["eval"]["topic"]["accuracy"] == pytest.approx(2 / 3)
    assert found["calibration"]["topic"]["temperature"] is None


@pytest.fixture
def result() -> dict:
    """A report of the scores."""
    config = default()
    described = {"name": "file", "tasks": report.describe_tasks((TASK,)), "records": {}}
    scored = facts.scores(config, Recipe((TASK,), None, "names", 16, 0), SCORED, "dev")
    return facts.describe(config, described, {"name": "m"}, {}) | scored


def test_where_a_report_lies_is_said_if_it_stays_there(result, tmp_path):
    said = []
    facts.publish(tmp_path, result, SCORED, (TASK,), say=said.append)
    assert said[-1] == f"report: {tmp_path / 'report.html'}"
    assert "66.67" in said[0]
    said.clear()
    facts.publish(tmp_path, result, SCORED, (TASK,), keeps=False, more="more", say=said.append)
    assert len(said) == 2
    assert said[-1] == "more"


def test_texts_that_were_cut_are_counted_and_said(result, tmp_path):
    """Tokens of a model here, characters of a text that is sent to a server."""
    cut = [dataclasses.replace(each, cut=n * 600) for n, each in enumerate(SCORED)]
    for more, line in (
        ({}, "cut, by 1,800 tokens in all; a higher train.max_length keeps them"),
        ({"api": {}}, "cut, by 1,800 characters in all; a higher api.max_characters keeps them"),
    ):
        said = []
        facts.publish(tmp_path, result | more, cut, (TASK,), say=said.append)
        assert said[0] == f"data: 2 of 3 texts of dev are too long and {line}"


def test_metrics_are_named_by_task():
    assert facts.flat_metrics({"a": {"f1": 1.0, "support": 2}, "b": {"f1": 0.5}}) == {
        "a.f1": 1.0,
        "a.support": 2,
        "b.f1": 0.5,
    }
