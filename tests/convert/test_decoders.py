"""config.json, old and new: what is read, what is written, what is refused."""

import dataclasses

import pytest

from jaxclf.convert import decoders
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models import registry
from jaxclf.models.layers import RopeScaling

LLAMA2_7B = {  # as released, with the attributes of its time
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA32_1B = {  # as released
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": SCALING,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}

LLAMA4_SCOUT = {  # the decoder of texts, as released
    "_attn_implementation_autoset": True,
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": 4,
    "bos_token_id": 200000,
    "cache_implementation": "hybrid",
    "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760,
    "model_type": "llama4_text",
    "moe_layers": list(range(48)),
    "no_rope_layers": [1, 1, 1, 0] * 12,
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": 200018,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 202048,
}


def test_released_configs_are_the_zoo_s():
    assert decoders.read_config(LLAMA2_7B, "x") == registry.CONFIGS["llama2_7b"]
    assert decoders.read_config(LLAMA4_SCOUT, "x") == registry.CONFIGS["llama4_scout"]
    assert decoders.read_config(LLAMA32_1B, "x") == registry.CONFIGS["llama3.2_1b"]


def test_transformers_5_writes_rope_in_one_place():
    new = {k: v for k, v in LLAMA32_1B.items() if k not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = {"rope_theta": 500000.0} | SCALING
    assert decoders.read_config(new, "x") == registry.CONFIGS["llama3.2_1b"]


def test_the_old_name_of_the_rope_type_is_read():
    old = {k: v for k, v in SCALING.items() if k != "rope_type"} | {"type": "llama3"}
    assert decoders.read_config(
        LLAMA32_1B | {"rope_scaling": old}, "x"
    ).rope_scaling == RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    )


@pytest.mark.parametrize("name", ["llama2_70b", "llama3.1_8b", "llama3.2_3b", "llama_tiny"])
def test_what_is_written_is_read_back(name):
    config = dataclasses.replace(registry.CONFIGS[name], rms_norm_eps=3e-4, initializer_std=0.1)
    assert decoders.read_config(decoders.write_config(config), "x") == config


@pytest.mark.parametrize("name", ["llama2_70b", "llama3.2_1b"])
def test_transformers_reads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(registry.CONFIGS[name], rms_norm_eps=3e-4, rope_theta=12345.0)
    theirs = transformers.LlamaConfig(**decoders.write_config(config))
    theirs.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert decoders.read_config(again, "x") == config
    assert theirs.rope_parameters["rope_theta"] == 12345.0


@pytest.mark.parametrize(
    "attribute",
    [
        {"hidden_act": "relu2"},
        {"attention_dropout": 0.1},
        {"pretraining_tp": 2},
        {"sliding_window": 4096},
        {"quantization_config": {"bits": 4}},
        {"some_new_switch": 1},
        {"partial_rotary_factor": 0.5},
        {"rope_scaling": SCALING | {"rope_type": "dynamic"}},
        {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0}},
        {"rope_scaling": SCALING | {"attention_factor": 2.0}},
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_theta": 1.0}},  # not the θ beside it
    ],
)
def test_an_attribute_that_is_not_honoured_is_refused_by_name(attribute):
    with pytest.raises(InputError) as caught:
        decoders.read_config(LLAMA32_1B | {"rope_scaling": None} | attribute, "config.json")
    name, value = next(iter(attribute.items()))
    inner = next(iter(value)) if isinstance(value, dict) else name
    assert (
        name in str(caught.value) or inner in str(caught.value) or "rope_type" in str(caught.value)
    )


def test_all_refused_attributes_are_named_at_once():
    with pytest.raises(InputError, match=r"pretraining_tp=2 \(only 1\), sliding_window=8"):
        decoders.read_config(LLAMA2_7B | {"pretraining_tp": 2, "sliding_window": 8}, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"num_hidden_layers": "32"},
        {"vocab_size": 0},
        {"num_attention_heads": None},
        {"rms_norm_eps": "tiny"},
        {"rope_scaling": [1]},
        {"rope_theta": "big"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    ],
)
def test_missing_and_impossible_values_are_an_artifact_error(change):
    with pytest.raises(ArtifactError, match=next(iter(change)).split("_")[0]):
        decoders.read_config(LLAMA2_7B | change, "config.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"no_rope_layers": []}, {}),  # every fourth, as where nothing is said
        ({"no_rope_layers": [1] * 50}, {"rotary_layers": (), "layer_types": ("chunk",) * 48}),
        ({"attention_chunk_size": None}, {"chunk": None, "layer_types": ()}),
        ({"attn_temperature_tuning": False}, {"temperature_scale": 0.0, "temperature_floor": 0.0}),
        ({"use_qk_norm": False}, {"query_norm": "none"}),
        (
            {"moe_layers": None, "interleave_moe_layer_step": 2},
            {"expert_layers": (False, True) * 24, "intermediate_size": 16_384},
        ),
        ({"moe_layers": [0, 47]}, {"expert_layers": (True, *[False] * 46, True)}),
    ],
    ids=str,
)
def test_what_llama_4_says_of_its_layers(change, expected):
    config = decoders.read_config(LLAMA4_SCOUT | change, "x")
    assert config == dataclasses.replace(registry.CONFIGS["llama4_scout"], **expected)
    assert decoders.read_config(decoders.write_config(config), "x") == config


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"moe_layers": []}, InputError),
        ({"moe_layers": [48]}, ArtifactError),
        ({"no_rope_layers": [1, 0]}, ArtifactError),
        ({"interleave_moe_layer_step": 0}, ArtifactError),
        ({"floor_scale": 0}, ArtifactError),
        ({"attn_scale": "big"}, ArtifactError),
        ({"attention_chunk_size": 0}, ArtifactError),
        ({"intermediate_size_mlp": 0}, ArtifactError),
        ({"num_experts_per_tok": 17}, ArtifactError),
        ({"use_qk_norm": 2}, ArtifactError),
        ({"for_llm_compressor": True}, InputError),
        ({"sliding_window": 8}, InputError),
        ({"router_scale": 2.0}, InputError),
    ],
    ids=str,
)
def test_what_llama_4_cannot_say_is_named(change, error):
    with pytest.raises(error, match=next(iter(change))):
        decoders.read_config(LLAMA4_SCOUT | change, "config.json")


@pytest.mark.parametrize(
    ("family", "attribute", "ours"),
    [
        ("mistral", "sliding_window", "window"),
        ("gemma2", "final_logit_softcapping", "logit_cap"),
        ("gemma2", "attn_logit_softcapping", "attention_cap"),
    ],
)
def test_null_turns_off_what_a_family_has_where_nothing_is_said(family, attribute, ours):
    """As Mistral 7B was released from its version 0.2 on."""
    plain = {name: value for name, value in LLAMA32_1B.items() if not name.startswith("rope_")}
    plain |= {"model_type": family, "mlp_bias": None, "hidden_activation": "gelu_pytorch_tanh"}
    if family == "mistral":
        plain["hidden_activation"] = None
    assert getattr(decoders.read_config(plain, "x"), ours)
    config = decoders.read_config(plain | {attribute: None}, "x")
    assert not getattr(config, ours)
    assert decoders.read_config(decoders.write_config(config), "x") == config
