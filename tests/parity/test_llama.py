"""Logits, loss and every gradient against transformers' LlamaForCausalLM, in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.data import batching, loader
from jaxclf.data.batching import ANSWER, Batch
from jaxclf.data.examples import Tokens
from jaxclf.models import layers, registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.layers import RopeScaling
from tests.parity import helpers
from tests.parity.helpers import TOLERANCE, assert_close
from tests.tiny import examples, random_params, summed_loss

torch = pytest.importorskip("torch")

ROWS, WIDTH, LABELS = 5, 96, 24
SCALING = RopeScaling(
    factor=5.0, low_freq_factor=1.5, high_freq_factor=6.0, original_max_position=32
)
BASE = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=777.0,
    rms_norm_eps=1e-3,
    max_position=256,
)
CASES = {
    "multi_head": dataclasses.replace(BASE, num_kv_heads=4, rms_norm_eps=1e-5, rope_theta=1e4),
    "grouped": BASE,
    "multi_query_tied": dataclasses.replace(BASE, num_kv_heads=1, head_dim=20, tie_embeddings=True),
    "scaled_rope": dataclasses.replace(BASE, rope_scaling=SCALING, num_layers=3),
}


def random_documents(seed: int) -> list[Tokens]:
    """Examples of very different lengths; the longest goes far past SCALING's window."""
    sizes = [(0, 3, 1), (3, 20, 4), (3, 64, 9), (3, 7, 2), (3, 31, 5)]
    return examples(sizes, seed, BASE.vocab_size)


def whole(example: Tokens) -> np.ndarray:
    return np.concatenate([example.prefix, example.text, example.label])


def to_the_right(batch: Batch) -> Batch:
    """The rows of a right-padded batch, moved so that the padding stands on the left."""
    width = batch.tokens.shape[1]
    shifts = width - batch.segment_ids.sum(axis=1)

    targets = batch.targets[ANSWER]

    def roll(rows):
        return np.stack([np.roll(row, shift) for row, shift in zip(rows, shifts, strict=True)])

    return batch._replace(
        tokens=roll(batch.tokens),
        segment_ids=roll(batch.segment_ids),
        positions=roll(batch.positions),
        targets={
            ANSWER: targets._replace(positions=targets.positions + shifts[:, None] * targets.mask)
        },
    )


@functools.cache
def compiled(config: DecoderConfig):
    """(parameters, batch) → mean label loss and logits [B, T, V] everywhere, and the gradient."""
    model = registry.create(config)

    def loss(params, batch):
        module = model.bind(params)
        sums = summed_loss(module, batch)
        hidden = module.hidden(batch.tokens, batch.positions, batch.segment_ids)
        return sums.loss / sums.count, module.logits(hidden)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def ours(config: DecoderConfig, params, batch: Batch):
    """Mean label loss, gradient tree and logits; all layouts share one compiled shape."""
    assert batch.tokens.shape == (ROWS, WIDTH)
    pad = ((0, 0), (0, LABELS - batch.targets[ANSWER].labels.shape[1]))
    targets = jax.tree.map(lambda rows: np.pad(rows, pad), batch.targets)
    batch = jax.tree.map(jnp.asarray, batch._replace(targets=targets))
    (loss, logits), gradient = compiled(config)(params, batch)
    return loss, gradient, logits


def theirs(hf, documents, count: int, side: str):
    """Mean loss over `count` label tokens with gradients left in `hf`, and each row's logits."""
    width = max(len(whole(example)) for example in documents)
    ids, labels, mask = (np.zeros((len(documents), width), np.int64) for _ in range(3))
    labels[:] = -100
    spans = []
    for index, example in enumerate(documents):
        length = len(whole(example))
        start = width - length if side == "left" else 0
        ids[index, start : start + length] = whole(example)
        mask[index, start : start + length] = 1
        end = start + length
        labels[index, end - len(example.label) : end] = example.label
        spans.append(slice(start, end - 1))  # the last token is not read by us
    output = hf(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        position_ids=torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0)),
        labels=torch.tensor(labels),
        num_items_in_batch=count,
    )
    output.loss.backward()
    logits = [rows[span].detach().numpy() for rows, span in zip(output.logits, spans, strict=True)]
    return output.loss.item(), logits


