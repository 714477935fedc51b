"""What an encoder reads: the family's marks around plain text, and a place for every label."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxclf.core.errors import InputError
from jaxclf.data.encoder_inputs import encode
from jaxclf.data.tasks import Record, Task
from jaxclf.data.tokenizer import Tokenizer

INTENT = Task("intent", "class", ("alarm", "music"))
SLOTS = Task("slots", "slots", ("day", "time"))
TEXT = "wake me at five am on friday"
TAGS = ("O", "O", "O", "B-time", "I-time", "O", "B-day")
RECORD = Record("1", TEXT, {"intent": "music", "slots": TAGS})
SHARED = Path(os.environ.get("JAXCLF_DATA_ROOT", "")).parent / "tokenizers"

real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real vocabularies")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT, "wake me", "at five"] * 3, vocab_size=300)


def one(record, tokenizer, tasks=(INTENT, SLOTS), slot_format="names", max_length=64, **options):
    (found,) = encode([record], tasks, tokenizer, slot_format, max_length, **options)
    return found


def test_class_at_the_first_token_and_slots_at_the_words(tokenizer):
    found = one(RECORD, tokenizer)
    pieces = [tokenizer.hf.convert_ids_to_tokens([token])[0] for token in found.tokens.tolist()]
    assert (pieces[0], pieces[-1]) == ("<s>", "</s>")
    places, labels = found.targets["intent"]
    assert (places.tolist(), labels.tolist()) == ([0], [1])
    places, labels = found.targets["slots"]
    assert labels.tolist() == [0, 0, 0, 2, 2, 0, 1]  # Other, day, time
    assert found.words == tuple(range(7))
    firsts = [pieces[place].lstrip("Ġ") for place in places]
    assert [word.startswith(first) for word, first in zip(TEXT.split(), firsts, strict=True)] == (
        [True] * 7
    )


def test_bio_labels(tokenizer):
    _, labels = one(RECORD, tokenizer, slot_format="bio").targets["slots"]
    assert labels.tolist() == [0, 0, 0, 3, 4, 0, 1]  # O, B-day, I-day, B-time, I-time


def test_slots_are_of_the_first_text_alone(tokenizer):
    alone = one(RECORD, tokenizer)
    pair = one(Record("1", TEXT, RECORD.labels, pair="wake me at five"), tokenizer)
    assert len(pair.tokens) > len(alone.tokens)
    assert pair.words == alone.words == tuple(range(7))
    for each in ("intent", "slots"):
        for found, expected in zip(pair.targets[each], alone.targets[each], strict=True):
            assert found.tolist() == expected.tolist()


def test_words_that_are_cut_have_no_place(tokenizer):
    found = one(RECORD, tokenizer, max_length=8)
    assert len(found.tokens) == 8
    assert found.cut == len(one(RECORD, tokenizer).tokens) - 8
    assert len(found.words) == len(found.targets["slots"][0]) < 7
    with pytest.raises(InputError, match=r"record 1 has \d+ tokens; max_length is 8"):
        one(RECORD, tokenizer, max_length=8, truncate=False)


def test_hidden_gold_has_no_place_and_prediction_has_all(tokenizer):
    hidden = Record("1", TEXT, {"intent": None, "slots": TAGS})
    assert one(hidden, tokenizer).targets["intent"][0].size == 0
    found = one(Record("1", TEXT, {}), tokenizer, gold=False)
    assert found.targets["intent"][0].tolist() == [0]
    assert len(found.targets["slots"][0]) == 7


def test_several_labels_and_numbers(tokenizer):
    topics = Task("topics", "multilabel", ("a", "b", "c"))
    score = Task("score", "regression", ())
    record = Record("1", TEXT, {"topics": ("a", "c"), "score": 2.5})
    found = one(record, tokenizer, (topics, score))
    assert found.targets["topics"][1].tolist() == [[1, 0, 1]]
    assert found.targets["score"][1].tolist() == [2.5]
    none = one(Record("1", TEXT, {"topics": (), "score": 0.0}), tokenizer, (topics, score))
    assert none.targets["topics"][1].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("text", ["<s> </s>", "wake </s></s> me", "<pad>"])
def test_special_tokens_in_texts_are_plain_text(tokenizer, text):
    found = one(Record("1", text, {"intent": "alarm"}), tokenizer, (INTENT,))
    special = [token for token in found.tokens.tolist() if token in tokenizer.special_ids]
    assert special == [tokenizer.bos_id, tokenizer.eos_id]


def test_the_longer_text_of_a_pair_is_cut(tokenizer):
    record = Record("1", "wake " * 20, {"intent": "alarm"}, pair="five")
    found = one(record, tokenizer, (INTENT,), max_length=14)
    assert len(found.tokens) == 14
    short = one(Record("1", "five", {"intent": "alarm"}), tokenizer, (INTENT,)).tokens[1:-1]
    assert found.tokens[-1 - len(short) : -1].tolist() == short.tolist()
    with pytest.raises(InputError, match="leaves no room"):
        one(record, tokenizer, (INTENT,), max_length=4)


@real
@pytest.mark.parametrize("family", ["bert-base-uncased", "roberta-base"])
@pytest.mark.parametrize("pair", ["", "it is late , is it not ?"])
def test_inputs_equal_those_of_transformers(family, pair):
    tokenizer = Tokenizer.load(SHARED / family)
    text = "Wake me at five-thirty, the naïve façade of unaffordability 😀 notwithstanding"
    record = Record("1", text, {"intent": "alarm"}, pair=pair)
    for length in (64, 16):
        found = one(record, tokenizer, (INTENT,), max_length=length)
        theirs = tokenizer.hf(text, pair or None, truncation=True, max_length=length)
        assert found.tokens.tolist() == theirs["input_ids"]
        types = theirs.get("token_type_ids", [0] * len(found.types))
        assert found.types.tolist() == types


@real
def test_word_places_equal_those_of_split_words():
    tokenizer = Tokenizer.load(SHARED / "bert-base-uncased")
    words = "wake me at five-thirty on unaffordability friday".split()
    record = Record("1", "  ".join(words), {"slots": ("O",) * len(words)})
    found = one(record, tokenizer, (SLOTS,))
    theirs = tokenizer.hf(words, is_split_into_words=True)
    assert found.tokens.tolist() == theirs["input_ids"]
    firsts = [theirs.word_to_tokens(word).start for word in range(len(words))]
    np.testing.assert_array_equal(found.targets["slots"][0], firsts)
