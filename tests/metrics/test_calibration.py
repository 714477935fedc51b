"""Figures of probabilities worked out by hand or by scikit-learn, and the temperature."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from jaxclf.core.errors import ArtifactError
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.metrics import calibration
from tests.report.test_report import render

TOPIC = Task("topic", "class", ("a", "b", "c"))
STARS = Task("stars", "regression", ())

# Confidence .9 right, .8 wrong, .8 right, .5 right.
PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.8, 0.0, 0.2], [0.25, 0.25, 0.5]])
GOLD = np.array([0, 0, 0, 2])


def drawn(count: int, classes: int = 3, scale: float = 1.0, seed: int = 0):
    """Logits, and gold labels drawn from their softmax at temperature 1; logits times `scale`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, classes))
    # The highest of logits with Gumbel noise is a draw from their softmax.
    gold = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return logits * scale, gold


def predictions(probabilities, gold, task=TOPIC) -> list[Prediction]:
    return [
        Prediction(
            str(number),
            f"text {number}",
            {task.name: None if label is None else task.labels[label]},
            {task.name: task.labels[int(np.argmax(row))]},
            scores={task.name: dict(zip(task.labels, map(float, row), strict=True))},
        )
        for number, (row, label) in enumerate(zip(probabilities, gold, strict=True))
    ]


def test_figures_by_hand():
    logs = math.log(0.9) + math.log(0.1) + math.log(0.8) + math.log(0.5)
    assert calibration.nll(PROBABILITIES, GOLD) == pytest.approx(-logs / 4)
    # (.01 + .01) + (.81 + .64 + .01) + (.04 + .04) + (.0625 + .0625 + .25)
    assert calibration.brier(PROBABILITIES, GOLD) == pytest.approx((0.02 + 1.46 + 0.08 + 0.375) / 4)
    bins = calibration.reliability(PROBABILITIES, GOLD, bins=5)
    empty = calibration.Bin(None, None, 0)
    # .8 belongs to the bin that it ends, with no other than the two.
    found = [(each.confidence, each.accuracy, each.count) for each in bins[2:]]
    assert bins[:2] == [empty, empty]
    assert found == [(0.5, 1.0, 1), (pytest.approx(0.8), 0.5, 2), (0.9, 1.0, 1)]
    # .5 too unsure once, .3 too sure twice, .1 too unsure once
    assert calibration.expected_error(bins) == pytest.approx((0.5 + 2 * 0.3 + 0.1) / 4)


def test_impossible_gold_costs_much_and_no_warning():
    probabilities = np.array([[1.0, 0.0]])
    assert 80 < calibration.nll(probabilities, np.array([1])) < 100
    assert calibration.brier(probabilities, np.array([1])) == 2
    assert calibration.expected_error(calibration.reliability(probabilities, np.array([1]))) == 1


def test_a_temperature_stays_within_its_bounds():
    # Scores that say nothing, or less than nothing: the flatter the better, without end.
    logits = np.log(np.array([[0.9, 0.1]] * 9))
    assert calibration.fit_temperature(logits, np.ones(9, int)) == pytest.approx(100, rel=1e-3)
    # One record is wrong by a hair, and nine are right by little: the sharper the better.
    nearly = np.array([[0.0, 1e-9], *[[0.0, -1e-3]] * 9])
    assert calibration.fit_temperature(nearly, np.zeros(10, int)) == pytest.approx(0.01, rel=1e-3)


def test_figures_are_those_of_scikit_learn():
    logits, gold = drawn(200, classes=2)
    probabilities = calibration.at_temperature(logits, 1.0)
    assert calibration.nll(probabilities, gold) == pytest.approx(log_loss(gold, probabilities))
    # Of two classes both are as far off, of which scikit-learn counts one.
    one = brier_score_loss(gold, probabilities[:, 1])
    assert calibration.brier(probabilities, gold) == pytest.approx(2 * one)


def test_accuracy_over_coverage_by_hand():
    curve = calibration.over_coverage(PROBABILITIES, GOLD)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.5]  # those with .8 come together
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.accuracy.tolist() == pytest.approx([1, 2 / 3, 3 / 4])
    assert curve.area == pytest.approx(0.25 * 1 + 0.5 * 2 / 3 + 0.25 * 3 / 4)
    # Lower than .8 it is enough again: the smallest threshold counts.
    assert calibration.abstention(curve, 0.7) == (0.5, 1.0, 0.75)
    assert calibration.abstention(curve, 0.8) == (0.9, 0.25, 1.0)
    wrong = calibration.over_coverage(PROBABILITIES, np.array([1, 0, 1, 0]))
    assert calibration.abstention(wrong, 0.1) is None


@given(
    confidences=st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    wanted=st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]),
)
def test_no_smaller_threshold_is_accurate_enough(confidences, seed, wanted):
    confidence = np.array(confidences)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    gold = np.random.default_rng(seed).integers(0, 2, len(confidence))
    right = probabilities.argmax(axis=1) == gold
    enough = [each for each in confidence if right[confidence >= each].mean() >= wanted]
    found = calibration.abstention(calibration.over_coverage(probabilities, gold), wanted)
    if not enough:
        assert found is None
        return
    kept = confidence >= min(enough)
    assert found == (min(enough), pytest.approx(kept.mean()), pytest.approx(right[kept].mean()))


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(scale):
    logits, gold = drawn(20_000, scale=scale)
    found = calibration.fit_temperature(logits, gold)
    assert found == pytest.approx(scale, rel=0.04)
    assert found == calibration.fit_temperature(logits, gold)
    # Log-probabilities, which differ by a number a record, are as good.
    logs = np.log(calibration.at_temperature(logits, 1.0))
    assert found == pytest.approx(calibration.fit_temperature(logs, gold), rel=1e-5)
    loss = [
        calibration.nll(calibration.at_temperature(logits, each), gold)
        for each in (found, found * 0.98, found * 1.02)
    ]
    assert loss[0] == min(loss)


