"""A prefix that examples share, computed once: losses, gradients and answers of repeated ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.data import batching, prefixes
from jaxclf.data.prefixes import SharedPrefixes
from jaxclf.decoding import decode
from jaxclf.models import quantization, registry
from jaxclf.models import shared_prefix_attention as shared
from jaxclf.training import losses
from tests.tiny import ATTRIBUTES, CONFIG, EXPERTS, LLAMA4, examples, random_params, shapes, sharing
from tests.tiny_adapters import random_adapters

SIZES = [(0, 5, 1), (0, 9, 2), (0, 2, 1), (0, 11, 1), (0, 4, 3), (0, 1, 4), (0, 3, 2), (0, 7, 1)]


def documents(*lengths):
    """Examples that have prefixes of these lengths in turn."""
    return sharing(examples(SIZES), lengths)


def padded(documents):
    """A batch of one example a row: its prefixes repeated, and shared."""
    found = prefixes.find(documents, len(documents), least=1)
    return tuple(
        batching.padded([batching.row(each, which) for each in documents], which)
        for which in (SharedPrefixes(), found)
    )


def packed(documents, rows=2):
    """The same for rows that hold several examples."""
    found = prefixes.find(documents, len(documents), least=1)
    return tuple(side_by_side(documents, rows, which) for which in (SharedPrefixes(), found))


def side_by_side(documents, rows, shared):
    arrays = {}
    for index in range(rows):
        parts = [batching.row(each, shared) for each in documents[index::rows]]
        for name in parts[0]:
            values = np.concatenate([part[name] for part in parts])
            segments = np.repeat(np.arange(1, len(parts) + 1), [len(part[name]) for part in parts])
            places = np.concatenate([np.arange(len(part[name])) for part in parts])
            for key, column in ("", values), ("_segment_ids", segments), ("_positions", places):
                filled = np.zeros((rows, 120), np.int32)
                filled[index, : len(column)] = column
                arrays[name + key] = arrays.get(name + key, 0) + filled
    return batching.packed(arrays, shared)


def gentle(model):
    """Weights through which float32's rounding doesn't grow beyond 1e-6."""
    halved = jax.tree.map(lambda leaf: leaf / 2, random_params(model)["layers"])
    return random_params(model) | {"layers": halved}


def agree(model, trained, frozen, repeated, once, rounding=1e-6):
    """Loss and every gradient are the same, to float32's rounding."""

    def loss(trained, batch):
        params = trained if frozen is None else lora.bind(frozen, trained)
        totals = losses.GENERATION.totals(batch)
        return losses.GENERATION.sums(model.bind(params), batch, totals).loss

    assert once.prefixes is not None
    compute = jax.jit(jax.value_and_grad(loss))
    expected, found = (compute(trained, batch) for batch in (repeated, once))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)

    def difference(one, other):
        return np.linalg.norm(one - other) / (np.linalg.norm(other) or 1.0)

    assert max(jax.tree.leaves(jax.tree.map(difference, found[1], expected[1]))) < rounding
    assert max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected[1])) > 1e-2


@pytest.mark.parametrize(
    ("make", "lengths"), [(padded, (7,)), (padded, (40, 1)), (packed, (9, 6, 4))]
)
def test_full_tuning(make, lengths):
    model = registry.create(CONFIG, remat=True)
    agree(model, gentle(model), None, *make(documents(*lengths)))


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_adapters(quantise):
    config = dataclasses.replace(CONFIG, hidden_size=32, head_dim=8, intermediate_size=32)
    model = registry.create(config, unroll=3, quantise=quantise)
    base = gentle(registry.create(config))
    base = base if quantise == "none" else quantization.quantised(base, quantise)
    adapters = random_adapters(base, lora.Spec(rank=4))
    agree(model, adapters, base, *packed(documents(9, 6)))


def test_trained_keys_before_a_shared_prefix():
    model = registry.create(dataclasses.replace(CONFIG, prefix=3))
    agree(model, gentle(model), None, *padded(documents(7)))


def test_an_example_may_keep_a_prefix_of_its_own():
    first, *rest = documents(7)
    own = dataclasses.replace(first, prefix=first.prefix[:3])
    empty = dataclasses.replace(first, text=first.text[:0])  # its label would follow nothing
    repeated, once = padded([own, empty, *rest])
    assert once.prefixes.seen[:2].max() == 0 < once.prefixes.seen[2:, 0].min()
    model = registry.create(CONFIG)
    agree(model, gentle(model), None, repeated, once)


def test_which_prefixes_are_shared():
    found = prefixes.find(documents(17, 30), 8)
    assert sorted(map(len, found.prefixes)) == [17, 30]
    assert not prefixes.find(documents(17, 30), 3)  # fewer than two of each a batch
    assert not prefixes.find(documents(*range(17, 25)), 8)  # each has its own
    assert not prefixes.find(documents(7), 8)  # so short is cheaper to repeat


