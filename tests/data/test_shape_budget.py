"""Few compiled shapes: past the limit, batches are padded to one that is known."""

import jax
import numpy as np

from jaxclf.data import batching, prefixes
from jaxclf.data.shape_budget import Budget
from jaxclf.decoding import decode
from jaxclf.models import registry
from tests.tiny import CONFIG, examples, random_params, sharing, summed_loss


def batch_of(*lengths, label=2):
    texts = sharing(examples([(0, length, label) for length in lengths]), (6,))
    shared = prefixes.find(texts, len(texts), least=1)
    return batching.padded([batching.row(each, shared) for each in texts], shared)


def test_a_known_shape_is_taken_past_the_limit():
    budget = Budget(limit=2)
    large, small, between = batch_of(30, 30), batch_of(5, 5), batch_of(20, 20)
    assert budget.fit(large) is large
    assert budget.fit(small) is small
    fitted = budget.fit(between)
    assert fitted.tokens.shape == large.tokens.shape
    np.testing.assert_array_equal(fitted.lengths, between.lengths)
    assert len(budget.shapes) == 2


def test_what_no_known_shape_has_room_for_is_one_more():
    budget = Budget(limit=1)
    budget.fit(batch_of(5, 5))
    large = batch_of(30, 30)
    assert budget.fit(large) is large
    assert len(budget.shapes) == 2


def test_padding_changes_no_loss():
    model = registry.create(CONFIG)
    params = random_params(model)
    budget = Budget(limit=1)
    budget.fit(batch_of(30, 30, label=9))
    batch = batch_of(5, 3)
    padded = budget.fit(batch)
    assert padded.tokens.shape != batch.tokens.shape
    loss = jax.jit(lambda batch: summed_loss(model.bind(params), batch))
    expected, found = loss(batch), loss(padded)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    assert found.count == expected.count


def test_padding_changes_no_answer():
    model = registry.create(CONFIG)
    params = random_params(model)
    texts = sharing(examples([(0, 5, 0), (0, 9, 0)]), (6,))
    shared = prefixes.find(texts, 2, least=1)
    budget = Budget(limit=1)
    budget.fit(batching.prompts(examples([(0, 40, 0)] * 2), 2))
    prompts = batching.prompts(texts, 2, shared)
    padded = budget.fit(prompts)
    assert padded.tokens.shape[1] > prompts.tokens.shape[1]
    prefix = decode.make_prefix(model)(params, batching.prefix_row(shared))
    greedy = jax.jit(decode.make_greedy(model, 6, CONFIG.vocab_size))
    np.testing.assert_array_equal(greedy(params, padded, prefix), greedy(params, prompts, prefix))