def assert_same_gradients(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.max(np.abs(other)) > 0.01, f"{name}: too small a gradient to compare"
        assert_close(leaf, other, name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows(name, side):
    config = CASES[name]
    hf = helpers.hf_llama(config, seed=1)
    params = helpers.llama_tree(helpers.hf_tensors(hf), config.num_layers)
    documents = random_documents(2)
    batch = batching.padded([batching.row(example) for example in documents])
    if side == "left":
        batch = to_the_right(batch)
    loss, gradient, logits = ours(config, params, batch)
    count = sum(len(example.label) for example in documents)
    hf_loss, hf_logits = theirs(hf, documents, count, side)

    assert_close(loss, hf_loss, "loss")
    assert max(np.abs(rows).max() for rows in hf_logits) > 1
    for index, rows in enumerate(hf_logits):
        assert_close(logits[index][batch.segment_ids[index] > 0], rows, f"logits of row {index}")
    expected = helpers.llama_tree(helpers.hf_tensors(hf, gradients=True), config.num_layers)
    assert_same_gradients(gradient, expected)


@pytest.mark.parametrize("name", CASES)
def test_packed_rows_equal_each_example_alone(name):
    config = CASES[name]
    hf = helpers.hf_llama(config, seed=3)
    params = helpers.llama_tree(helpers.hf_tensors(hf), config.num_layers)
    documents = random_documents(4)
    batch = next(loader.train_batches(documents, batch_size=ROWS, seed=0, row_length=WIDTH))
    loss, gradient, logits = ours(config, params, batch)
    count = int(batch.targets[ANSWER].mask.sum())

    total, longest_row = 0.0, 0
    for index, segments in enumerate(batch.segment_ids):
        longest_row = max(longest_row, segments.max())
        for segment in range(1, segments.max() + 1):
            read = batch.tokens[index][segments == segment]
            (example,) = (e for e in documents if np.array_equal(whole(e)[:-1], read))
            hf_loss, (hf_logits,) = theirs(hf, [example], count, "right")
            total += hf_loss
            assert_close(
                logits[index][segments == segment], hf_logits, f"row {index} segment {segment}"
            )
    assert longest_row > 1, "no row holds several documents"
    assert_close(loss, total, "loss")
    expected = helpers.llama_tree(helpers.hf_tensors(hf, gradients=True), config.num_layers)
    assert_same_gradients(gradient, expected)


@functools.cache
def random_logits(config: DecoderConfig) -> np.ndarray:
    model = registry.create(config)
    tokens = jnp.asarray(whole(random_documents(2)[2]))[None]

    @jax.jit
    def logits(params):
        module = model.bind(params)
        positions = jnp.arange(tokens.shape[1])[None]
        return module.logits(module.hidden(tokens, positions, jnp.ones_like(tokens)))

    return np.asarray(logits(random_params(model)))


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 1e-5}, {"rope_theta": 10_000.0}, {"rope_scaling": None}],
    ids=lambda change: "-".join(change),
)
def test_every_constant_moves_the_logits(change):
    """So that the comparisons above would fail if a field were ignored."""
    config = CASES["scaled_rope"]
    changed = dataclasses.replace(config, **change)
    assert np.max(np.abs(random_logits(config) - random_logits(changed))) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"factor": 8.0},
        {"low_freq_factor": 1.0},
        {"high_freq_factor": 4.0},
        {"original_max_position": 64},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_field_of_the_scaling_moves_the_angles(change):
    def angles(scaling):
        return 64 * layers.rope_frequencies(BASE.head_dim, BASE.rope_theta, scaling)

    difference = jnp.abs(angles(SCALING) - angles(dataclasses.replace(SCALING, **change)))
    assert jnp.max(difference) > 0.1
