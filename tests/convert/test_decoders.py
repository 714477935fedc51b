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


def test_released_configs_are_the_zoo_s():
    assert decoders.read_config(LLAMA2_7B, "x") == registry.CONFIGS["llama2_7b"]
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
