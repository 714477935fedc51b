"""What is read from an output, and what is not."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclf.data.predictions import UNPARSED, Prediction
from jaxclf.data.tasks import OTHER, Task
from jaxclf.decoding.parsing import parse

TOPIC = Task("topic", "class", ("misc", "rec", "sci", "sci.space", "sci.space.news", "not sci"))
INTENT = Task("intent", "class", ("alarm_set", "alarm_set_off", "play_music"))
SLOTS = Task("slots", "slots", ("date", "time"))
BOTH = (INTENT, SLOTS)


def topic(text: str, fallback="none", rng=None):
    return parse(text, (TOPIC,), 5, fallback=fallback, rng=rng).values["topic"]


def both(text: str) -> tuple:
    return tuple(parse(text, BOTH, 3).values.values())


@pytest.mark.parametrize("label", TOPIC.labels)
def test_an_exact_label_is_read_with_space_around_it(label):
    assert topic(label) == label
    assert topic(f" \n{label}\t ") == label


@pytest.mark.parametrize(
    "text",
    ["", " ", "sci.", "sci.spac", "sci space", "SCI", "'sci'", '"sci"', "sci\nrec", "sci\x00", "a"],
)
def test_anything_but_a_label_is_unparsed(text):
    parsed = parse(text, (TOPIC,), 5)
    assert parsed.values == {"topic": UNPARSED}
    assert parsed.guessed == ()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("sci.space", "sci.space"),
        ("It is about sci.", "sci"),
        ("It is about sci.space.", "sci.space"),
        ("'sci.space.news' or 'sci'", "sci.space.news"),
        ("sci or rec", "sci"),
        ("label:sci", "sci"),
        ("that is not sci at all", "not sci"),
        ("sci.spaceship", UNPARSED),
        ("science", UNPARSED),
        ("prosci", UNPARSED),
        ("alt.sci", UNPARSED),
        ("sci-fi", UNPARSED),
        ("misc.rec", UNPARSED),
        ("", UNPARSED),
    ],
)
def test_first_takes_the_label_mentioned_first_as_a_whole_name(text, label):
    assert topic(text, "first") == label


def test_the_longer_of_two_labels_that_begin_alike_is_the_one_mentioned():
    task = Task("t", "class", ("alarm", "alarm clock", "alarm clock radio", "clock"))
    for label in task.labels:
        found = parse(f"Set the {label}!", (task,), 1, fallback="first")
        assert found.values == {"t": label}


def test_nearest_takes_the_smallest_edit_distance_and_ties_go_by_list_order():
    assert topic("sci.spac", "nearest") == "sci.space"
    assert topic(" SCI.space ", "nearest") == "sci.space"
    assert topic("sce", "nearest") == "sci"
    # "rci" is one edit from "sci", two from "rec"
    assert topic("rci", "nearest") == "sci"
    tied = Task("t", "class", ("ab", "ac", "ad"))
    assert parse("a", (tied,), 1, fallback="nearest").values == {"t": "ab"}


def test_random_draws_with_the_callers_generator():
    drawn = [topic("none of them", "random", random.Random(seed)) for seed in range(200)]
    assert set(drawn) == set(TOPIC.labels)
    assert drawn == [topic("none of them", "random", random.Random(seed)) for seed in range(200)]
    with pytest.raises(ValueError, match="rng"):
        topic("none of them", "random")


def test_a_guess_is_told_apart_from_an_answer():
    assert parse("sci", (TOPIC,), 5, fallback="nearest").guessed == ()
    guess = parse("sciii", (TOPIC,), 5, fallback="nearest")
    assert guess.guessed == ("topic",)
    assert parse("nothing", (TOPIC,), 5, fallback="first").guessed == ()
    prediction = Prediction("1", "x", {"topic": "sci"}, guess.values, guessed=guess.guessed)
    assert prediction.unparsed == ["topic"]
    assert Prediction("1", "x", {"topic": "sci"}, {"topic": UNPARSED}).unparsed == ["topic"]
    assert Prediction("1", "x", {"topic": "sci"}, {"topic": "rec"}).unparsed == []


def test_a_fallback_looks_into_the_field_first_and_into_the_whole_output_without_one():
    tasks = (INTENT, TOPIC)
    text = '{"task1": "do play_music", "task2": "not alarm_set but sci"}'
    assert parse(text, tasks, 3, fallback="first").values == {
        "intent": "play_music",
        "topic": "sci",
    }
    assert parse("alarm_set, rec", tasks, 3, fallback="first").values == {
        "intent": "alarm_set",
        "topic": "rec",
    }


@pytest.mark.parametrize(
    ("text", "items", "unknown"),
    [
        ('["Other", "time"]', ("Other", "time"), 0),
        ("['Other', 'time']", ("Other", "time"), 0),
        ('["Other" , " time "] and more', ("Other", "time"), 0),
        ('Slots: ["time"]', ("time",), 0),
        ("[]", (), 0),
        ('["Other", "time"', ("Other", "time"), 0),
        ('["Other", "ti', ("Other",), 0),
        ('["Other", ', ("Other",), 0),
        ('["Other",, "time"]', ("Other",), 0),
        ('["Other" "time"]', ("Other",), 0),
        ('["Other", time, "date"]', ("Other", "Other", "date"), 1),
        ('["place", "B-time", "time"]', ("Other", "Other", "time"), 2),
        ('["time", 5, null, ["date"], {"a": ["b"]}, "date"]',
         ("time", "Other", "Other", "Other", "Other", "date"), 4),
        (str(["time"] * 6 + ["place"]), ("time",) * 6 + ("Other",), 0),  # past the six words
        ("[", UNPARSED, 0),
        ('["ti', UNPARSED, 0),
        ("time", UNPARSED, 0),
        ('"time", "date"]', UNPARSED, 0),
        ("", UNPARSED, 0),
    ],
)  # fmt: skip
def test_slots_are_read_up_to_the_break_and_strangers_are_other(text, items, unknown):
    parsed = parse(text, (SLOTS,), 6)
    assert parsed.values == {"slots": items}
    assert parsed.unknown_slots == unknown


def test_bio_slots_have_their_own_names():
    parsed = parse('["O", "B-time", "I-time", "time", "B-place"]', (SLOTS,), 5, slot_format="bio")
    assert parsed.values == {"slots": ("O", "B-time", "I-time", "O", "O")}
    assert parsed.unknown_slots == 2


GOOD = ("alarm_set", ("Other", "time"))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"task1": "alarm_set", "task2": ["Other", "time"]}', GOOD),
        ("{'task1': 'alarm_set', 'task2': ['Other', 'time']}", GOOD),
        ('{ "task2" :["Other","time"],\n"task1":" alarm_set" }', GOOD),
        ('{"task1": "alarm\\u005fset", "task2": ["Oth\\u0065r", "time"]}', GOOD),
        # text around the object
        ('Here\'s it: {"task1": "alarm_set", "task2": ["Other", "time"]} Good luck', GOOD),
        ('{"task1": "alarm_set", "task2": ["Other", "time"]} {"task1": "play_music"}', GOOD),
        ('{x} {"task1": "alarm_set", "task2": ["Other", "time"]}', GOOD),
        # fields that are doubled, unknown, inside others
        ('{"task1": "alarm_set", "task2": ["Other", "time"], "task1": "play_music"}', GOOD),
        ('{"task3": {"task1": "x"}, "task1": "alarm_set", "task2": ["Other", "time"]}', GOOD),
        ('{"task0": 1e5, "task1": "alarm_set", "task2": ["Other", "time"]}', GOOD),
        (
            '{"task0": "\\"task1\\": \\"x\\"", "task1": "alarm_set", "task2": ["Other", "time"]}',
            GOOD,
        ),
        ('{"answer": {"task1": "alarm_set", "task2": ["Other"]}}', (UNPARSED, UNPARSED)),
        # truncated
        ('{"task1": "alarm_set", "task2": ["Other", "time"]', GOOD),
        ('{"task1": "alarm_set", "task2": ["Other", "time"', GOOD),
        ('{"task1": "alarm_set", "task2": ["Other", "time", "da', GOOD),
        ('{"task1": "alarm_set"', ("alarm_set", UNPARSED)),
        ('{"task1": "alarm_set', (UNPARSED, UNPARSED)),
        ('{"task2": ["Other"], "task1": "alarm_set', (UNPARSED, ("Other",))),
        # broken
        ('{"task1": "alarm_set" "task2": ["Other", "time"]}', GOOD),
        ('{"task1": "alarm_set", task2: ["Other", "time"]}', ("alarm_set", UNPARSED)),
        ('{"task1": "alarm_set", "task2": ["Other", "time"], }', GOOD),
        ('"task1": "alarm_set", "task2": ["Other", "time"]', GOOD),
        ('{"task2": ["Other", "time", "task1": "alarm_set"}', GOOD),
        ('{"task1": , "task2": ["Other", "time"]}', (UNPARSED, ("Other", "time"))),
        ('{"task1": "alarm_set, "task2": ["Other", "time"]}', (UNPARSED, ("Other", "time"))),
        ('{"task1": alarm_set, "task2": ["Other", "time"]}', (UNPARSED, ("Other", "time"))),
        ('{"task1": "alarm_set"_off", "task2": ["Other", "time"]}', (UNPARSED, ("Other", "time"))),
        # of the wrong type; the first of duplicates counts even so
        ('{"task1": ["alarm_set"], "task2": "time"}', (UNPARSED, UNPARSED)),
        ('{"task1": {"task1": "alarm_set"}, "task2": ["Other"]}', (UNPARSED, ("Other",))),
        ('{"task1": 5, "task2": ["Other"], "task1": "alarm_set"}', (UNPARSED, ("Other",))),
        ('{"task1": null, "task2": {"a": 1}}', (UNPARSED, UNPARSED)),
        # labels that begin alike
        ('{"task1": "alarm_set_off", "task2": []}', ("alarm_set_off", ())),
        ('{"task1": "alarm", "task2": []}', (UNPARSED, ())),
        # nothing
        ("", (UNPARSED, UNPARSED)),
        ("{}", (UNPARSED, UNPARSED)),
        ("alarm_set", (UNPARSED, UNPARSED)),
        ('["alarm_set"]', (UNPARSED, UNPARSED)),
    ],
)
def test_each_field_of_two_is_judged_alone(text, values):
    assert both(text) == values


def test_labels_with_quotes_and_letters_of_other_scripts():
    task = Task("t", "class", ('say "hi"', "o'clock", "naïve", "日本", "back\\slash"))
    for label in task.labels:
        for ascii_only in (True, False):
            text = json.dumps({"task1": label, "task2": label}, ensure_ascii=ascii_only)
            parsed = parse(text, (task, Task("u", "class", task.labels)), 1)
            assert parsed.values == {"t": label, "u": label}
        assert parse(repr({"task1": label}), (task, SLOTS), 1).values["t"] == label


@pytest.mark.parametrize(
    "value",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "9" * 100_000,
        '"' * 100_001,
        "'" * 100_001,
        "\\" * 100_001,
        '"' + '\\"' * 100_000,
        " " * 100_000,
        '"task1":' * 50_000,
        '"task2": [' * 50_000,
        "sci." * 50_000,
        "\x00" * 1000 + "\ud800",
    ],
    ids=lambda value: value[:12],
)
def test_outputs_that_break_other_readers(value):
    for fallback in ("first", "nearest"):
        parse(value, (TOPIC,), 3, fallback=fallback)
        parse(f'{{"task1": {value}', BOTH, 3, fallback=fallback)
    parse(value, (SLOTS,), 3)
    assert both(f'{{"task1": "alarm_set", "task2": {value}')[0] == "alarm_set"


FRAGMENTS = [
    *"{}[]\"':,\\ \n5.\x00\u202e\ud800",
    *('"task1"', '"task2"', "'task1'", "null", '"time"', "Other", "\\u00e9", "\\ud83d", "[/INST]"),
    *("sci", "sci.space", "space", "alarm_set", "_off"),
]
# Bytes are drawn much faster than lists of fragments.
SHARDS = st.binary(max_size=24).map(
    lambda choices: "".join(FRAGMENTS[choice % len(FRAGMENTS)] for choice in choices)
)


@settings(max_examples=10_000, deadline=None)
@given(
    text=st.text() | SHARDS,
    tasks=st.sampled_from([(TOPIC,), (SLOTS,), (TOPIC, INTENT, SLOTS)]),
    fallback=st.sampled_from(["none", "first", "nearest", "random"]),
)
def test_no_output_raises_and_every_value_is_in_the_label_set(text, tasks, fallback):
    values = parse(text, tasks, 3, fallback=fallback, rng=random.Random(0)).values
    for task in tasks:
        value = values[task.name]
        if task.kind == "class":
            assert value in task.labels or (value is UNPARSED and fallback in ("none", "first"))
        else:
            assert value is UNPARSED or {*value} <= {*task.labels, OTHER}
    if fallback == "none":
        assert topic(text) == (text.strip() if text.strip() in TOPIC.labels else UNPARSED)


@settings(max_examples=500, deadline=None)
@given(
    intent=st.sampled_from(INTENT.labels),
    slots=st.lists(st.sampled_from([*SLOTS.labels, OTHER]), max_size=8),
    rest=st.text(max_size=20),
    data=st.data(),
)
def test_a_truncated_answer_gives_a_part_of_the_whole_answer(intent, slots, rest, data):
    answer = json.dumps({"task1": intent, "task2": slots})
    assert both(answer + rest) == (intent, tuple(slots))
    cut = data.draw(st.integers(0, len(answer)))
    read_intent, read_slots = both(answer[:cut])
    assert read_intent in (intent, UNPARSED)
    assert read_slots is UNPARSED or read_slots == tuple(slots[: len(read_slots)])
    if cut == len(answer):
        assert (read_intent, read_slots) == (intent, tuple(slots))


# What is read of an untuned model's output


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("sci.space\nText: more\nLabel: rec", "sci.space"),
        ("\n\n  sci.space \n", "sci.space"),
        ("about\nsci.space", None),
        ("", None),
    ],
)
def test_the_first_line_alone(text, label):
    topic = Task("topic", "class", ("rec", "sci.space"))
    assert parse(text, (topic,), 1, first_line=True).values == {"topic": label}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("It is about orbits.\nLabel: sci.space", "sci.space"),
        ("hm\n  Label: sci.space\n\nText: x\nLabel: rec", "sci.space"),
        ("hm\nLabel:\nsci.space", "sci.space"),
        ("sci.space", None),
        ("rec\nso I say: Label: sci.space", None),
        ("rec\nLabel: maybe sci.space", None),
        ("rec\nLabel:", None),
    ],
)
def test_thoughts_before_the_cue_are_never_an_answer(text, label):
    topic = Task("topic", "class", ("rec", "sci.space"))
    assert parse(text, (topic,), 1, cue="Label:").values == {"topic": label}
    if "Label:" not in text:
        guessed = parse(text, (topic,), 1, fallback="first", cue="Label:")
        assert guessed.values == {"topic": None}


def test_the_cue_of_several_tasks_and_of_slots():
    tasks = (Task("topic", "class", ("rec", "sci")), Task("slots", "slots", ("time",)))
    text = '{"task1": "rec"} or so\nOutput: {"task1": "sci",\n "task2": ["time"]}'
    found = parse(text, tasks, 1, cue="Output:").values
    assert found == {"topic": "sci", "slots": ("time",)}
    assert parse('["time"]', tasks[1:], 1, cue="Slots:").values == {"slots": None}


@pytest.mark.parametrize("text", ["AA", " AA\n", "AA)", "(AA)", "AA.", "AA) label26"])
def test_an_option_is_read_by_its_letter(text):
    task = Task("t", "class", tuple(f"label{number}" for number in range(30)))
    assert parse(text, (task,), 1, lettered=True).values == {"t": "label26"}


@pytest.mark.parametrize("text", ["a", "A A", "AE", "A) label1", "label0", "A or B", ""])
def test_no_letter_of_an_option_is_unparsed(text):
    task = Task("t", "class", tuple(f"label{number}" for number in range(30)))
    assert parse(text, (task,), 1, lettered=True).values == {"t": None}