def test_without_an_error_the_temperature_stays_one():
    logits, _ = drawn(10)
    assert calibration.fit_temperature(logits, logits.argmax(axis=1)) == 1


def test_labels_and_their_order_outlive_a_temperature():
    logits, gold = drawn(50, scale=3.0)
    before = predictions(calibration.at_temperature(logits, 1.0), gold)
    temperatures = calibration.fit(before, (TOPIC,))
    after = calibration.tempered(before, temperatures)
    for one, other in zip(before, after, strict=True):
        assert one.predicted == other.predicted
        assert sum(other.scores["topic"].values()) == pytest.approx(1)
        scores, mended = one.scores["topic"], other.scores["topic"]
        assert sorted(scores, key=scores.get) == sorted(mended, key=mended.get)
        assert max(scores.values()) > max(mended.values())
    assert calibration.tempered(before, {}) == before


def test_what_has_no_scores_or_no_gold_is_left_out():
    scored = predictions(PROBABILITIES, [0, 0, None, 2])
    silent = Prediction("x", "text", {"topic": "a"}, {"topic": "a"})
    stars = {"stars": 1.0}
    numbers = [Prediction("x", "", stars, stars, scores={"stars": {"value": 1.0}})]
    assert calibration.measure([*scored, silent], (TOPIC,), {}, 0.9) == {}
    assert calibration.measure([], (TOPIC,), {}, 0.9) == {}
    assert calibration.measure(numbers, (STARS,), {}, 0.9) == {}
    assert calibration.measure(predictions(PROBABILITIES, [None] * 4), (TOPIC,), {}, 0.9) == {}
    assert calibration.tempered([silent, *numbers], {"topic": 2.0}) == [silent, *numbers]
    figures = calibration.measure(scored, (TOPIC,), {}, 0.0)["topic"]
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["abstention"] is None
    assert figures["temperature"] is None
    assert "before" not in figures


def test_scores_that_sum_to_less_than_one_count_by_their_shares():
    """As the probabilities of whole answers do."""
    part = calibration.measure(predictions(PROBABILITIES * 1e-3, GOLD), (TOPIC,), {}, 0.9)
    whole = calibration.measure(predictions(PROBABILITIES, GOLD), (TOPIC,), {}, 0.9)
    assert part["topic"]["brier"] == pytest.approx(whole["topic"]["brier"])


def test_a_report_has_figures_before_and_after():
    logits, gold = drawn(2_000, scale=3.0)
    found = predictions(calibration.at_temperature(logits, 1.0), gold)
    temperatures = calibration.fit(found, (TOPIC,))
    figures = calibration.measure(found, (TOPIC,), temperatures, 0.8)["topic"]
    for name in ("nll", "brier", "ece"):
        assert figures[name] < figures["before"][name]
    assert figures["accuracy"] == figures["before"]["accuracy"]
    assert len(figures["bins"]) == 15
    assert len(figures["coverage"]) <= 50
    assert figures["coverage"][-1] == [1.0, figures["accuracy"]]
    assert figures["abstention"]["accuracy"] >= 0.8
    json.dumps(figures, allow_nan=False)
    # What is measured are the probabilities that are written.
    again = calibration.measure(calibration.tempered(found, temperatures), (TOPIC,), {}, 0.8)
    assert again["topic"]["nll"] == pytest.approx(figures["nll"])


@pytest.mark.parametrize("wanted", [0.5, 0.0])
@pytest.mark.parametrize("temperatures", [{}, {"topic": 1.5}])
def test_the_page_shows_it(wanted, temperatures):
    found = predictions(PROBABILITIES, GOLD)
    figures = calibration.measure(found, (TOPIC,), temperatures, wanted)
    page = render(found, (TOPIC,), [], calibration=figures, eval_split="dev")
    assert page.count("img") == 1
    assert "expected calibration error" in page.text
    assert ("with temperature 1.500" in page.text) == bool(temperatures)
    assert ("the very records that it was fitted on" in page.text) == bool(temperatures)
    assert ("answer where the confidence is at least" in page.text) == bool(wanted)
    assert "Calibration" not in render(found, (TOPIC,), []).text


def test_the_page_says_where_no_confidence_is_enough():
    found = predictions(PROBABILITIES, [1, 0, 1, 0])
    figures = calibration.measure(found, (TOPIC,), {}, 0.5)
    nothing = {"wanted": 0.5, "threshold": None, "coverage": 0.0, "accuracy": None}
    assert figures["topic"]["abstention"] == nothing
    page = render(found, (TOPIC,), [], calibration=figures)
    assert "No confidence has an accuracy of 50.00 % above it" in page.text


def test_a_temperature_belongs_to_its_step_and_its_way_of_scoring(tmp_path, capsys):
    path = tmp_path / calibration.FILE
    by_length, plain = {"normalise": "length"}, {"normalise": "none"}
    assert calibration.load(path, 3, plain) == {}
    path.write_text(calibration.to_text({"topic": 1.25}, 3, plain))
    assert calibration.load(path, 3, plain) == {"topic": 1.25}
    assert calibration.load(path, 4, plain) == {}
    assert not capsys.readouterr().out
    assert calibration.load(path, 3, by_length) == {}
    assert "normalise none; now normalise length" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "torn",
        '{"step": 3, "temperature": {"topic": -1.0}}',
        '{"step": 3, "temperature": {"topic": Infinity}}',
    ],
)
def test_a_damaged_file_is_told(content, tmp_path):
    path = tmp_path / calibration.FILE
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"temperature\.json"):
        calibration.load(path, 3, {})