@pytest.mark.parametrize(
    ("length", "rows", "width"), [(16_384, 8, 64), (2_048, 8, 64), (512, 8, 40), (64, 8, 34)]
)
def test_long_rows_are_divisible_with_their_part_of_the_prefixes(length, rows, width):
    """265 tokens over eight rows are 34 each; meshes divide the tokens of a row where they can."""
    shared = SharedPrefixes([np.arange(1, 266, dtype=np.int32)])
    tokens, _, numbers = shared.laid(rows, length)
    assert tokens.shape == (rows, width)
    assert (length + width) % min(64, length // 64 or 1) == 0
    np.testing.assert_array_equal(tokens.ravel()[:265], shared.prefixes[0])
    assert numbers.sum() == 265


def test_every_micro_batch_has_the_prefixes():
    shared = prefixes.find(documents(7, 4), 4, least=1)
    rows = [batching.row(each, shared) for each in documents(7, 4)]
    batch = batching.padded(rows, shared, groups=2)
    for half in np.split(batch.prefixes.tokens, 2), np.split(batch.prefixes.numbers, 2):
        np.testing.assert_array_equal(half[0], half[1])
        assert np.size(half[0]) >= 11
    spared = shared.saved(batch.prefixes.seen, batch.segment_ids, groups=2)
    assert spared == 4 * 7 + 4 * 4 - 2 * 11


def test_no_array_repeats_the_prefix():
    """Neither keys nor a mask of rows by prefix and text, whose lengths nothing else has."""
    model = registry.create(CONFIG)
    _, once = padded(documents(331))
    rows = len(once.tokens)

    def loss(params, batch):
        return jnp.sum(losses.label_logits(model.bind(params), batch))

    found = list(shapes(jax.grad(loss), random_params(model), once))
    count = rows * once.prefixes.tokens.shape[1]
    assert any(count in shape for shape in found)
    assert not [shape for shape in found if rows in shape and max(shape) > count]
    assert not [shape for shape in found if {rows, count, CONFIG.head_dim} <= {*shape}]


@pytest.fixture(scope="module")
def greedy():
    model = registry.create(CONFIG)
    return (
        jax.jit(decode.make_greedy(model, 8, CONFIG.vocab_size)),
        jax.jit(decode.make_prefix(model)),
        random_params(model),
    )


def test_answers_are_the_same(greedy):
    decoded, compute, params = greedy
    texts = documents(9, 6)
    texts[3] = dataclasses.replace(texts[3], prefix=texts[3].prefix[:2])  # shared with none
    shared = prefixes.find(texts, len(texts), least=1)
    expected = decoded(params, batching.prompts(texts, 9))
    prefix = compute(params, batching.prefix_row(shared))
    found = decoded(params, batching.prompts(texts, 9, shared), prefix)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 5


def test_parts_attend_as_the_whole(monkeypatch):
    # Two prefixes over the rows' first places, padding, and keys that were computed before.
    rows, lead, own, heads, key_heads, size = 4, 6, 5, 4, 2, 8
    keys = jax.random.split(jax.random.key(0), 6)
    query, gradient = (jax.random.normal(key, (rows, lead + own, heads, size)) for key in keys[:2])
    pair = tuple(jax.random.normal(key, (rows, lead + own, key_heads, size)) for key in keys[2:4])
    before = tuple(jax.random.normal(key, (3, key_heads, size)) for key in keys[4:])
    numbers = np.repeat([1, 2, 0], [13, 9, 2]).reshape(rows, lead)
    places = np.concatenate([np.arange(13), np.arange(9), np.zeros(2, int)]).reshape(rows, lead)
    seen = np.array([[1] * own, [2] * own, [1] * own, [0] * own])
    after = np.array([13, 9, 13, 0])[:, None] + np.arange(own)
    mask = shared.training_mask(
        numbers,
        seen,
        np.concatenate([places, after], axis=1),
        jnp.broadcast_to(jnp.tril(jnp.ones((own, own), bool)), (rows, 1, own, own)),
    ).after(*before)

    def attended():
        def total(query, pair, before):
            found = shared.attend(
                query, *pair, dataclasses.replace(mask, key=before[0], value=before[1])
            )
            return jnp.sum(found * gradient)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, pair, before)

    whole = attended()
    monkeypatch.setattr(shared, "_SCORES_AT_ONCE", 32)
    parts = attended()
    assert shared._count(rows * lead, rows * lead) == 8
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), parts, whole)


LESS = dataclasses.replace(CONFIG, **ATTRIBUTES, rotary_share=0.7)
LESS_BY_EXPERTS = dataclasses.replace(LESS, **EXPERTS)
KINDS = {
    "feed-forward": LESS,
    "experts": LESS_BY_EXPERTS,
    "llama4": dataclasses.replace(CONFIG, **LLAMA4),
}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("make", "lengths"), [(padded, (40, 1)), (packed, (9, 6, 4))])
def test_layers_that_see_less_of_it(make, lengths, config):
    model = registry.create(config)
    # Experts multiply by the router's weights besides, and sum over those chosen.
    rounding = 2e-6 if config.experts else 1e-6
    agree(model, gentle(model), None, *make(documents(*lengths)), rounding)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_prompts_go_on_from_a_computed_prefix_where_layers_see_less(config):
    model = registry.create(config)
    params, random = random_params(model), np.random.default_rng(3)
    lead, rows, count, new = 7, 3, 6, 9
    tokens = random.integers(0, CONFIG.vocab_size, (rows, lead + count))
    tokens[:, :lead] = tokens[0, :lead]
    places = np.broadcast_to(np.arange(lead + count), tokens.shape)
    ones = np.ones_like(tokens)
    greedy = jax.jit(decode.make_greedy(model, new, eos_id=-7))
    whole = greedy(params, batching.PromptBatch(tokens, ones, places))
    first = batching.PromptBatch(tokens[:1, :lead], ones[:1, :lead], places[:1, :lead])
    prefix = jax.jit(decode.make_prefix(model))(params, first)
    own = batching.PromptBatch(tokens[:, lead:], ones[:, lead:], places[:, lead:])
    own = own._replace(seen=np.ones(rows, np.int32))
    np.testing.assert_array_equal(greedy(params, own, prefix), whole)
    assert len(np.unique(whole)) > 3

    @jax.jit
    def likeliest(params, tokens):
        module = model.bind(params)
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return module.logits(module.hidden(tokens, places, jnp.ones_like(tokens))).argmax(-1)

    read = np.concatenate([tokens, whole], axis=1)
    np.testing.assert_array_equal(likeliest(params, read)[:, -new - 1 : -1], whole)
