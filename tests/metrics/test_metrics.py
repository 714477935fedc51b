"""Figures worked out by hand; the working stands beside each."""

import dataclasses
import warnings

import numpy as np
import pytest

from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.metrics import calibration, metrics, significance

TOPIC = Task("topic", "class", ("a", "b", "c", "d"))
SLOTS = Task("slots", "slots", ("date", "place", "time"))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def classes(pairs: list[tuple], **fields) -> list[Prediction]:
    return [
        Prediction(str(number), "text", {"topic": gold}, {"topic": predicted}, **fields)
        for number, (gold, predicted) in enumerate(pairs)
    ]


def slots(*pairs: tuple, **fields) -> list[Prediction]:
    """Predictions from pairs of blank-separated gold tags and predicted items (None: unparsed)."""
    return [
        Prediction(
            str(number),
            "text",
            {"slots": tuple(gold.split())},
            {"slots": None if predicted is None else tuple(predicted.split())},
            **fields,
        )
        for number, (gold, predicted) in enumerate(pairs)
    ]


# gold a a a b b c, predicted a a b b UNPARSED a. Class d occurs nowhere.
#      precision  recall  f1
#   a    2/3       2/3    2/3
#   b    1/2       1/2    1/2
#   c    0/0→0     0/1    0
SIX = classes([("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", None), ("c", "a")])


def test_class_metrics():
    assert metrics.compute(SIX, (TOPIC,)) == {
        "topic": {
            "support": 6,
            "unparsed": 1,
            "unparsed_rate": pytest.approx(1 / 6),
            "accuracy": pytest.approx(3 / 6),
            "macro_f1": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),  # over a, b, c, not d
            # 3 right of 5 predicted classes and 6 gold ones: 2·3 / (5 + 6)
            "micro_f1": pytest.approx(6 / 11),
        }
    }


