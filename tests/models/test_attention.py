"""The kernels of each backend against the plain one, with and without shared prefixes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.core.types import Prefixes
from jaxclf.data import batching, prefixes
from jaxclf.decoding import decode
from jaxclf.distributed import sharding
from jaxclf.models import attention, registry
from jaxclf.models.attention import attend
from jaxclf.models.masks import visible, visible_after
from tests.tiny import CONFIG, examples, random_params, shapes, sharing
from tests.tiny_encoders import ENCODERS
from tests.tiny_t5 import FLAN


def inputs(count=160, heads=4, kv_heads=2, size=128, seed=0):
    random = np.random.default_rng(seed)

    def draw(number):
        return jnp.asarray(random.normal(size=(2, count, number, size)), jnp.float32)

    # Three texts and padding in one row, one text that is padded on the left in the other.
    ids = np.zeros((2, count), np.int32)
    ids[0, :50], ids[0, 50:120], ids[0, 120:150] = 1, 2, 3
    ids[1, 40:] = 1
    return draw(heads), draw(kv_heads), draw(kv_heads), ids


def outputs_and_gradients(implementation, causal, arrays, ids, lengths=None, window=None):
    real = jnp.asarray(ids > 0)[..., None, None]

    def total(query, key, value):
        found = attend(query, key, value, visible(ids, causal, implementation, lengths, window))
        weights = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        return jnp.sum(jnp.where(real, found * weights, 0)), jnp.where(real, found, 0)

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays)
    return found, gradients


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_kernels_equal_the_plain_one(implementation, causal):
    *arrays, ids = inputs()
    expected = outputs_and_gradients("plain", causal, arrays, ids)
    actual = outputs_and_gradients(implementation, causal, arrays, ids)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5), actual, expected)


@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_one_text_need_their_lengths_alone(causal):
    *arrays, _ = inputs(count=23, size=16)
    lengths = np.array([[17], [0]], np.int32)  # an empty row, as fills a batch
    ids = (np.arange(23) < lengths).astype(np.int32)
    expected = outputs_and_gradients("plain", causal, arrays, ids)
    actual = outputs_and_gradients("cudnn", causal, arrays, ids, lengths)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5), actual, expected)
    # What stands beyond the texts moves nothing, whatever it is.
    undefined = [jnp.where(ids[..., None, None] > 0, each, jnp.nan) for each in arrays]
    jax.tree.map(
        np.testing.assert_array_equal,
        outputs_and_gradients("cudnn", causal, undefined, ids, lengths),
        actual,
    )


@pytest.mark.parametrize("implementation", ["cudnn", "lengths", "splash"])
def test_windows(implementation):
    size = 128 if implementation == "splash" else 16
    *arrays, ids = inputs(count=150, size=size)
    lengths = None
    if implementation == "lengths":
        implementation, lengths = "cudnn", np.array([[150], [91]], np.int32)
        ids = (np.arange(150) < lengths).astype(np.int32)
    expected = outputs_and_gradients("plain", True, arrays, ids, window=9)
    actual = outputs_and_gradients(implementation, True, arrays, ids, lengths, 9)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5), actual, expected)
    whole, _ = outputs_and_gradients("plain", True, arrays, ids)
    assert np.abs(whole - expected[0]).max() > 0.1


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_padding_that_is_pooled_sees_its_text(implementation):
    """AttEns may count padding, which looks at the whole text of its row."""
    *arrays, _ = inputs(count=30, size=16)
    ids = (np.arange(30) < [[17], [30]]).astype(np.int32)
    expected, actual = (
        attend(*arrays, visible(ids, False, each)) for each in ("plain", implementation)
    )
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_blocks_of_queries_drop_weights_and_add_biases_as_all_at_once(monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 8)
    *arrays, ids = inputs(count=27, size=16)
    ids[0] = np.where(np.arange(27) < 10, 1, 2)
    random = np.random.default_rng(2)
    bias = jnp.asarray(random.normal(size=(1, 4, 32, 27)), jnp.float32)
    key, real = jax.random.key(3), jnp.asarray(ids > 0)[..., None, None]

    def blocks(*arrays):
        def part(start, size):
            return jax.lax.dynamic_slice_in_dim(bias, start, size, axis=2)

        return attend(*arrays, visible(ids, False, "cudnn"), 0.3, key, bias=part, scale=0.4)

    def whole(query, key_heads, value):
        """Block after block by the plain way, each with its own dropout mask."""
        mask, found = visible(ids, False, "plain"), []
        for index in range(4):
            rows = slice(8 * index, min(27, 8 * index + 8))
            padded = jnp.pad(
                query[:, rows], ((0, 0), (0, 8 - (rows.stop - rows.start))) + ((0, 0),) * 2
            )
            seen = jnp.pad(
                mask[:, :, rows], ((0, 0), (0, 0), (0, 8 - (rows.stop - rows.start)), (0, 0))
            )
            part = attend(
                padded,
                key_heads,
                value,
                seen,
                0.3,
                jax.random.fold_in(key, index),
                bias=bias[:, :, 8 * index : 8 * index + 8],
                scale=0.4,
            )
            found.append(part[:, : rows.stop - rows.start])
        return jnp.concatenate(found, axis=1)

    def total(function):
        def weighted(*arrays):
            return jnp.sum(jnp.where(real, jnp.sin(function(*arrays)), 0))

        return jax.value_and_grad(weighted, (0, 1, 2))(*arrays)

    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), total(blocks), total(whole)
    )


def shared_inputs(rows=3, lead=7, count=24, heads=4, kv_heads=2, size=128):
    """Queries, keys and values, and whose they are: two prefixes and what continues them."""
    random = np.random.default_rng(1)

    def draw(number):
        return jnp.asarray(random.normal(size=(rows, lead + count, number, size)), jnp.float32)

    numbers, firsts = np.zeros((2, rows * lead), np.int32)
    numbers[:8], numbers[8:17] = 1, 2
    firsts[:17] = *range(8), *range(9)
    ids, seen, positions = np.zeros((3, rows, count), np.int32)
    texts = ((0, 0, 9, 1), (0, 9, 20, 2), (1, 0, 5, 0), (1, 5, 24, 1), (2, 6, 24, 2))
    for number, (row, start, end, prefix) in enumerate(texts, 1):  # the third shares none
        ids[row, start:end], seen[row, start:end] = number, prefix
        positions[row, start:end] = np.arange(end - start) + (0, 8, 9)[prefix]
    tokens = random.integers(1, CONFIG.vocab_size, (rows, lead + count))
    firsts, numbers = firsts.reshape(rows, lead), numbers.reshape(rows, lead)
    prefixes = Prefixes(tokens[:, :lead], firsts, numbers, seen)
    arrays = draw(heads), draw(kv_heads), draw(kv_heads)
    return arrays, prefixes, (tokens[:, lead:], positions, ids)


def shared_outputs_and_gradients(implementation, arrays, prefixes, texts):
    _, positions, ids = texts
    positions = np.concatenate([prefixes.positions, positions], axis=1)
    real = np.concatenate([prefixes.numbers, ids], axis=1)[..., None, None] > 0

    def total(query, key, value):
        mask = visible_after(prefixes, positions, ids, implementation)
        found = jnp.where(real, attend(query, key, value, mask), 0)
        weights = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        return jnp.sum(found * weights), found

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays)
    return found, gradients


@pytest.mark.parametrize("scale", [1, 10])  # of queries: scores of 40 and weights of 1e-30
@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_kernels_share_prefixes_as_the_plain_one(implementation, scale):
    (query, *arrays), *rest = shared_inputs()
    arrays = query * scale, *arrays
    expected = shared_outputs_and_gradients("plain", arrays, *rest)
    actual = shared_outputs_and_gradients(implementation, arrays, *rest)
    assert np.abs(expected[1][1]).max() > 1
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5 * scale), actual, expected)


AT = np.array([[8, 19], [4, 23], [23, 6]])


@pytest.mark.parametrize(
    ("implementation", "soft", "at"),
    [("splash", 0, None), ("splash", 0, AT), ("cudnn", 0, AT), ("cudnn", 3, None)],
)
def test_a_model_shares_prefixes_by_kernels(implementation, soft, at):
    """Prompts' prefixes, and trained ones that all tokens see before them."""
    _, prefixes, texts = shared_inputs()
    config = dataclasses.replace(CONFIG, prefix=soft)
    params = random_params(registry.create(config))

    def hidden(implementation):
        model = registry.create(config, attention=implementation)

        def total(params):
            found = model.bind(params).hidden(*texts, at=at, prefixes=prefixes)
            real = texts[2] > 0 if at is None else np.ones(at.shape, bool)
            found = jnp.where(real[..., None], found, 0)
            return jnp.sum(jnp.sin(found)), found

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    actual, expected = hidden(implementation), hidden("plain")
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-4), actual, expected)


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_trained_prefixes_are_seen_by_kernels(implementation):
    _, _, (tokens, positions, ids) = shared_inputs()
    config = dataclasses.replace(CONFIG, prefix=3)
    params = random_params(registry.create(config))

    def hidden(implementation):
        def total(params):
            model = registry.create(config, attention=implementation)
            found = model.bind(params).hidden(tokens, positions, ids)
            found = jnp.where(ids[..., None] > 0, found, 0)
            return jnp.sum(jnp.sin(found)), found

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    actual, expected = hidden(implementation), hidden("plain")
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-4), actual, expected)


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_prompts_are_read_after_prefixes_that_were_computed(implementation):
    sizes = [(0, 5, 1), (0, 9, 2), (0, 2, 1), (0, 11, 1)]
    texts = sharing(examples(sizes), (9, 6))
    texts[3] = dataclasses.replace(texts[3], prefix=texts[3].prefix[:2])  # shared with none
    shared = prefixes.find(texts, len(texts), least=1)
    config = dataclasses.replace(CONFIG, prefix=2)
    params = random_params(registry.create(config))
    found = []
    for each in ("plain", implementation):
        model = registry.create(config, attention=each)
        prefix = jax.jit(decode.make_prefix(model))(params, batching.prefix_row(shared))
        prompts = batching.prompts(texts, 4, shared)

        def read(params, prompts, prefix, model=model):
            before = prefix.before(prompts)
            arrays = prompts.tokens, prompts.positions, prompts.segment_ids
            return model.bind(params).begin(*arrays, 20, before)[0][:, -1]

        found.append(jax.jit(read)(params, prompts, prefix))
    np.testing.assert_allclose(found[1], found[0], atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "t5", "roberta"])
