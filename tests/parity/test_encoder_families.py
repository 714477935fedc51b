"""Encoders of all families against transformers, in float32: converted, compared, exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.checkpoint.model_dir import load_adapters, load_params, read_model, resolve
from jaxclf.convert import hf_export, hf_import, mapping, peft_import
from jaxclf.core import tree
from jaxclf.models import registry
from jaxclf.models.distances import vector_table
from tests.parity.test_decoders import off, saved_gradients

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "num_labels": 5,
    "pad_token_id": 1,
}
BERT = {"layer_norm_eps": 3e-3, "type_vocab_size": 2, "hidden_act": "gelu_new"}
ROPE = {"rope_type": "default", "rope_theta": 777.0}
# Name → the prefix of its classes and what differs from COMMON.
CASES = {
    "xlm-roberta": ("XLMRoberta", BERT | {"pad_token_id": 3}),
    "camembert": ("Camembert", BERT),
    "albert": ("Albert", BERT | {"embedding_size": 16}),
    "mpnet": ("MPNet", {"layer_norm_eps": 3e-3}),
    "deberta-v3": (
        "DebertaV2",
        {
            "layer_norm_eps": 3e-3,
            "relative_attention": True,
            "position_buckets": 6,
            "max_relative_positions": -1,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "pad_token_id": 0,
        },
    ),
    "nomic_bert": (
        "NomicBert",
        {"layer_norm_eps": 3e-3, "type_vocab_size": 2, "rope_parameters": ROPE},
    ),
    "modernbert": (
        "ModernBert",
        {
            "num_hidden_layers": 5,
            "norm_eps": 3e-3,
            "local_attention": 6,
            "rope_parameters": {
                "full_attention": ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 99.0},
            },
        },
    ),
    "modernbert-biases-mean": (
        "ModernBert",
        {
            "num_hidden_layers": 4,
            "local_attention": 8,
            "classifier_pooling": "mean",
            "hidden_activation": "silu",
            "classifier_activation": "relu",
            **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True),
        },
    ),
    "eurobert": (
        "EuroBert",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "rms_norm_eps": 3e-3,
            "rope_parameters": ROPE,
        },
    ),
    "eurobert-mean": (
        "EuroBert",
        {"classifier_pooling": "mean", "attention_bias": True, "mlp_bias": True},
    ),
}
TOLERANCE = 1e-5  # of the largest value
LENGTHS = (24, 17, 9)


def theirs(name: str, ending: str, seed: int = 1):
    """A random model, with weights large enough that every part of it matters."""
    title, changes = CASES[name]
    torch.set_num_threads(1)
    config = getattr(transformers, f"{title}Config")(**COMMON | changes)
    config._attn_implementation = "eager"
    model = getattr(transformers, title + ending)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path.lower() and path.endswith("weight"):
                weight.uniform_(0.5, 1.5, generator=generator)
            elif weight.ndim == 1:
                weight.normal_(0.0, 0.3, generator=generator)
            else:
                weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    return model


def texts(types: bool):
    """Tokens, positions, segment ids and types, padded with a token that no text has."""
    random = np.random.default_rng(3)
    segments = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    tokens = random.integers(5, COMMON["vocab_size"], segments.shape)
    given = random.integers(0, 2, segments.shape) * segments
    positions = np.arange(segments.shape[1]) * segments
    return np.where(segments, tokens, 1), positions, segments, given if types else None


def compared(hf, folder, kind: str):
    """(theirs, ours) of loss and logits, and each tensor's gradient (tensor, ours, theirs).

    Converted into `folder`.
    """
    hf.save_pretrained(folder / "theirs")
    hf_import.convert(folder / "theirs", folder / "ours", progress=lambda line: None)
    config, _ = read_model(folder / "ours/model.json")
    model = registry.create(config)
    params = load_params(folder / "ours", model.abstract)
    arrays = tokens, _, segments, types = texts(config.type_vocab_size > 1)
    tokens = np.where(segments, tokens, hf.config.pad_token_id)
    random = np.random.default_rng(5)
    labels = random.integers(0, 5, segments.shape if kind == "token" else len(segments))
    labels = np.where(segments, labels, -100) if kind == "token" else labels
    options = {} if types is None else {"token_type_ids": torch.tensor(types)}
    output = hf(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(segments),
        labels=torch.tensor(labels),
        **options,
    )
    output.loss.backward()
    width = segments.shape[1]
    at = np.broadcast_to(np.arange(width), segments.shape)
    at = at if kind == "token" else np.zeros((len(segments), 1), np.int64)

    def loss(params):
        module = model.bind(params)
        scores = module.read(kind, module.hidden(*arrays), segments, at)
        logs = jax.nn.log_softmax(scores)
        known = (labels if kind == "token" else labels[:, None]) * (at >= 0)
        chosen = jnp.take_along_axis(logs, np.maximum(known, 0)[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * (known >= 0)) / np.sum(known >= 0), scores

    ours, gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(model.abstract).items()}
    weights = saved_gradients(hf)
    flat, gradients = tree.flatten(gradient), []
    for part in mapping.expand(hf_import.FAMILIES[model.family].rows(config), shapes):
        own = flat[part.ours] if part.layer is None else flat[part.ours][part.layer]
        wanted = weights[part.name][part.slices]
        gradients.append((part, own.T if part.transpose else own, wanted))
    scores = output.logits.detach().numpy()
    return (output.loss.item(), scores), (ours[0], np.asarray(ours[1])), gradients, segments


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("name", CASES)
def test_logits_loss_every_gradient_and_export(name, kind, tmp_path):
    ending = f"For{kind.title()}Classification"
    hf = theirs(name, ending)
    expected, found, gradients, segments = compared(hf, tmp_path, kind)
    seen = segments > 0 if kind == "token" else slice(None)
    scores = found[1] if kind == "token" else found[1][:, 0]
    assert off(scores[seen], expected[1][seen]) < TOLERANCE
    assert float(found[0]) == pytest.approx(expected[0], rel=TOLERANCE)
    largest = max(np.abs(wanted).max() for *_, wanted in gradients)
    for part, own, wanted in gradients:
        # Keys' biases move all scores of a query alike: what is left of them is rounding.
        scale = max(np.abs(wanted).max(), 1e-3 * largest)
        assert np.abs(own - wanted).max() < 5 * TOLERANCE * scale, part
        if not part.ours.endswith("k/bias"):
            assert np.abs(wanted).max() > 1e-5, part

    hf_export.export(tmp_path / "ours", tmp_path / "again", progress=lambda line: None)
    again, info = type(hf).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    for (path, old), new in zip(hf.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new), path
    config = json.loads((tmp_path / "again/config.json").read_text("utf-8"))
    assert config["model_type"] == hf.config.model_type
    again.config._attn_implementation = "eager"
    tokens, _, segments, _ = texts(False)
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(segments)}
    with torch.no_grad():
        assert torch.equal(hf(**given).logits, again.eval()(**given).logits)


@pytest.mark.parametrize("name", CASES)
def test_packed_texts_and_blocks_of_queries_equal_each_alone(name, tmp_path):
    theirs(name, "Model").save_pretrained(tmp_path / "theirs")
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", progress=lambda line: None)
    config, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(config)
    params = load_params(tmp_path / "ours", model.abstract)
    tokens, positions, segments, _ = texts(False)
    packed = [
        np.concatenate([a[row, :n] for row, n in enumerate(LENGTHS)])[None]
        for a in (tokens, positions, segments * np.arange(1, 4)[:, None])
    ]

    def both(params):
        module = model.bind(params)
        # No kernel of a GPU has windows to both sides, or numbers added to scores.
        blocks = registry.create(config, attention="cudnn").bind(params)
        alone = module.hidden(tokens, positions, segments)
        return alone, module.hidden(*packed), blocks.hidden(*packed)

    alone, together, by_blocks = jax.jit(both)(params)
    expected = np.concatenate([alone[row, :n] for row, n in enumerate(LENGTHS)])
    assert off(together[0], expected) < TOLERANCE
    assert off(by_blocks[0], expected) < TOLERANCE


@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (6, 40), (8, 9)])
def test_which_vector_a_distance_has(buckets, longest):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    count = 700
    distances = torch.arange(1 - count, count)
    expected = make_log_bucket_position(distances, buckets, longest).long() + buckets
    expected = expected.clamp(0, 2 * buckets - 1).numpy()
    np.testing.assert_array_equal(vector_table(count, buckets, longest), expected)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("deberta-v3", ["query_proj", "key_proj", "dense"]),
        ("albert", ["query", "ffn"]),
        ("modernbert", ["Wqkv", "Wo"]),
        ("mpnet", ["q", "v"]),
    ],
)
def test_adapters_of_peft_are_read(name, targets, tmp_path):
    peft = pytest.importorskip("peft")
    ending = "ForSequenceClassification"
    hf = theirs(name, ending)
    hf.save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=targets)
    adapted = peft.get_peft_model(hf, options).eval()
    generator = torch.Generator().manual_seed(0)
    tokens, positions, segments, _ = texts(False)
    with torch.no_grad():
        for path, weight in adapted.named_parameters():
            if "lora_B" in path:
                weight.normal_(0.0, 0.3, generator=generator)
        adapted.save_pretrained(tmp_path / "theirs")
        given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(segments)}
        expected = adapted(**given).logits.numpy()
    hf_import.convert(tmp_path / "base", tmp_path / "ours", progress=lambda line: None)
    peft_import.convert(tmp_path / "theirs", tmp_path / "adapters", str(tmp_path / "ours"))
    config, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(config)
    params = load_params(tmp_path / "ours", model.abstract)
    module = model.bind(lora.bind(params, load_adapters(resolve(tmp_path / "adapters"), params)))
    first = np.zeros((len(tokens), 1), np.int64)
    found = module.read("sequence", module.hidden(tokens, positions, segments), segments, first)
    assert off(found[:, 0], expected) < TOLERANCE
