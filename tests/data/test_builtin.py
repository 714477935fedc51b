from collections import Counter

from jaxclf.data import builtin
from jaxclf.data.tasks import words

ROWS = builtin.rows()


def test_sizes_and_fields():
    assert Counter(row["partition"] for row in ROWS) == {"train": 3021, "dev": 399, "test": 609}
    assert len({row["utt"] for row in ROWS}) == len({row["id"] for row in ROWS}) == len(ROWS)
    massive = {"id", "locale", "partition", "scenario", "intent", "utt", "annot_utt", "worker_id"}
    assert all(set(row) == massive for row in ROWS)
    assert all(len(words(row["utt"])) <= 16 for row in ROWS)


def test_the_same_utterances_everywhere():
    assert builtin.rows() == ROWS
    assert ROWS[0]["annot_utt"] == "i want [food_type : sushi] from [business_name : green garden]"


def test_every_intent_is_in_every_split_in_like_shares():
    for partition in ("train", "dev", "test"):
        rows = [row for row in ROWS if row["partition"] == partition]
        counts = Counter(row["intent"] for row in rows)
        assert set(counts) == set(builtin.TEMPLATES)
        assert max(counts.values()) < 3 * min(counts.values())


def test_held_out_combinations_are_not_in_training():
    def combinations(*splits):
        return {
            (template, values)
            for templates in builtin.TEMPLATES.values()
            for template in templates
            for split, values in builtin.combinations(template)
            if split in splits
        }

    train, held_out = combinations("train"), combinations("dev", "test")
    assert len(held_out) > 1000
    assert not train & held_out
    # So neither is an utterance, even after a different opening.
    openings = {word.strip() for word in builtin.OPENINGS if word}
    texts = {
        split: {
            " ".join(words(row["utt"])[1:] if words(row["utt"])[0] in openings else [row["utt"]])
            for row in ROWS
            if (row["partition"] == "train") == (split == "train")
        }
        for split in ("train", "held out")
    }
    assert not texts["train"] & texts["held out"]


def test_training_has_every_template_word_and_value():
    train = [row for row in ROWS if row["partition"] == "train"]
    annotated = "\n".join(row["annot_utt"] for row in train)
    for slot, values in builtin.VALUES.items():
        for value in values:
            assert f"[{slot} : {value}]" in annotated
    known = {word for row in train for word in words(row["utt"])}
    assert {word for row in ROWS for word in words(row["utt"])} <= known
    for templates in builtin.TEMPLATES.values():
        for template in templates:
            assert "train" in {split for split, _ in builtin.combinations(template)}


def test_words_do_not_give_the_intent_or_slot_away():
    intents, slots = {}, {}
    for row in ROWS:
        for word in set(words(row["utt"])):
            intents.setdefault(word, set()).add(row["intent"])
    for slot, values in builtin.VALUES.items():
        for value in values:
            slots.setdefault(value, set()).add(slot)
    shared = [word for word, found in intents.items() if len(found) > 1]
    assert len(shared) > len(intents) / 2
    assert {"cancel", "remove", "set", "turn", "pizza", "adele", "call"} <= set(shared)
    assert {value for value, found in slots.items() if len(found) > 1} >= {
        "chicago",
        "adele",
        "sunday morning",
        "georgia",
    }
