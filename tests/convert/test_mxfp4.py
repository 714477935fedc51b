"""Experts in MXFP4: the numbers that the bytes stand for, and files that hold them."""

import itertools
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxclf.checkpoint.model_dir import load_params, read_model
from jaxclf.convert import decoders, hf_export, hf_import, mxfp4
from jaxclf.core import tree
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models import registry
from jaxclf.models.quantization import QuantKernel

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}
CONFIG = {  # as released, but for sizes
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 2,
    "hidden_act": "silu",
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            *("model.layers.*.self_attn", "model.layers.*.mlp.router"),
            *("model.embed_tokens", "lm_head"),
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    **SIZES,
}
NAMES = [
    f"model.layers.{layer}.mlp.experts.{name}"
    for layer, name in itertools.product(range(2), ("gate_up_proj", "down_proj"))
]


def packed(shape, seed: int, exponents=(100, 130)):
    """Random bytes of a parameter `[E D F]`."""
    experts, size_in, size_out = shape
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (experts, size_out, size_in // 32, 16), np.uint8)
    return blocks, random.integers(*exponents, blocks.shape[:-1], np.uint8)


def write_source(directory, change=lambda tensors: tensors):
    """A small model in the form of the release; returns its tensors."""
    config = decoders.read_config(CONFIG, "x")
    tensors = {}
    for name, shape in shapes_of(config).items():
        random = np.random.default_rng(len(tensors))
        if name in NAMES:
            both = packed(shape, len(tensors))
            tensors |= dict(zip((f"{name}_blocks", f"{name}_scales"), both, strict=True))
        else:
            tensors[name] = random.normal(0, 0.1, shape).astype(ml_dtypes.bfloat16)
    tensors = change(tensors)
    directory.mkdir()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    ids = {"eos_token_id": 2, "pad_token_id": 0}
    (directory / "config.json").write_text(json.dumps(CONFIG | ids), "utf-8")
    return tensors


def shapes_of(config):
    leaves = tree.flatten(registry.create(config).abstract)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    expand, whole = hf_import.mapping.expand, hf_import.mapping.whole_shapes
    return whole(expand(decoders.rows(config), shapes))


def quiet(line):
    pass


@pytest.mark.parametrize("exponents", [(0, 256), (100, 130), (0, 3), (252, 256)])
@pytest.mark.parametrize("shape", [(3, 64, 10), (1, 32, 7)])
def test_numbers_are_those_of_transformers(shape, exponents):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = packed(shape, 0, exponents)
    expected = theirs.convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    found = mxfp4.dequantise(blocks, scales)
    assert found.shape == shape == tuple(expected.shape)
    # As bits: zeros have a sign.
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(torch.uint16).numpy())


def test_a_released_file_is_read_and_written_plain(tmp_path):
    tensors = write_source(tmp_path / "theirs")
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", progress=quiet)
    config, dtype = read_model(tmp_path / "ours/model.json")
    assert (config.rope_scaling.truncate, config.sinks, dtype) == (False, True, "bfloat16")
    hf_export.export(tmp_path / "ours", tmp_path / "again", progress=quiet)
    again = safetensors.numpy.load_file(tmp_path / "again/model.safetensors")
    for name in NAMES:
        expected = mxfp4.dequantise(*(tensors.pop(name + end) for end in ("_blocks", "_scales")))
        np.testing.assert_array_equal(again.pop(name), expected)
    assert again.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_array_equal(again[name], expected)
    written = json.loads((tmp_path / "again/config.json").read_text("utf-8"))
    assert "quantization_config" not in written


def test_transformers_computes_the_same_from_a_released_file(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_source(tmp_path / "theirs")
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", "float32", progress=quiet)
    plain = transformers.Mxfp4Config(dequantize=True)
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", quantization_config=plain, attn_implementation="eager"
    ).float()
    config, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(config)
    params = load_params(tmp_path / "ours", model.abstract)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 20))
    positions = np.broadcast_to(np.arange(20), tokens.shape)
    module = model.bind(params)
    found = np.asarray(module.logits(module.hidden(tokens, positions, np.ones_like(tokens))))
    with torch.no_grad():
        expected = hf(input_ids=torch.tensor(tokens)).logits.numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_other_kinds_of_few_bits_are_made_of_it(kind, tmp_path):
    write_source(tmp_path / "theirs")
    hf_import.convert(tmp_path / "theirs", tmp_path / "plain", "float32", progress=quiet)
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", "float32", kind, progress=quiet)
    config, _ = read_model(tmp_path / "ours/model.json")
    models = registry.create(config), registry.create(config, quantise=kind)
    plain, params = (
        load_params(tmp_path / name, model.abstract)
        for name, model in zip(("plain", "ours"), models, strict=True)
    )
    for name in ("gate", "up", "down"):
        kernel = params["layers"]["mlp"][name]["kernel"]
        assert isinstance(kernel, QuantKernel)
        original = np.asarray(plain["layers"]["mlp"][name]["kernel"])
        # Each number is off by at most half a step of its group.
        off = np.abs(kernel.dequantise(np.float32) - original)
        assert off.max() < (0.2 if kind == "nf4" else 0.01) * np.abs(original).max()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: {n: a for n, a in t.items() if n != f"{NAMES[0]}_scales"}, InputError, "is U8"),
        (
            lambda t: t | {f"{NAMES[0]}_scales": t[f"{NAMES[0]}_scales"][:, 1:]},
            ArtifactError,
            "are no MXFP4: expected",
        ),
        (
            lambda t: t | {f"{NAMES[1]}_blocks": t[f"{NAMES[1]}_blocks"][..., :8]},
            ArtifactError,
            "are no MXFP4: expected",
        ),
        (lambda t: t | {"model.norm.weight": np.zeros(64, np.uint8)}, InputError, "is U8"),
    ],
)
def test_bytes_that_are_no_mxfp4_are_refused(change, error, words, tmp_path):
    write_source(tmp_path / "theirs", change)
    with pytest.raises(error, match=words):
        hf_import.convert(tmp_path / "theirs", tmp_path / "ours", progress=quiet)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "attribute",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"experts_per_token": 3},
        {"initial_context_length": 2048},
        {"attention_dropout": 0.1},
        {"swiglu_beta": 1.0},
    ],
)
def test_an_attribute_that_is_not_honoured_is_refused_by_name(attribute):
    with pytest.raises(InputError, match=next(iter(attribute))):
        decoders.read_config(CONFIG | attribute, "config.json")


@pytest.mark.parametrize("attribute", [{"swiglu_limit": 0}, {"swiglu_alpha": "big"}])
def test_impossible_values_are_an_artifact_error(attribute):
    with pytest.raises(ArtifactError, match=next(iter(attribute))):
        decoders.read_config(CONFIG | attribute, "config.json")


def test_a_file_that_says_nothing_of_rope_has_that_of_the_release():
    bare = {name: value for name, value in CONFIG.items() if not name.startswith("rope_")}
    assert decoders.read_config(bare, "x") == decoders.read_config(CONFIG, "x")
