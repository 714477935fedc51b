"""Labels chosen and scored over a trie, against whole forward passes and plain Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.data import batching
from jaxclf.decoding import label_choice, trie
from jaxclf.decoding.label_scores import Ranker, probabilities
from tests.tiny import CONFIG, examples, random_params

END = 2
# One begins another twice, two have forced runs, and one is a single token.
LABELS = (
    *((5,), (5, 6), (5, 6, 7), (5, 8, 9, 10, 11, 12, 13), (20, 21, 22, 23), (30,)),
    *((14, first, second) for first in (3, 4, 15) for second in (16, 17, 18, 19)),
)
SIZES = [(0, 1, 2), (3, 13, 0), (2, 4, 1), (0, 2, 0), (0, 3, 0), (0, 6, 0), (0, 9, 0)]


@pytest.fixture(scope="module")
def flat(model):
    """Random weights, whose probabilities lie wide."""
    return random_params(model)


@pytest.fixture(scope="module")
def peaked(flat):
    """The same, very sure of what comes next."""
    return flat | {"unembed": jax.tree.map(lambda kernel: 6 * kernel, flat["unembed"])}


@pytest.fixture(scope="module")
def prompts():
    return batching.prompts(examples(SIZES), rows=len(SIZES))


@pytest.fixture(scope="module")
def ranker(model):
    return Ranker(model, LABELS, END)


@pytest.fixture(scope="module")
def read(model):
    """A function (params, prompts) → Read."""
    return jax.jit(lambda params, prompts: label_choice.begin(model.bind(params), prompts, 0))


def by_whole_passes(model, params, prompts, labels):
    """log p `[B, C]` of labels, each read behind each prompt by a full forward pass."""

    @jax.jit
    def log_p(tokens, segment_ids):
        module = model.bind(params)
        positions = jnp.cumsum(segment_ids, axis=1) - 1
        return jax.nn.log_softmax(module.logits(module.hidden(tokens, positions, segment_ids)))

    found = []
    width = prompts.tokens.shape[1] + max(map(len, labels))
    for label in labels:
        tokens, segment_ids = np.zeros((2, len(prompts.tokens), width), np.int32)
        for row, (ids, segments) in enumerate(
            zip(prompts.tokens, prompts.segment_ids, strict=True)
        ):
            whole = np.concatenate([ids[segments > 0], label])
            tokens[row, width - len(whole) :] = whole
            segment_ids[row, width - len(whole) :] = 1
        before = np.asarray(log_p(tokens, segment_ids))[:, -len(label) - 1 : -1]
        found.append(before[:, range(len(label)), label].sum(axis=1))
    return np.stack(found, axis=1)


@pytest.fixture(scope="module")
def expected(model, flat, peaked, prompts):
    begun = {ids[:count] for ids in LABELS for count in range(len(ids))}
    labels = [(*ids, END) if ids in begun else ids for ids in LABELS]
    return {
        name: by_whole_passes(model, params, prompts, labels)
        for name, params in (("flat", flat), ("peaked", peaked))
    }


@pytest.mark.parametrize("name", ["flat", "peaked"])
@pytest.mark.parametrize("parts", [1, 4])
def test_all_scores_are_those_of_whole_passes(
    monkeypatch, request, model, prompts, read, expected, name, parts
):
    ranker = Ranker(model, LABELS, END)
    places = len(SIZES) * CONFIG.vocab_size * (ranker.trie.inner - 1)
    monkeypatch.setattr(label_choice, "_LOGITS", places // parts)
    params = request.getfixturevalue(name)
    ranked = ranker(params, read(params, prompts), len(SIZES))
    np.testing.assert_allclose(ranked.log_p, expected[name], atol=1e-4)
    assert ranked.unread.tolist() == [0] * len(SIZES)


@pytest.mark.parametrize("name", ["flat", "peaked"])
@pytest.mark.parametrize("bound", [1e-6, 1e-2, 0.3])
def test_what_is_left_unread_is_within_the_bound(
    request, prompts, read, expected, ranker, name, bound
):
    params, exact = request.getfixturevalue(name), np.exp(expected[name])
    ranked = ranker(params, read(params, prompts), len(SIZES), bound)
    found = np.exp(ranked.log_p)
    assert (ranked.unread <= bound + 1e-6).all()
    assert (exact.sum(axis=1) <= found.sum(axis=1) * (1 + 1e-4)).all()
    left = ranked.unread[:, None] * found.sum(axis=1, keepdims=True)
    assert (np.abs(found - exact) <= left + 1e-5).all()
    for log_p in (ranked.log_p, expected[name]):
        assert (log_p.argmax(axis=1) == expected[name].argmax(axis=1)).all()
    scores, true = (
        probabilities(log_p, "none", ranker.tokens) for log_p in (ranked.log_p, expected[name])
    )
    assert np.abs(scores - true).max() <= bound + 1e-5
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_a_sure_model_reads_less_of_the_trie(monkeypatch, flat, peaked, prompts, read, ranker):
    real, shares = ranker.read, []
    possible = len(SIZES) * (ranker.trie.inner - 1)
    for params in (peaked, flat):
        fed = np.zeros((len(SIZES), len(ranker.trie.token)), bool)

        def noted(params, begun, wanted, fed=fed):
            fed |= wanted
            return real(params, begun, wanted)

        monkeypatch.setattr(ranker, "read", noted)
        ranker(params, read(params, prompts), len(SIZES), 1e-2)
        shares.append(fed.sum() / possible)
    sure, unsure = shares
    assert sure < 0.4 < 0.6 < unsure < 1


def test_scores_do_not_depend_on_the_rest_of_the_batch(flat, prompts, read, ranker):
    together = ranker(flat, read(flat, prompts), len(SIZES), 1e-3)
    for row in range(len(SIZES)):
        alone = batching.prompts([examples(SIZES)[row]], rows=len(SIZES))
        ranked = ranker(flat, read(flat, alone), 1, 1e-3)
        np.testing.assert_allclose(ranked.log_p[0], together.log_p[row], atol=1e-4)


# -- normalisation


def test_normalised_scores_are_the_published_ones():
    log_p = np.log([[0.2, 0.05, 0.01]]).astype(np.float32)
    prior = np.log([[0.4, 0.05, 0.001]]).astype(np.float32)
    tokens = np.array([1, 2, 4])

    def of(normalise):
        return probabilities(log_p, normalise, tokens, prior)[0]

    np.testing.assert_allclose(of("none"), np.array([20, 5, 1]) / 26, rtol=1e-5)
    means = np.array([0.2, 0.05**0.5, 0.01**0.25])
    np.testing.assert_allclose(of("length"), means / means.sum(), rtol=1e-5)
    for normalise in ("pmi", "contextual"):
        np.testing.assert_allclose(of(normalise), np.array([0.5, 1, 10]) / 11.5, rtol=1e-5)
    np.testing.assert_allclose(
        probabilities(np.full((1, 4), -np.inf, np.float32), "none", np.ones(4, int))[0], 0.25
    )


# -- the likeliest within tries


def restricted(model, params, prompt, fields):
    """Labels of one prompt by whole passes: at each place the likeliest token that may follow."""

    @jax.jit
    def last_logits(tokens, count):
        module = model.bind(params)
        width = tokens.shape[1]
        segment_ids = (jnp.arange(width) >= width - count)[None].astype(jnp.int32)
        positions = jnp.cumsum(segment_ids, axis=1) - 1
        return module.logits(module.hidden(tokens, positions, segment_ids))[0, -1]

    ids, chosen = list(prompt), []
    for labels in fields:
        start = len(ids)
        while (tail := tuple(ids[start:])) not in labels:
            allowed = sorted({label[len(tail)] for label in labels if label[: len(tail)] == tail})
            padded = np.array([[0] * (64 - len(ids)) + ids], np.int32)
            logits = np.asarray(last_logits(padded, len(ids)))
            ids.append(allowed[int(np.argmax(logits[allowed]))])
        chosen.append(labels.index(tail))
    return chosen


def test_the_likeliest_are_those_of_plain_python(model, flat, prompts):
    first = tuple((*ids, 33, 34, 35) for ids in LABELS)
    second = ((5, 6), (5, 7), (8, 9, 10, 11, 12, 13, 14, 15), (30,))
    sets = (first, second)
    radix, roots = trie.forest([trie.join(trie.make(labels, END), 3) for labels in sets])
    kinds = [[0], [1], [0, 1], [1, 1, 1, 0], [1, 0], [0, 0], [1, 1]]  # rows end at different times
    plan = trie.table([[roots[kind] for kind in row] for row in kinds], -1)
    spare = label_choice.room(radix, plan)

    @jax.jit
    def likeliest(params, prompts, plan):
        module = model.bind(params)
        read = label_choice.begin(module, prompts, spare)
        chosen, read = label_choice.likeliest(module, read, radix, plan, go_on=True)
        return chosen, read.position

    chosen, position = map(np.asarray, likeliest(flat, prompts, plan))
    for row, kind in enumerate(kinds):
        prompt = prompts.tokens[row][prompts.segment_ids[row] > 0].tolist()
        wanted = restricted(model, flat, prompt, [sets[each] for each in kind])
        assert chosen[row].tolist() == wanted + [-1] * (plan.shape[1] - len(kind))
        fed = sum(len(sets[each][label]) for each, label in zip(kind, wanted, strict=True))
        assert position[row] == len(prompt) + fed
    assert len(set(chosen.ravel().tolist())) > 4


def test_after_what_was_fed_scores_go_on_as_after_a_prompt(model, flat, read, ranker):
    given = examples(SIZES)
    ids = [(7, 8, 9), (10,), (), (11, 12), (3,), (4, 5), (6, 7, 8)]
    counts = np.array([len(each) for each in ids], np.int32)

    @jax.jit
    def advanced(params, prompts):
        module = model.bind(params)
        begun = label_choice.begin(module, prompts, 3)
        fed = label_choice.advance(module, begun, trie.table(ids, 0), counts)
        hidden = jnp.where(counts[:, None, None] > 0, fed.hidden, begun.hidden)
        return fed._replace(hidden=hidden)

    found = ranker(flat, advanced(flat, batching.prompts(given, len(given))), len(given), 1e-2)
    longer = [
        dataclasses.replace(each, text=np.concatenate([each.text, np.array(more, np.int32)]))
        for each, more in zip(given, ids, strict=True)
    ]
    prompts = batching.prompts(longer, len(given))
    wanted = ranker(flat, read(flat, prompts), len(given), 1e-2)
    np.testing.assert_allclose(found.log_p, wanted.log_p, atol=1e-4)
