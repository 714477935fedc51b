"""T5's kin against transformers, in float32: converted, compared, exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.checkpoint.model_dir import load_params, read_model
from jaxclf.convert import hf_export, hf_import, mapping
from jaxclf.core import tree
from jaxclf.data.batching import PromptBatch
from jaxclf.decoding import decode
from jaxclf.models import registry
from tests.parity.test_decoders import off, saved_gradients

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 23,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 5,
    "pad_token_id": 0,
    "eos_token_id": None,
}
CASES = {
    "mt5": ("MT5", {}),
    "umt5": ("UMT5", {"tie_word_embeddings": False}),
    "ul2": ("T5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
}
TOLERANCE = 1e-5


def theirs(name: str):
    """A random model whose unembedding is its own, as the released files have it."""
    title, changes = CASES[name]
    torch.set_num_threads(1)
    config = getattr(transformers, f"{title}Config")(**COMMON | changes)
    model = getattr(transformers, f"{title}ForConditionalGeneration")(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                std = 1.0 if "bias" in path else weight.shape[1] ** -0.5
                std *= 12**-0.25 if path.endswith("Attention.q.weight") else 1
                weight.normal_(0.0, std, generator=generator)
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits_every_gradient_answers_and_export(name, tmp_path):
    hf = theirs(name)
    hf.save_pretrained(tmp_path / "theirs")
    if name == "mt5":  # what some of its files say changes nothing
        path = tmp_path / "theirs/config.json"
        said = json.loads(path.read_text("utf-8")) | {"tie_word_embeddings": True}
        path.write_text(json.dumps(said), "utf-8")
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", progress=lambda line: None)
    config, _ = read_model(tmp_path / "ours/model.json")
    assert not config.scale_outputs
    assert not config.tie_embeddings
    model = registry.create(config)
    params = load_params(tmp_path / "ours", model.abstract)

    random = np.random.default_rng(0)
    segments = (np.arange(40) < np.array([40, 21])[:, None]).astype(np.int64)
    tokens = random.integers(6, 61, segments.shape) * segments
    labels = random.integers(6, 61, (2, 7))
    ones = np.ones_like(labels)
    output = hf(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(segments),
        labels=torch.tensor(labels),
    )
    output.loss.backward()

    def loss(params):
        module = model.bind(params)
        logits = module.logits(module.hidden(tokens, segments, labels, ones))
        logs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logs, labels[..., None], axis=-1).mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert off(logits, output.logits.detach().numpy()) < TOLERANCE
    assert float(value) == pytest.approx(output.loss.item(), rel=TOLERANCE)
    weights = saved_gradients(hf)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(model.abstract).items()}
    flat = tree.flatten(gradient)
    for part in mapping.expand(hf_import.FAMILIES[model.family].rows(config), shapes):
        own = flat[part.ours] if part.layer is None else flat[part.ours][part.layer]
        assert off(own.T if part.transpose else own, weights[part.name]) < 5 * TOLERANCE, part

    expected = hf.generate(
        torch.tensor(tokens), attention_mask=torch.tensor(segments), max_new_tokens=6, num_beams=1
    )[:, 1:]
    # Prompts are padded on the left here.
    turned = [
        np.roll(row, 40 - int(mask.sum())) for row, mask in zip(tokens, segments, strict=True)
    ]
    seen = [np.roll(mask, 40 - int(mask.sum())) for mask in segments]
    seen = np.stack(seen)
    prompt = PromptBatch(np.stack(turned), seen, (np.cumsum(seen, axis=1) - 1) * seen)
    found = jax.jit(decode.make_greedy(model, 6, eos_id=-7))(params, prompt)
    assert np.asarray(found).tolist() == expected.tolist()

    # Distances by blocks of queries, where an accelerator attends.
    blocks = registry.create(config, attention="cudnn")
    states = [
        jax.jit(lambda params, each=each: each.bind(params).encode(tokens, segments))(params)
        for each in (model, blocks)
    ]
    assert off(states[1][segments > 0], states[0][segments > 0]) < TOLERANCE

    hf_export.export(tmp_path / "ours", tmp_path / "again", progress=lambda line: None)
    again, info = type(hf).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    for (path, old), new in zip(hf.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new), path
    with torch.no_grad():
        asked = {
            "input_ids": torch.tensor(tokens),
            "attention_mask": torch.tensor(segments),
            "labels": torch.tensor(labels),
        }
        assert torch.equal(again(**asked).logits, hf(**asked).logits)
