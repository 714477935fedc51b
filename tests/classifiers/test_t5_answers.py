"""T5 beside Llama: labels chosen and scored, adapters, quantised bases, prompts read apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import lora, partition
from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.data import batching, prefixes
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding import parsing
from jaxclf.decoding.label_decoder import Decoding
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import quantization, registry
from jaxclf.prompts import builder
from jaxclf.prompts.builder import Piece, Prompt
from jaxclf.prompts.examples import tokenize
from jaxclf.training.losses import label_logits
from tests.decoding.test_label_decoder import ALL, INTENT, RECORDS, SLOTS, TEXTS, TOPIC, gold
from tests.tiny import random_params
from tests.tiny_t5 import FLAN, t5_examples

BATCH = batching.padded([batching.row(each) for each in t5_examples([(2, 9, 3), (2, 14, 4)], 1)])


@pytest.fixture(scope="module")
def tokenizer():
    answers = [
        f" {builder.answer(Record('', '', gold(intent, ('O', 'B-time'), topic)), tasks)}"
        for intent, topic in zip(INTENT.labels, [*TOPIC.labels, *TOPIC.labels], strict=False)
        for tasks in (ALL, (TOPIC,))
    ]
    return Tokenizer.train([*TEXTS, *answers, *answers], 340)


@pytest.fixture(scope="module")
def model(tokenizer):
    small = dataclasses.replace(FLAN, vocab_size=tokenizer.vocab_size, num_layers=1)
    return registry.create(small)


def classifier(model, tokenizer, tasks, **decoding) -> GenerativeClassifier:
    prompt = Prompt((), (Piece("\nLabel:", is_data=False),))
    recipe = Recipe(tasks, prompt, "names", max_length=64, max_new_tokens=24)
    return GenerativeClassifier(model, tokenizer, recipe, Decoding(**decoding))


def test_what_is_read_apart_ends_by_itself(tokenizer):
    prompt = Prompt((Piece("x", is_data=False),), (Piece("\nLabel:", is_data=False),))
    records = [Record("1", TEXTS[0], {"topic": "sci"})]
    whole, apart = (
        tokenize(records, (TOPIC,), prompt, tokenizer, "names", 64, apart=each)[0]
        for each in (False, True)
    )
    assert apart.text.tolist() == [*whole.text.tolist(), tokenizer.eos_id]
    assert apart.label.tolist() == whole.label.tolist()
    row = batching.row(apart)
    assert row["tokens"].tolist() == [*apart.prefix.tolist(), *apart.text.tolist()]
    assert not prefixes.find([apart] * 4, 4, least=1)
    assert prefixes.find([whole] * 4, 4, least=1)


def test_several_tasks_are_chosen_in_one_answer(model, params, tokenizer):
    found = (
        classifier(model, tokenizer, ALL, mode="constrained")
        .with_params(params)
        .predict(RECORDS, 5)
    )
    for record, prediction in zip(RECORDS, found, strict=True):
        count = len(record.text.split())
        assert len(prediction.predicted["slots"]) == count
        assert parsing.parse(prediction.raw, ALL, count).values == prediction.predicted
    assert len({prediction.raw for prediction in found}) > 2


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_scores_are_those_of_whole_answers(model, params, tokenizer, bound):
    """The decoder over each label, fed as in training, gives the probabilities of the trie."""
    scored = classifier(model, tokenizer, (TOPIC, INTENT), mode="score", score_bound=bound)
    found = scored.with_params(params).predict(RECORDS[:2], 2)
    layout = scored.answerer.layout
    field = layout.fields[0]
    lead = len(layout.lead)
    rows = [
        batching.row(dataclasses.replace(example, label=np.array((*layout.lead, *piece), np.int32)))
        for example in scored.tokens(RECORDS[:2])
        for piece in field.scored
    ]
    batch = batching.padded(rows)
    logits = jax.jit(lambda params: label_logits(model.bind(params), batch))(params)
    targets = batch.targets["answer"]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets.labels[..., None], axis=-1)
    log_p = jnp.where(targets.mask, log_p[..., 0], 0)[:, lead:].sum(axis=1)
    expected = jax.nn.softmax(log_p.reshape(2, -1))
    actual = np.array([list(each.scores["topic"].values()) for each in found])
    assert (actual.argmax(axis=1) == expected.argmax(axis=1)).all()
    if not bound:
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    for each in found:
        assert sum(each.scores["intent"].values()) == pytest.approx(1)


def test_scores_relative_to_those_without_a_text(model, params, tokenizer):
    tasks = (TOPIC, INTENT)
    options = {"mode": "score", "score_bound": 0.0}
    plain = classifier(model, tokenizer, tasks, **options)
    record, free = plain.with_params(params).predict([RECORDS[0], Record("", "", {})], 2)
    relative = classifier(model, tokenizer, tasks, **options, normalise="pmi")
    (found,) = relative.with_params(params).predict(RECORDS[:1], 2)
    p, q, actual = (np.array(list(each.scores["topic"].values())) for each in (record, free, found))
    np.testing.assert_allclose(actual, (p / q) / (p / q).sum(), rtol=1e-3)
    assert not np.allclose(actual, p, rtol=1e-2)


def test_the_released_vocabulary_lacks_braces_and_answers_are_read_all_the_same(shared_root):
    tokenizer = Tokenizer.load(shared_root / "tokenizers" / "t5")
    for tasks in (ALL, (SLOTS,), (INTENT,)):
        wanted = gold("alarm_set", ("O", "B-event_name"), "sci.med")
        text = builder.answer(Record("", "", wanted), tasks)
        raw = tokenizer.decode(tokenizer.encode_answer(text))
        found = parsing.parse(raw, tasks, 2).values
        expected = {"intent": "alarm_set", "slots": ("Other", "event_name"), "topic": "sci.med"}
        assert found == {task.name: expected[task.name] for task in tasks}
        assert "{" not in raw


@pytest.fixture(scope="module")
def uneven():
    """An encoder of three layers, a decoder of two."""
    model = registry.create(FLAN)
    run = jax.jit(lambda params: label_logits(model.bind(params), BATCH))
    return random_params(model), run


def test_merged_adapters_are_the_factored_ones(uneven):
    params, run = uneven
    spec = lora.Spec(targets=("layers/2/.*", "q", "v"), rank=2)
    adapters = lora.init(params, spec, jax.random.key(0))
    places = lora.places(params, spec)
    assert places["layers/encoder/attention/k"].layers == (2,)
    assert places["layers/decoder/cross/q"].layers == (0, 1)
    assert "layers/decoder/cross/k" not in places
    plain = run(params)
    np.testing.assert_array_equal(run(lora.bind(params, adapters)), plain)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    found = run(lora.bind(params, adapters))
    np.testing.assert_allclose(run(lora.merge(params, adapters)), found, atol=1e-4)
    assert np.abs(found - plain).max() > 0.1


def test_a_quantised_base_is_near_the_plain_one(uneven):
    params, run = uneven
    kinds = jax.jit(quantization.quantised, static_argnums=1)(params, "int8")
    for path in ("encoder/mlp/gate", "decoder/cross/o"):
        side, part, name = path.split("/")
        assert isinstance(kinds["layers"][side][part][name]["kernel"], quantization.QuantKernel)
    plain, found = run(params), run(kinds)
    assert 0 < np.sqrt(np.mean((found - plain) ** 2)) < 0.05 * np.std(plain)


def test_last_layers_are_those_of_both_sides(uneven):
    params, _ = uneven
    trained, frozen = partition.choose_trained(params, "last:2").split(params)
    encoder, decoder = (trained["layers"][side]["mlp"]["up"] for side in ("encoder", "decoder"))
    assert len(encoder["kernel"]) == len(decoder["kernel"]) == 2
    assert len(frozen["layers"]["encoder"]["mlp"]["up"]["kernel"]) == 1


def test_a_trained_prefix_is_seen_by_every_self_attention(uneven):
    params, run = uneven
    prefixed = registry.create(dataclasses.replace(FLAN, prefix=2))
    values = random_params(prefixed)
    for side in ("encoder", "decoder"):
        for name, leaf in params["layers"][side].items():
            values["layers"][side][name] = leaf
    values |= {name: leaf for name, leaf in params.items() if name != "layers"}
    found = label_logits(prefixed.bind(values), BATCH)
    assert np.abs(found - run(params)).max() > 0.01