def test_kernels_and_blocks_leave_no_square(family):
    """No array has the tokens of a row twice, in training or reading, dropout included."""
    count = 149  # which nothing else has
    ids, key = np.ones((2, count), np.int32), jax.random.key(0)

    def total(params, model):
        module = model.bind(params)
        if family == "llama":
            found = module.hidden(ids, ids, ids)
        elif family == "t5":
            found = module.hidden(ids, ids, ids[:, :4], ids[:, :4], key)
        else:
            found = module.hidden(ids, ids, ids, key=key)
        return jnp.sum(found)

    config = {"llama": CONFIG, "t5": FLAN, "roberta": ENCODERS["roberta"]}[family]
    if family == "roberta":
        config = dataclasses.replace(config, max_position=200, attention_dropout=0.1)
    for implementation, squares in ("plain", True), ("cudnn", False):
        model = registry.create(config, attention=implementation)
        params = random_params(model)
        found = shapes(lambda params, model=model: jax.grad(total)(params, model), params)
        square = [shape for shape in found if sum(count <= size < 2 * count for size in shape) > 1]
        assert bool(square) == squares, square


@pytest.mark.parametrize("soft", [0, 3])
def test_an_encoder_with_a_decoder_attends_by_blocks(soft, monkeypatch):
    """Distances of a block of queries are those of the whole row, gradients of their table too."""
    monkeypatch.setattr(attention, "QUERIES", 8)
    config = dataclasses.replace(FLAN, prefix=soft)
    random = np.random.default_rng(0)
    tokens, labels = (random.integers(1, FLAN.vocab_size, (2, count)) for count in (21, 5))
    ids = np.where(np.arange(21) < 13, 1, 2) * (np.arange(21) < [[21], [18]])
    label_ids = np.array([[1, 1, 2, 2, 2], [1, 2, 2, 0, 0]])
    params = random_params(registry.create(config))

    def hidden(implementation):
        def total(params):
            module = registry.create(config, attention=implementation).bind(params)
            found = module.hidden(*map(np.int32, (tokens, ids, labels, label_ids)))
            found = jnp.where(label_ids[..., None] > 0, found, 0)
            return jnp.sum(jnp.sin(found)), found

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    actual, expected = hidden("cudnn"), hidden("plain")

    def close(actual, expected):
        scale = np.max(np.abs(expected)) or 1.0
        np.testing.assert_allclose(actual / scale, expected / scale, atol=2e-5)

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_accelerators_keep_matrix_products_alone_without_remat(family, monkeypatch):
    """What norms, activations and dropout gave is computed again there, to the same gradients."""
    config = {"llama": CONFIG, "roberta": ENCODERS["roberta"]}[family]
    model = registry.create(config)
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(1, 20, (2, 13)).astype(np.int32)
    positions, key = np.tile(np.arange(13, dtype=np.int32), (2, 1)), jax.random.key(0)

    def total(params):
        found = model.bind(params).hidden(tokens, positions, np.ones_like(tokens), key=key)
        return jnp.sum(jnp.sin(found))

    def kept_and_gradients():
        _, pull = jax.vjp(total, params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull)), jax.jit(jax.grad(total))(params)

    everything, expected = kept_and_gradients()
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    some, actual = kept_and_gradients()
    assert some < 0.7 * everything

    # Relative to the largest of all: a key's bias has a gradient that is zero but for rounding.
    scale = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a / scale, e / scale, atol=2e-6), actual, expected
    )
