import pytest

from jaxclf.data.slot_formats import annotated, slot_tags
from jaxclf.data.tasks import bio_slots, plain_slots, words


def test_words_are_what_stands_between_white_space():
    assert words("  wake me\tup\n at  five ") == ["wake", "me", "up", "at", "five"]


def test_plain_slots():
    assert plain_slots(("O", "B-time", "I-time", "B-date")) == ("Other", "time", "time", "date")


def test_bio_slots_joins_equal_neighbours_only():
    plain = ("time", "time", "Other", "time", "date", "date")
    assert bio_slots(plain) == ("B-time", "I-time", "O", "B-time", "B-date", "I-date")


def test_annotation_gives_one_tag_per_word():
    assert annotated("wake me at [time : five am] [date : this week] please") == (
        ["wake", "me", "at", "five", "am", "this", "week", "please"],
        ("O", "O", "O", "B-time", "I-time", "B-date", "I-date", "O"),
    )


def test_annotation_keeps_neighbouring_spans_of_one_slot_apart():
    assert annotated("[person : anna] [person : tom]")[1] == ("B-person", "B-person")


def test_annotation_keeps_a_colon_in_the_value():
    assert annotated("at [time : 5:30 pm]") == (["at", "5:30", "pm"], ("O", "B-time", "I-time"))


def test_annotation_inside_a_word_takes_the_whole_word():
    assert annotated("pre[time : five six]post [date : to]day's") == (
        ["prefive", "sixpost", "today's"],
        ("B-time", "I-time", "B-date"),
    )


def test_annotation_two_slots_in_a_word_leave_the_first():
    assert annotated("[time : 5][unit : am] now") == (["5am", "now"], ("B-time", "O"))


@pytest.mark.parametrize(
    "slots",
    [
        "at [time : five am]",
        ["Other", "time", "time"],
        ["O", "time", "time"],
        ["O", "B-time", "I-time"],
        ("O", "I-time", "I-time"),  # an I- tag that continues nothing opens a span
        '["Other", "time", "time"]',
    ],
)
def test_slots_may_be_written_as(slots):
    assert slot_tags(slots, "at five am") == ("O", "B-time", "I-time")


def test_bio_list_keeps_neighbouring_spans_apart_and_plain_list_joins_them():
    assert slot_tags(["B-a", "B-a"], "x y") == ("B-a", "B-a")
    assert slot_tags(["a", "a"], "x y") == ("B-a", "I-a")


def test_a_text_with_brackets_of_its_own():
    assert slot_tags("[sic] at [time : five]", "[sic] at five") == ("O", "O", "B-time")


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ("at [time : six am]", "word 2 is 'six'; the text has 'five'"),
        ("at [time : five]", "2 words; the text has 3"),
        ("at [time : five am", "word 2 is '.time'; the text has 'five'"),
        (["O", "O"], "2 tags for the 3 words"),
        ([], "0 tags for the 3 words"),
        (["O", "B-time", 3], "one tag .text. per word"),
        ({"time": "five am"}, "one tag .text. per word"),
        (["O", "B-time", "time"], "both BIO tags .'B-time'. and plain names"),
        ("at [ : five] am", "'' cannot name a slot"),
        (["O", "B-Other", "I-Other"], "'Other' cannot name a slot"),
        (["O", " time", " time"], "' time' cannot name a slot"),
    ],
)
def test_slots_that_do_not_fit(slots, reason):
    with pytest.raises(ValueError, match=reason):
        slot_tags(slots, "at five am")


def test_words_of_all_of_massive_line_up(shared_root):
    import gzip
    import json

    with gzip.open(shared_root / "data/massive/en-US.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 16_521
    spans = 0
    for row in rows:
        found, tags = annotated(row["annot_utt"])
        assert found == words(row["utt"])
        assert len(tags) == len(found)
        # Every bracket became one span: none was dropped for want of a word.
        spans += row["annot_utt"].count("[")
        spans -= sum(tag.startswith("B-") for tag in tags)
    assert spans == 0
