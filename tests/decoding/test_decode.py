"""Greedy decoding without a reference model: each id is the full forward pass's likeliest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.data import batching
from jaxclf.decoding import decode
from jaxclf.models.decoder import Decoder
from tests.tiny import CONFIG, examples

NEW = 12
NEVER = CONFIG.vocab_size  # an end that no row reaches


@pytest.fixture(scope="module")
def prompts():
    sizes = [(0, 1, 2), (3, 13, 0), (2, 4, 1), (0, 2, 0), (0, 3, 0), (0, 6, 0), (0, 9, 0)]
    return batching.prompts(examples(sizes), rows=len(sizes))


@pytest.fixture(scope="module")
def unended(model, params, prompts):
    return np.asarray(jax.jit(decode.make_greedy(model, NEW, NEVER))(params, prompts))


def test_every_id_is_the_likeliest_of_a_full_forward_pass(model, params, prompts, unended):
    read = [
        np.concatenate([tokens[segments > 0], new])
        for tokens, segments, new in zip(prompts.tokens, prompts.segment_ids, unended, strict=True)
    ]
    width = max(map(len, read))
    tokens, segments = (np.zeros((len(read), width), np.int32) for _ in range(2))
    for row, ids in enumerate(read):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1

    @jax.jit
    def likeliest(tokens, segments):
        module = model.bind(params)
        positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
        return jnp.argmax(module.logits(module.hidden(tokens, positions, segments)), axis=-1)

    expected = np.asarray(likeliest(tokens, segments))
    for row, ids in enumerate(read):
        assert unended[row].tolist() == expected[row, len(ids) - NEW - 1 : len(ids) - 1].tolist()
    assert len(set(unended.ravel().tolist())) > 3


def test_an_ended_row_is_filled_and_leaves_the_others_alone(model, params, prompts, unended):
    eos_id = int(unended[0, 2])
    ended = np.asarray(jax.jit(decode.make_greedy(model, NEW, eos_id))(params, prompts))
    for before, after in zip(unended, ended, strict=True):
        places = np.flatnonzero(before == eos_id)
        end = int(places[0]) if len(places) else NEW
        assert after[:end].tolist() == before[:end].tolist()
        assert set(after[end:].tolist()) <= {eos_id}
    assert (ended[0] == eos_id).any()


@pytest.mark.parametrize(("limit", "passes"), [(1, 1), (40, 3)])
def test_stops_when_all_rows_ended_or_at_the_limit(
    monkeypatch, model, params, prompts, unended, limit, passes
):
    """`passes` counts forward passes, the prompt's among them; each gives one id."""
    one_row = jax.tree.map(lambda rows: np.repeat(rows[:1], 2, axis=0), prompts)
    eos_id = int(unended[0, 2])
    assert eos_id not in unended[0, :2]

    calls = []
    extend = Decoder._extend

    def counted(*arguments):
        jax.debug.callback(lambda: calls.append(1))
        return extend(*arguments)

    monkeypatch.setattr(Decoder, "_extend", counted)
    generated = jax.jit(decode.make_greedy(model, limit, eos_id))(params, one_row)
    jax.effects_barrier()
    assert generated.shape == (2, limit)
    assert len(calls) == passes


def test_the_width_of_the_padding_changes_nothing(model, params, prompts, unended):
    wider = jax.tree.map(lambda rows: np.pad(rows, ((0, 0), (8, 0))), prompts)
    actual = jax.jit(decode.make_greedy(model, NEW, NEVER))(params, wider)
    np.testing.assert_array_equal(actual, unended)