def test_per_class_report_of_classes():
    report = metrics.per_class_report(SIX, TOPIC)
    assert list(report) == ["a", "b", "c"]
    assert report["a"] == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3, "predicted": 3}
    )
    assert report["b"] == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2, "predicted": 2}
    )
    assert report["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1, "predicted": 0}


def test_confusion_has_a_column_for_unparsed():
    np.testing.assert_array_equal(
        metrics.confusion(SIX, TOPIC),
        # a  b  c  d  unparsed
        [[2, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    )


def test_everything_unparsed_is_zero_and_not_an_error():
    predictions = classes([("a", None), ("b", None)])
    figures = metrics.compute(predictions, (TOPIC,))["topic"]
    assert figures["accuracy"] == figures["macro_f1"] == figures["micro_f1"] == 0
    assert figures["unparsed_rate"] == 1
    assert metrics.confusion(predictions, TOPIC)[:2, -1].tolist() == [1, 1]


def test_a_guess_scores_but_stays_unparsed():
    figures = metrics.compute(classes([("a", "a")], guessed=("topic",)), (TOPIC,))["topic"]
    assert figures["accuracy"] == 1
    assert figures["unparsed"] == 1


def test_hidden_gold_is_in_no_figure():
    predictions = classes([("a", "a"), (None, "b"), (None, None)])
    figures = metrics.compute(predictions, (TOPIC,))["topic"]
    assert figures["support"] == 1
    assert figures["accuracy"] == 1
    assert figures["unparsed"] == 0
    assert metrics.confusion(predictions, TOPIC).sum() == 1


@pytest.mark.parametrize("predictions", [[], classes([(None, "a")])])
def test_without_support_there_are_counts_only(predictions):
    assert metrics.compute(predictions, (TOPIC,)) == {"topic": {"support": 0, "unparsed": 0}}
    assert metrics.per_class_report(predictions, TOPIC) == {}
    assert metrics.confusion(predictions, TOPIC).sum() == 0


# text                 gold spans                  predicted spans            right
# 1  B-time I-time O   time 0-1                    time 0-1                   1
# 2  B-date O B-time   date 0, time 2              date 0-1 (too long)        0
# 3  O B-place         place 1                     place 1, then cut          1
# 4  B-time O O        time 0                      time 0, padded             1
# 5  B-date            date 0                      none (unparsed)            0
# gold 6 spans, predicted 4, right 3: precision 3/4, recall 3/6, F1 2·3 / (4 + 6) = 0.6
FIVE = slots(
    ("B-time I-time O", "time time Other"),
    ("B-date O B-time", "date date Other"),
    ("O B-place", "Other place time time"),
    ("B-time O O", "time"),
    ("B-date", None),
)


def test_slot_metrics():
    assert metrics.compute(FIVE, (SLOTS,))["slots"] == {
        "support": 5,
        "unparsed": 1,
        "unparsed_rate": pytest.approx(1 / 5),
        "unknown_slots": 0,
        "slot_precision": pytest.approx(3 / 4),
        "slot_recall": pytest.approx(3 / 6),
        "slot_f1": pytest.approx(0.6),
        "slot_f1_iob2": pytest.approx(0.6),  # no neighbours of one type: the same spans
        "exact_match": pytest.approx(3 / 5),  # texts 1, 3, 4
    }


def test_neighbours_of_one_type_are_one_span_for_the_paper_and_two_in_strict_iob2():
    predictions = slots(("B-time B-time I-time O B-date", "time time time Other date"))
    figures = metrics.compute(predictions, (SLOTS,))["slots"]
    # grouped: gold time 0-2, date 4 = predicted
    assert figures["slot_f1"] == 1
    assert figures["exact_match"] == 1
    # strict: gold time 0, time 1-2, date 4; predicted time 0-2, date 4; right 1: 2·1 / (2 + 3)
    assert figures["slot_f1_iob2"] == pytest.approx(2 / 5)


def test_bio_predictions_keep_their_tags_in_strict_iob2():
    predictions = slots(
        ("B-time B-time O", "B-time B-time"),  # strict: 2 of 2; grouped: 1 of 1
        ("B-date O", "I-date O"),  # strict: no span starts without B; grouped: 1 of 1
        ("B-place I-place", "B-place I-time"),  # both: none; grouped finds place 0 and time 1
    )
    figures = metrics.compute(predictions, (SLOTS,), slot_format="bio")["slots"]
    # strict: gold 4; predicted time, time, place 0 (the I-time starts none) = 3; right 2
    assert figures["slot_f1_iob2"] == pytest.approx(2 * 2 / (3 + 4))
    # grouped: gold 3; predicted 1 + 1 + 2 = 4; right 2
    assert figures["slot_f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert figures["exact_match"] == pytest.approx(2 / 3)


def test_predictions_in_the_other_slot_format_are_refused():
    with pytest.raises(ValueError, match=r"record 0: .*'B-time'.*'names'"):
        metrics.compute(slots(("B-time", "B-time")), (SLOTS,))
    with pytest.raises(ValueError, match=r"'time'.*'bio'"):
        metrics.compute(slots(("B-time", "time")), (SLOTS,), slot_format="bio")


def test_texts_without_slots():
    nothing = slots(("O O", "Other Other"), ("O", None))
    figures = metrics.compute(nothing, (SLOTS,))["slots"]
    assert figures["slot_f1"] == figures["slot_f1_iob2"] == 0  # no span anywhere: 0/0
    assert figures["exact_match"] == 1 / 2  # unparsed is wrong, though padding gives the gold
    assert figures["unparsed"] == 1
    assert metrics.per_class_report(nothing, SLOTS) == {}


def test_unknown_slots_are_summed():
    predictions = slots(("O O", "Other Other"), ("O", "Other"), unknown_slots=2)
    assert metrics.compute(predictions, (SLOTS,))["slots"]["unknown_slots"] == 4


def test_per_class_report_of_slots():
    report = metrics.per_class_report(FIVE, SLOTS)
    assert report == {
        # gold texts 2, 5; predicted text 2 (wrong)
        "date": {"precision": 0, "recall": 0, "f1": 0, "support": 2, "predicted": 1},
        "place": {"precision": 1, "recall": 1, "f1": 1, "support": 1, "predicted": 1},
        # gold texts 1, 2, 4; predicted 1, 4: precision 1, recall 2/3, F1 2·2 / (2 + 3)
        "time": {
            "precision": 1,
            "recall": pytest.approx(2 / 3),
            "f1": pytest.approx(4 / 5),
            "support": 3,
            "predicted": 2,
        },
    }


def test_joint_exact_match_needs_every_task_right():
    def both(topic, predicted_topic, tags, predicted_slots):
        return Prediction(
            "id", "text", {"topic": topic, "slots": tags},
            {"topic": predicted_topic, "slots": predicted_slots},
        )  # fmt: skip

    predictions = [
        both("a", "a", ("B-time",), ("time",)),
        both("a", "b", ("B-time",), ("time",)),
        both("a", "a", ("B-time",), ("Other",)),
        both("a", None, ("O",), None),
        both("a", "a", None, ("time",)),  # hidden slots: not in the joint figure
    ]
    figures = metrics.compute(predictions, (TOPIC, SLOTS))
    assert figures["joint"] == {"support": 4, "exact_match": 1 / 4}
    assert figures["topic"]["accuracy"] == 3 / 5
    assert "joint" not in metrics.compute(predictions, (TOPIC,))


def test_main_metric():
    assert metrics.main_metric(TOPIC) == "accuracy"
    assert metrics.main_metric(SLOTS) == "slot_f1"


TOPICS = Task("topics", "multilabel", ("a", "b", "c"))
SCORE = Task("score", "regression", ())


def test_several_labels():
    # gold {a}, {a, b}, {}; predicted {a}, {b, c}, {}: a 1 of 2 found, b right, c wrong.
    pairs = [(("a",), ("a",)), (("a", "b"), ("b", "c")), ((), ())]
    found = [Prediction(str(i), "", {"topics": g}, {"topics": p}) for i, (g, p) in enumerate(pairs)]
    assert metrics.compute(found, (TOPICS,))["topics"] == {
        "support": 3,
        "unparsed": 0,
        "micro_f1": pytest.approx(2 * 2 / (3 + 3)),
        "macro_f1": pytest.approx((2 / 3 + 1) / 2),  # over a and b, which occur in gold
        "exact_match": pytest.approx(2 / 3),
    }
    assert set(metrics.per_class_report(found, TOPICS)) == {"a", "b", "c"}


def test_numbers():
    pairs = [(1.0, 1.0), (2.0, 2.0), (3.0, 5.0)]
    found = [Prediction(str(i), "", {"score": g}, {"score": p}) for i, (g, p) in enumerate(pairs)]
    # deviations -1 0 1 and -5/3 -2/3 7/3: 4 / sqrt(2 · 78/9)
    assert metrics.compute(found, (SCORE,))["score"] == {
        "support": 3,
        "unparsed": 0,
        "pearson": pytest.approx(4 / (2 * 78 / 9) ** 0.5),
        "spearman": pytest.approx(1.0),
        "mse": pytest.approx(4 / 3),
    }
    assert metrics.per_class_report(found, SCORE) == {}
    same = [Prediction(str(i), "", {"score": g}, {"score": 1.0}) for i, (g, _) in enumerate(pairs)]
    assert "pearson" not in metrics.compute(same, (SCORE,))["score"]


@pytest.mark.parametrize("task", [TOPIC, SLOTS, TOPICS, SCORE], ids=lambda task: task.kind)
def test_every_metric_is_named(task):
    gold = {"class": "a", "slots": ("B-time",), "multilabel": ("a",), "regression": 1.0}[task.kind]
    other = {"regression": 2.0}.get(task.kind, gold)
    found = [Prediction("1", "", {task.name: v}, {task.name: v}) for v in (gold, other)]
    measured = metrics.compute(found, (task,), "bio")[task.name]
    assert {f"{task.name}.{name}" for name in measured} == set(metrics.names((task,)))
    assert metrics.main_metric(task) in measured


# Labels that training never saw


def gold_of(labels, predicted, task):
    return [
        Prediction(str(number), "a b", {task.name: gold}, {task.name: found})
        for number, (gold, found) in enumerate(zip(labels, predicted, strict=True))
    ]


def test_an_unseen_class_counts_as_wrong():
    task = Task("topic", "class", ("a", "b"), metric="matthews")
    found = gold_of(["a", "b", "new", "newer"], ["a", "b", "a", None], task)
    values = metrics.compute(found, (task,))["topic"]
    # a: precision 1/2, recall 1; b: 1; the other two: 0.
    assert values["accuracy"] == 0.5
    assert values["macro_f1"] == pytest.approx((2 / 3 + 1 + 0 + 0) / 4)
    assert values["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert values["support"] == 4
    assert values["unparsed"] == 1
    assert 0 < values["matthews"] < 1
    per_class = metrics.per_class_report(found, task)
    assert per_class["new"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1, "predicted": 0}
    assert metrics.confusion(found, task).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    figure = significance.figure(found, task)
    (value,) = figure.value(figure.rows.sum(axis=0, keepdims=True))
    assert value == pytest.approx(values["matthews"])


def test_an_unseen_label_among_several_counts_as_wrong():
    task = Task("topics", "multilabel", ("a", "b"))
    found = gold_of([("a",), ("a", "new"), ("new",)], [("a",), ("a",), ()], task)
    values = metrics.compute(found, (task,))["topics"]
    assert values["exact_match"] == pytest.approx(1 / 3)
    assert values["micro_f1"] == pytest.approx(2 * 2 / (2 + 4))
    assert values["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert metrics.per_class_report(found, task)["new"]["support"] == 2


def test_an_unseen_slot_counts_as_wrong():
    task = Task("slots", "slots", ("time",))
    found = gold_of([("O", "B-new"), ("O", "B-time")], [("Other", "time")] * 2, task)
    values = metrics.compute(found, (task,))["slots"]
    assert values["exact_match"] == 0.5
    assert values["slot_f1"] == 0.5
    assert metrics.per_class_report(found, task)["new"]["support"] == 1


def test_probabilities_of_records_with_an_unseen_class():
    task = Task("topic", "class", ("a", "b"))
    scores = {"topic": {"a": 0.9, "b": 0.1}}
    found = [
        dataclasses.replace(each, scores=scores)
        for each in gold_of(["a", "b", "new"], ["a", "a", "a"], task)
    ]
    figures = calibration.measure(found, (task,), {}, 0.0)["topic"]
    assert figures["accuracy"] == pytest.approx(1 / 3)
    # No temperature makes it likely.
    assert calibration.fit(found, (task,)) == calibration.fit(found[:2], (task,))
