"""Llama 2 and 3: tensors and configuration of transformers' LlamaForCausalLM."""

from collections.abc import Mapping
from typing import Any

from jaxclf.convert import attributes
from jaxclf.convert.attributes import is_size, refuse
from jaxclf.convert.mapping import Family, TensorRow
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.decoder import LlamaConfig
from jaxclf.models.layers import RopeScaling

_LAYER = "model.layers.{layer}."

# fmt: off
ROWS = (
    TensorRow("model.embed_tokens.weight", "embed/embedding"),
    TensorRow(_LAYER + "input_layernorm.weight", "layers/attention_norm/scale"),
    TensorRow(_LAYER + "self_attn.q_proj.weight", "layers/attention/q/kernel", transpose=True),
    TensorRow(_LAYER + "self_attn.k_proj.weight", "layers/attention/k/kernel", transpose=True),
    TensorRow(_LAYER + "self_attn.v_proj.weight", "layers/attention/v/kernel", transpose=True),
    TensorRow(_LAYER + "self_attn.o_proj.weight", "layers/attention/o/kernel", transpose=True),
    TensorRow(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    TensorRow(_LAYER + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", transpose=True),
    TensorRow(_LAYER + "mlp.up_proj.weight", "layers/mlp/up/kernel", transpose=True),
    TensorRow(_LAYER + "mlp.down_proj.weight", "layers/mlp/down/kernel", transpose=True),
    TensorRow("model.norm.weight", "norm/scale"),
    TensorRow("lm_head.weight", "unembed/kernel", transpose=True),
)
# fmt: on

# Buffers that old transformers saved; we compute them from the configuration.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

# Copies that some files of tied models hold: name → the tensor they must equal.
TIED = {"lm_head.weight": "model.embed_tokens.weight"}

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position",
}
_OTHERS = {
    "rms_norm_eps": "rms_norm_eps",
    "initializer_range": "initializer_std",
    "tie_word_embeddings": "tie_embeddings",
}
_ROPE = {"rope_theta", "rope_scaling", "rope_parameters"}
_LLAMA3_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}

# transformers' values for attributes that a file may leave out.
_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}

# Attributes that would change the computation, with the one value under which they do not.
_FIXED = attributes.FIXED | {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
}


def read_config(theirs: Mapping[str, Any], source: object) -> LlamaConfig:
    """Our dimensions from the content of a config.json.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    theirs = {name: value for name, value in theirs.items() if value is not None}
    known = _SIZES.keys() | _OTHERS.keys() | _ROPE | attributes.HARMLESS | {"is_decoder"}
    attributes.refuse_unknown(theirs, known, _FIXED, source)
    values = _DEFAULTS | theirs
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    values.setdefault("num_key_value_heads", heads)  # files from before grouped queries
    if "head_dim" not in values and is_size(heads) and is_size(hidden):
        values["head_dim"] = hidden // heads
    attributes.check_numbers(values, _SIZES, _OTHERS, source)
    rope_theta, rope_scaling = _read_rope(theirs, source)
    return LlamaConfig(
        **{ours: values[name] for name, ours in (_SIZES | _OTHERS).items()},
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
    )


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """The content of a config.json, for transformers 5 and, in its old names, for 4."""
    scaling = {"rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = {"rope_type": "llama3"} | {
            name: getattr(config.rope_scaling, ours) for name, ours in _LLAMA3_SCALING.items()
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(config, ours) for name, ours in (_SIZES | _OTHERS).items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_theta": config.rope_theta} | scaling,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else scaling,
    }


def _read_rope(theirs: Mapping[str, Any], source: object) -> tuple[float, RopeScaling | None]:
    """θ and scaling from `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling` (4)."""
    rope: dict[str, Any] = {}
    places = [
        {"rope_theta": theirs.get("rope_theta")},
        theirs.get("rope_scaling", {}),
        theirs.get("rope_parameters", {}),
    ]
    if not all(isinstance(place, dict) for place in places):
        raise ArtifactError(f"{source}: rope_scaling and rope_parameters must be JSON objects")
    for place in places:
        for name, value in place.items():
            name = "rope_type" if name == "type" else name  # the name before transformers 4.43
            if value is not None and rope.setdefault(name, value) != value:
                raise InputError(f"{source}: {name} is both {rope[name]!r} and {value!r}")

    theta = rope.pop("rope_theta", 10_000.0)
    kind = rope.pop("rope_type", "default")
    if rope.get("partial_rotary_factor") == 1:
        del rope["partial_rotary_factor"]
    expected = {"default": set(), "llama3": set(_LLAMA3_SCALING)}
    if kind not in expected:
        refuse([f"rope_type={kind!r} (only 'default' and 'llama3')"], source)
    refuse(
        [f"{name}={rope[name]!r} of rope_type {kind!r}" for name in rope.keys() - expected[kind]],
        source,
    )
    wrong = [name for name in expected[kind] if not isinstance(rope.get(name), int | float)]
    if wrong or not isinstance(theta, int | float):
        raise ArtifactError(f"{source}: rope values missing or no numbers: {rope}, θ {theta!r}")
    if kind == "default":
        return float(theta), None
    return float(theta), RopeScaling(**{ours: rope[name] for name, ours in _LLAMA3_SCALING.items()})


FAMILY = Family(
    rows=lambda config: ROWS,
    read_config=lambda theirs, source, tensors: read_config(theirs, source),
    write_config=lambda config, labels: write_config(config),
    ignored=IGNORED,
    tied=TIED,
)
