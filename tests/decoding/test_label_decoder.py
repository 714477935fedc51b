"""Answers made of labels alone: with real tokenizers' cuts, several tasks, slots and scores."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Record, Task
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding import answer_layout
from jaxclf.decoding import parsing as labels
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.prompts import builder
from jaxclf.prompts.builder import Piece, Prompt
from jaxclf.prompts.template import letters
from tests.tiny import CONFIG, random_params

INTENT = Task("intent", "class", ("alarm_query", "alarm_set", "play", "play_music", "weather"))
TOPIC = Task("topic", "class", ("sci", "sci.med", "sci.space"))
SLOTS = Task("slots", "slots", ("date", "event_name", "time"))
ALL = (INTENT, SLOTS, TOPIC)
TEXTS = ["wake me at five", "play", "", "rain on the first of june", "a b c"]
RECORDS = [Record(str(number), text, {}) for number, text in enumerate(TEXTS)]


def gold(intent, slots, topic):
    return {"intent": intent, "slots": slots, "topic": topic}


@pytest.fixture(scope="module")
def tokenizer():
    written = [
        " " + builder.answer(Record("", "", gold(intent, slots, topic)), tasks)
        for intent, topic, slots in [
            ("alarm_set", "sci", ("O", "B-time")),
            ("play_music", "sci.med", ("B-date", "I-date", "B-event_name", "O")),
            ("weather", "sci.space", ("O", "O", "B-date")),
        ]
        for tasks in (ALL, (INTENT, SLOTS), (TOPIC,))
    ]
    return Tokenizer.train([*TEXTS, *written, *written], 340)


@pytest.fixture(scope="module")
def model(tokenizer):
    return registry.create(dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size))


def classifier(
    model, tokenizer, tasks, slot_format="names", lettered=False, **decoding
) -> GenerativeClassifier:
    prompt = Prompt((), (Piece("\nLabel:", is_data=False),), lettered=lettered)
    recipe = Recipe(tasks, prompt, slot_format, max_length=64, max_new_tokens=24)
    return GenerativeClassifier(model, tokenizer, recipe, Decoding(**decoding))


# -- the pieces


def test_pieces_are_cut_as_the_docstring_says(tokenizer):
    found = answer_layout.layout((INTENT, SLOTS), tokenizer, "names")
    intent, slots = found.fields

    def texts(pieces):
        return [tokenizer.decode(piece) for piece in pieces]

    assert tokenizer.decode(found.lead) == ' {"task1": "'
    assert texts(intent.pieces)[1] == 'alarm_set", "task2": ["'
    assert texts(intent.scored)[1] in ('alarm_set", "', 'alarm_set"', 'alarm_set",')
    assert texts(slots.inner) == [f'{name}", "' for name in ("Other", *SLOTS.labels)]
    assert texts(slots.pieces)[0] == 'Other"]}'
    (topic,) = answer_layout.layout((TOPIC,), tokenizer, "names").fields
    assert topic.scored == topic.pieces


@pytest.mark.parametrize("slot_format", ["names", "bio"])
@pytest.mark.parametrize("tasks", [ALL, (SLOTS,), (TOPIC,), (Task("t", "class", ("one",)),)])
def test_pieces_together_are_the_answer_s_own_tokens(tokenizer, tasks, slot_format):
    found = answer_layout.layout(tasks, tokenizer, slot_format)
    random = np.random.default_rng(0)
    for words in (1, 2, 5):
        ids, labels = found.lead, {}
        for field in found.fields:
            *rest, last = random.integers(0, len(field.names), words if field.inner else 1)
            for item in rest:
                ids += field.inner[item]
            ids += field.pieces[last]
            names = tuple(field.names[item] for item in (*rest, last))
            labels[field.task.name] = names if field.inner else names[0]
        assert ids == tuple(tokenizer.encode_answer(found.text(labels)))


@pytest.mark.parametrize("name", ["gpt2", "llama2", "t5"])
def test_released_tokenizers_can_be_cut(shared_root, name):
    tokenizer = Tokenizer.load(shared_root / "tokenizers" / name)
    for tasks in (ALL, (INTENT,), (SLOTS,), (TOPIC, INTENT)):
        assert answer_layout.layout(tasks, tokenizer, "names", lead=" ").fields


def test_a_tokenizer_that_joins_labels_is_refused(tokenizer, monkeypatch):
    real = tokenizer.encode_answer

    def joins(text, lead=" "):
        """As if two neighbouring times were one word."""
        return real(text.replace('time", "time', "time"), lead)

    monkeypatch.setattr(tokenizer, "encode_answer", joins)
    with pytest.raises(InputError, match=r"beside other labels.*eval\.decoding=free"):
        answer_layout.layout((SLOTS,), tokenizer, "names")
    monkeypatch.setattr(tokenizer, "encode_answer", lambda text, lead: real(text.lower(), lead))
    twice = Task("t", "class", ("No", "no"))
    with pytest.raises(InputError, match="same tokens for 'No' and 'no' of t"):
        answer_layout.layout((twice,), tokenizer, "names")


# -- the labels


@pytest.mark.parametrize("mode", ["constrained", "score"])
@pytest.mark.parametrize(("tasks", "slot_format"), [(ALL, "names"), ((SLOTS,), "bio")])
def test_answers_are_well_formed(model, params, tokenizer, tasks, slot_format, mode):
    found = (
        classifier(model, tokenizer, tasks, slot_format, mode=mode)
        .with_params(params)
        .predict(RECORDS, 5)
    )
    for record, prediction in zip(RECORDS, found, strict=True):
        count = len(record.text.split())
        assert not prediction.unparsed
        assert len(prediction.predicted["slots"]) == count
        read = labels.parse(prediction.raw, tasks, count, slot_format)
        assert read.values == prediction.predicted
        assert read.unknown_slots == 0
        for task in tasks:
            if task.kind == "class" and mode == "score":
                scores = prediction.scores[task.name]
                assert tuple(scores) == task.labels
                assert sum(scores.values()) == pytest.approx(1)
                assert max(scores, key=scores.get) == prediction.predicted[task.name]
    assert len({prediction.raw for prediction in found}) > 2


@pytest.mark.parametrize("mode", ["constrained", "score"])
def test_answers_do_not_depend_on_the_batch(model, params, tokenizer, mode):
    one = classifier(model, tokenizer, (INTENT, SLOTS), mode=mode, score_bound=0.1)
    together = one.with_params(params).predict(RECORDS, 5)
    apart = [one.with_params(params).predict([record], 5)[0] for record in RECORDS]
    for first, second in zip(together, apart, strict=True):
        assert first.predicted == second.predicted
        if mode == "score":
            values = [np.array(list(each.scores["intent"].values())) for each in (first, second)]
            np.testing.assert_allclose(*values, atol=1e-5)


def test_constrained_labels_follow_from_the_model_alone(model, params, tokenizer):
    """Step by step: the likeliest token among those that some answer goes on with."""
    chosen = classifier(model, tokenizer, (TOPIC, INTENT), mode="constrained")
    found = chosen.with_params(params).predict(RECORDS, len(RECORDS))
    possible = {}
    for topic in TOPIC.labels:
        for intent in INTENT.labels:
            labels = {"topic": topic, "intent": intent}
            text = builder.answer(Record("", "", labels), (TOPIC, INTENT))
            possible[tuple(tokenizer.encode_answer(text))] = labels

    @jax.jit
    def logits(tokens):
        module = model.bind(params)
        width = tokens.shape[1]
        positions = np.arange(width)[None]
        return module.logits(module.hidden(tokens, positions, jnp.ones_like(tokens)))[0]

    for example, prediction in zip(chosen.tokens(RECORDS), found, strict=True):
        prompt, answer = [*example.prefix.tolist(), *example.text.tolist()], ()
        while answer not in possible:
            allowed = sorted({ids[len(answer)] for ids in possible if ids[: len(answer)] == answer})
            tokens = np.zeros((1, 64), np.int32)
            tokens[0, : len(prompt) + len(answer)] = [*prompt, *answer]
            last = np.asarray(logits(tokens))[len(prompt) + len(answer) - 1]
            answer += (allowed[int(np.argmax(last[allowed]))],)
        assert prediction.predicted == possible[answer]


@pytest.mark.parametrize(("normalise", "text"), [("pmi", ""), ("contextual", "N/A")])
def test_scores_are_relative_to_those_without_a_text(model, params, tokenizer, normalise, text):
    tasks = (TOPIC, INTENT)
    plain, given = (
        classifier(model, tokenizer, tasks, mode="score", score_bound=0.0, normalise=each)
        for each in ("none", normalise)
    )
    record, free = plain.with_params(params).predict([RECORDS[0], Record("", text, {})], 2)
    (found,) = given.with_params(params).predict(RECORDS[:1], 2)
    names = ["topic"]
    # The second field follows the first's best label, which without a text may be another.
    if found.predicted["topic"] == record.predicted["topic"] == free.predicted["topic"]:
        names.append("intent")
    for name in names:
        p, q, actual = (
            np.array(list(each.scores[name].values())) for each in (record, free, found)
        )
        np.testing.assert_allclose(actual, (p / q) / (p / q).sum(), rtol=1e-3)
        assert not np.allclose(actual, p, rtol=1e-2)
    assert sum(found.scores["intent"].values()) == pytest.approx(1)


@pytest.mark.parametrize("mode", ["constrained", "score"])
def test_options_are_chosen_by_their_letters(model, params, tokenizer, mode):
    many = Task("many", "class", tuple(f"label{number:02}" for number in range(30)))
    chosen = classifier(model, tokenizer, (many,), lettered=True, mode=mode)
    assert chosen.answerer.layout.text({"many": "label27"}) == "AB"
    found = chosen.with_params(params).predict(RECORDS, len(RECORDS))
    for prediction in found:
        assert prediction.raw == letters(many)[prediction.predicted["many"]]
        assert labels.parse(prediction.raw, (many,), 1, lettered=True).values == (
            prediction.predicted
        )
    if mode == "score":
        assert set(found[0].scores["many"]) == set(many.labels)
    in_json = answer_layout.layout((many, SLOTS), tokenizer, "names", lettered=True)
    assert in_json.text({"many": "label26", "slots": ("time",)}) == (
        '{"task1": "AA", "task2": ["time"]}'
    )


def test_facts_tell_how_much_was_left_unread(model, params, tokenizer):
    given = classifier(model, tokenizer, (INTENT,), mode="score", score_bound=0.3)
    given = given.with_params(params)
    given.predict(RECORDS, len(RECORDS))
    facts = given.facts()
    assert facts | {"unread": 0} == {
        "mode": "score",
        "score_bound": 0.3,
        "normalise": "none",
        "unread": 0,
    }
    assert 0 < facts["unread"] <= 0.3
    assert classifier(model, tokenizer, (INTENT,)).facts() == {"mode": "free"}


def test_a_shared_prefix_is_computed_once_and_keeps_no_parameters(model, tokenizer):
    made = classifier(model, tokenizer, (TOPIC,), mode="free")
    lead = (Piece("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2, is_data=False),)
    prompt = Prompt(lead, (Piece("\nLabel:", is_data=False),))
    made.recipe = dataclasses.replace(made.recipe, prompt=prompt, max_length=250)
    computed, real = [], made.compute_prefix
    made.compute_prefix = lambda *arguments: computed.append(1) or real(*arguments)
    params = random_params(model)
    copy = jax.tree.map(lambda leaf: leaf + 0, params)
    probes = [weakref.ref(leaf) for leaf in jax.tree.leaves(copy)]
    examples = made.tokens(RECORDS)
    for _ in range(2):
        list(made.outputs(copy, examples, 2))
    assert computed == [1]
    # Other parameters that share all arrays but one, as adapters on a frozen base do.
    other = copy | {"norm": jax.tree.map(lambda leaf: leaf * 2, copy["norm"])}
    list(made.outputs(other, examples, 2))
    assert computed == [1, 1]
    del copy, other
    gc.collect()
    assert not any(probe() is not None for probe in probes)
