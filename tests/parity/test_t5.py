"""Logits, loss, gradients and greedy ids against transformers' T5, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.convert import peft_export
from jaxclf.data import batching, loader
from jaxclf.data.batching import ANSWER
from jaxclf.decoding import decode
from jaxclf.models import registry
from jaxclf.models.distances import bucket_table
from jaxclf.training import losses
from tests.parity import helpers
from tests.parity.helpers import assert_close
from tests.parity.test_decode import NEW, an_end_some_rows_reach
from tests.parity.test_llama import assert_same_gradients
from tests.tiny import summed_loss
from tests.tiny_adapters import load
from tests.tiny_t5 import CASES, FLAN, hf_t5, t5_examples, t5_tree

torch = pytest.importorskip("torch")

ROWS, WIDTH, LABELS = 5, 96, 24
SIZES = [(0, 4, 1), (3, 20, 4), (3, 64, 9), (3, 7, 2), (3, 31, 5)]


@functools.cache
def compiled(config):
    """(parameters, batch) → mean label loss and logits at labels, and the gradient."""
    model = registry.create(config)

    def loss(params, batch):
        module = model.bind(params)
        sums = summed_loss(module, batch)
        return sums.loss / sums.count, losses.label_logits(module, batch)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def ours(config, params, batch):
    """Mean label loss, logits and gradient; all layouts share one compiled shape."""
    assert batch.tokens.shape == (ROWS, WIDTH)
    pad = ((0, 0), (0, LABELS - batch.targets[ANSWER].labels.shape[1]))
    targets = jax.tree.map(lambda rows: np.pad(rows, pad), batch.targets)
    batch = jax.tree.map(jnp.asarray, batch._replace(targets=targets))
    (loss, logits), gradient = compiled(config)(params, batch)
    return loss, logits, gradient


def theirs(hf, documents, count):
    """Mean loss over `count` label tokens with gradients left in `hf`, and each row's logits."""
    reads = [np.concatenate([each.prefix, each.text]) for each in documents]
    ids, mask = (np.zeros((len(documents), max(map(len, reads))), np.int64) for _ in range(2))
    labels = np.full((len(documents), max(len(each.label) for each in documents)), -100)
    for index, (read, example) in enumerate(zip(reads, documents, strict=True)):
        ids[index, : len(read)], mask[index, : len(read)] = read, 1
        labels[index, : len(example.label)] = example.label
    ids, mask, labels = map(torch.tensor, (ids, mask, labels))
    logits = hf(input_ids=ids, attention_mask=mask, labels=labels).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
    )
    (loss / count).backward()
    rows = zip(logits.detach().numpy(), documents, strict=True)
    return loss.item() / count, [row[: len(example.label)] for row, example in rows]


@pytest.mark.parametrize("name", CASES)
def test_padded_rows(name):
    config, documents = CASES[name], t5_examples(SIZES, 2)
    hf = hf_t5(config, seed=1)
    params = t5_tree(helpers.hf_tensors(hf), config)
    batch = batching.padded([batching.row(example) for example in documents])
    loss, logits, gradient = ours(config, params, batch)
    hf_loss, hf_logits = theirs(hf, documents, sum(len(each.label) for each in documents))
    assert_close(loss, hf_loss, "loss")
    assert max(np.abs(rows).max() for rows in hf_logits) > 1
    for index, rows in enumerate(hf_logits):
        assert_close(logits[index, : len(rows)], rows, f"logits of row {index}")
    expected = t5_tree(helpers.hf_tensors(hf, gradients=True), config)
    assert_same_gradients(gradient, expected)


def test_packed_rows_equal_each_example_alone():
    config, documents = FLAN, t5_examples(SIZES, 4)
    hf = hf_t5(config, seed=3)
    params = t5_tree(helpers.hf_tensors(hf), config)
    batch = next(loader.train_batches(documents, batch_size=ROWS, seed=0, row_length=WIDTH))
    loss, _, gradient = ours(config, params, batch)
    assert batch.segment_ids.max() > 1, "no row holds several documents"
    packed = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            read = tokens[segments == segment]
            packed += [
                each
                for each in documents
                if np.array_equal(np.concatenate([each.prefix, each.text]), read)
            ]
    hf_loss, _ = theirs(hf, packed, int(batch.targets[ANSWER].mask.sum()))
    assert_close(loss, hf_loss, "loss")
    expected = t5_tree(helpers.hf_tensors(hf, gradients=True), config)
    assert_same_gradients(gradient, expected)


@pytest.mark.parametrize("name", CASES)
def test_greedy_equals_generate(name):
    config = CASES[name]
    hf = hf_t5(config, seed=11 if name == "flan" else 16)
    if config.tie_embeddings:  # whose outputs else repeat the token that was read
        with torch.no_grad():
            hf.shared.weight.mul_(0.25)
    params = t5_tree(helpers.hf_tensors(hf), config)
    prompts = t5_examples([(0, length, 0) for length in (1, 9, 30, 4)], 5)

    def expected(eos_id):  # which begins with the start token
        hf.generation_config.update(decoder_start_token_id=config.start_id)
        width = max(len(prompt.text) for prompt in prompts)
        ids, mask = (np.zeros((len(prompts), width), np.int64) for _ in range(2))
        for index, prompt in enumerate(prompts):
            ids[index, : len(prompt.text)], mask[index, : len(prompt.text)] = prompt.text, 1
        found = hf.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=eos_id,
            pad_token_id=eos_id,
        ).numpy()[:, 1:]
        return np.pad(found, ((0, 0), (0, NEW - found.shape[1])), constant_values=eos_id or 0)

    eos_id = an_end_some_rows_reach(expected(None))
    wanted = expected(eos_id)
    assert len(np.unique(wanted)) > 5, "a model that repeats itself tests little"
    greedy = jax.jit(decode.make_greedy(registry.create(config), NEW, eos_id))
    actual = greedy(params, batching.prompts(prompts, rows=len(prompts)))
    np.testing.assert_array_equal(actual, wanted)


def test_adapters_of_peft_go_there_and_back(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    from tests.parity.test_peft import adapt, exchange, tensors

    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path / "cache"))
    documents = t5_examples(SIZES, 2)
    batch = batching.padded([batching.row(example) for example in documents])
    hf = hf_t5(FLAN, seed=1)
    hf.save_pretrained(tmp_path / "base")
    base = t5_tree(helpers.hf_tensors(hf), FLAN)
    settings = {
        "target_modules": ["q", "wi_0"],
        "rank_pattern": {r".*decoder.*\.q": 2},
        "task_type": "SEQ_2_SEQ_LM",
    }
    model = adapt(hf, None, r=3, **settings)
    directory = exchange(model, str(tmp_path / "base"), tmp_path)
    bound = lora.bind(base, load(directory, base))
    _, logits, _ = ours(FLAN, lora.multiply_out(bound), batch)
    _, expected = theirs(model, documents, 1)
    for index, rows in enumerate(expected):
        assert_close(logits[index, : len(rows)], rows, f"logits of row {index}")

    peft_export.export(directory, tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "theirs")
    assert peft.PeftConfig.from_pretrained(tmp_path / "back").task_type == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (10, 23), (8, 20), (64, 300)])
@pytest.mark.parametrize("causal", [False, True])
def test_buckets_of_distances(causal, buckets, far):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-far - 50, far + 50)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(distances), not causal, buckets, far
    )
    table = bucket_table(causal, buckets, far)
    np.testing.assert_array_equal(table[np.clip(distances, -far, far) + far], expected)
