"""Probabilities of labels from the likeliest tokens of an answer."""

import math

import pytest

from jaxclf.remote.label_logprobs import label_probabilities

LABELS = {name: name for name in ("alarm_set", "alarm_remove", "play_music", "play")}


def place(token, **others):
    """A token's probability, given as `token=p` first, and those of others there."""
    return tuple((name, math.log(p)) for name, p in {token[0]: token[1], **others}.items())


def test_what_differs_later_has_the_probability_of_what_comes_before():
    places = (
        place(("alarm", 0.8), play=0.15, zebra=0.05),
        place(("_set", 0.9), _remove=0.1),
    )
    found = label_probabilities(places, {k: k for k in ("alarm_set", "alarm_remove", "play_music")})
    assert found == pytest.approx(
        {"alarm_set": 0.72 / 0.95, "alarm_remove": 0.08 / 0.95, "play_music": 0.15 / 0.95}
    )


def test_labels_that_begin_alike_share_an_alternative():
    found = label_probabilities((place(("alarm_set", 0.6), play=0.4),), LABELS)
    expected = {"alarm_set": 0.6, "alarm_remove": 0, "play": 0.2, "play_music": 0.2}
    assert found == pytest.approx(expected)


def test_spaces_before_the_answer_and_what_follows_it_say_nothing():
    spaced = ((("\n", math.log(0.9)), (" ", math.log(0.1))), place((" alarm_set", 1.0)))
    assert label_probabilities(spaced, LABELS)["alarm_set"] == pytest.approx(1)
    followed = (*spaced, place((".", 0.5), play=0.5))
    assert label_probabilities(followed, LABELS)["alarm_set"] == pytest.approx(1)


def test_a_label_that_begins_another_is_the_answer_where_it_ends():
    assert label_probabilities((place(("play", 0.9), alarm=0.1),), LABELS)["play"] > 0.8
    longer = (place(("play", 0.9), alarm=0.1), place(("_music", 0.5)))
    found = label_probabilities(longer, LABELS)
    assert found["play_music"] > found["alarm_set"] > found["play"] == 0


@pytest.mark.parametrize("text", ["The label is alarm_set", "zebra", "", "alarm"])
def test_another_answer_has_no_probabilities(text):
    assert label_probabilities((place((text, 0.9), play=0.1),), LABELS) is None
    assert label_probabilities((), LABELS) is None
