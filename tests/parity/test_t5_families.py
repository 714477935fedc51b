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
    config = getattr(transformers, f"{title}Config")(**COMMON | changes)
    model = getattr(transformers, f"{title}ForConditionalGeneration")(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return filled(model)


def filled(model):
    """Random weights, large enough that every part matters."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                std = 1.0 if "bias" in path else weight.shape[-1] ** -0.5
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


# The first T5 and Flan-T5 beside the others.
HEADED = CASES | {
    "t5": ("T5", {"feed_forward_proj": "relu"}),
    "flan": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
END, LENGTHS = 2, (40, 21)
# Of each row's tokens the first whose words are scored, so that other tokens have no loss.
LABELS, WORDS = 4, 9


def headed(name: str, kind: str, labels: int = LABELS):
    """A random model of theirs with a head."""
    title, changes = HEADED[name]
    options = {"eos_token_id": END, "num_labels": labels, "classifier_dropout": 0.3}
    config = getattr(transformers, f"{title}Config")(**COMMON | changes | options)
    return filled(getattr(transformers, f"{title}For{kind.title()}Classification")(config).eval())


def texts():
    """Tokens that end with the id that ends texts, padded, and their segments."""
    segments = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    tokens = np.random.default_rng(0).integers(6, 61, segments.shape) * segments
    tokens[np.arange(2), np.array(LENGTHS) - 1] = END
    return tokens, segments


def compared(hf, folder, kind: str):
    """(loss, scores) of theirs and of ours, and for every tensor its gradient here and there."""
    hf.save_pretrained(folder / "theirs")
    hf_import.convert(folder / "theirs", folder / "ours", progress=lambda line: None)
    config, _ = read_model(folder / "ours/model.json")
    model = registry.create(config)
    params = load_params(folder / "ours", model.abstract)
    tokens, segments = texts()
    random = np.random.default_rng(1)
    if kind == "sequence":
        at, labels = np.array(LENGTHS)[:, None] - 1, random.integers(0, LABELS, (2, 1))
        targets = labels[:, 0]
    else:
        at, labels = np.tile(np.arange(WORDS), (2, 1)), random.integers(0, LABELS, (2, WORDS))
        targets = np.full(tokens.shape, -100)
        targets[:, :WORDS] = labels
    asked = (torch.tensor(each) for each in (tokens, segments, targets))
    output = hf(**dict(zip(("input_ids", "attention_mask", "labels"), asked, strict=True)))
    output.loss.backward()

    def loss(params):
        module = model.bind(params)
        scores = module.read(kind, module.states(tokens, segments)[kind], segments, at)
        logs = jax.nn.log_softmax(scores)
        return -jnp.take_along_axis(logs, labels[..., None], axis=-1).mean(), scores

    ours, gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    flat, weights, gradients = tree.flatten(gradient), saved_gradients(hf), []
    shapes = {path: leaf.shape for path, leaf in tree.flatten(model.abstract).items()}
    for part in mapping.expand(hf_import.FAMILIES[model.family].rows(config), shapes):
        own = flat[part.ours] if part.layer is None else flat[part.ours][part.layer]
        gradients.append((part, own.T if part.transpose else own, weights[part.name]))
    logits = output.logits.detach().numpy()
    expected = logits[:, None] if kind == "sequence" else logits[:, :WORDS]
    return (output.loss.item(), expected), ours, gradients, (model, params)


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("name", HEADED)
def test_heads_are_read_compared_and_written(name, kind, tmp_path):
    hf = headed(name, kind)
    expected, found, gradients, (model, params) = compared(hf, tmp_path, kind)
    assert model.config.end_id == END
    assert model.config.head_dropout == 0.3
    assert ("decoder" in model.abstract["layers"]) == (kind == "sequence")
    assert "unembed" not in model.abstract
    assert float(found[0]) == pytest.approx(expected[0], rel=TOLERANCE)
    assert off(found[1], expected[1]) < TOLERANCE
    for part, own, wanted in gradients:
        assert np.abs(wanted).max() > 1e-5, part
        assert off(own, wanted) < 5 * TOLERANCE, part

    # Texts side by side in one row, and scores by blocks of queries, are the same.
    tokens, segments = texts()
    packed = [np.concatenate([each[row, :length] for row, length in enumerate(LENGTHS)])[None]
              for each in (tokens, segments * [[1], [2]])]  # fmt: skip
    last = np.cumsum(LENGTHS)[None] - 1
    for attention in ("plain", "cudnn"):
        module = registry.create(model.config, attention=attention).bind(params)
        rows = jax.jit(lambda params, module=module: module.states(*packed))(params)[kind]
        if kind == "sequence":
            own = module.read(kind, rows, packed[1], last)[0][:, None]
        else:
            starts = last[0, :, None] + 1 - np.array(LENGTHS)[:, None] + np.arange(WORDS)
            own = module.read(kind, rows, packed[1], starts.reshape(1, -1))
            own = own.reshape(2, WORDS, -1)
        assert off(own, expected[1]) < TOLERANCE, attention

    hf_export.export(tmp_path / "ours", tmp_path / "again", progress=lambda line: None)
    again, info = type(hf).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    for (path, old), new in zip(hf.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new), path
    asked = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(segments),
    }
    with torch.no_grad():
        assert torch.equal(again(**asked).logits, hf(**asked).logits)
