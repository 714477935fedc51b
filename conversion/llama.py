"""Llama 2 and 3: tensors and configuration of transformers' LlamaForCausalLM."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from conversion.mapping import Row
from jaxclf.errors import ArtifactError, InputError
from jaxclf.models.layers import RopeScaling
from jaxclf.models.llama import LlamaConfig

_LAYER = "model.layers.{layer}."

# fmt: off
ROWS = (
    Row("model.embed_tokens.weight", "embed/embedding"),
    Row(_LAYER + "input_layernorm.weight", "layers/attention_norm/scale"),
    Row(_LAYER + "self_attn.q_proj.weight", "layers/attention/q/kernel", transpose=True),
    Row(_LAYER + "self_attn.k_proj.weight", "layers/attention/k/kernel", transpose=True),
    Row(_LAYER + "self_attn.v_proj.weight", "layers/attention/v/kernel", transpose=True),
    Row(_LAYER + "self_attn.o_proj.weight", "layers/attention/o/kernel", transpose=True),
    Row(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    Row(_LAYER + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", transpose=True),
    Row(_LAYER + "mlp.up_proj.weight", "layers/mlp/up/kernel", transpose=True),
    Row(_LAYER + "mlp.down_proj.weight", "layers/mlp/down/kernel", transpose=True),
    Row("model.norm.weight", "norm/scale"),
    Row("lm_head.weight", "unembed/kernel", transpose=True),
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
_FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "chunk_size_feed_forward": 0,
}

# Attributes that name things, or steer text generation, training or output formats elsewhere.
_HARMLESS = set(
    """
    _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation
    bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label is_decoder label2id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    """.split()
)


def read_config(theirs: Mapping[str, Any], source: object) -> LlamaConfig:
    """Our dimensions from the content of a config.json.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    theirs = {name: value for name, value in theirs.items() if value is not None}
    known = _SIZES.keys() | _OTHERS.keys() | _ROPE | _HARMLESS
    unknown = theirs.keys() - known
    _refuse(
        [
            f"{name}={theirs[name]!r}" + (f" (only {_FIXED[name]!r})" if name in _FIXED else "")
            for name in sorted(unknown)
            if name not in _FIXED or theirs[name] != _FIXED[name]
        ],
        source,
    )
    values = _DEFAULTS | theirs
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    values.setdefault("num_key_value_heads", heads)  # files from before grouped queries
    if "head_dim" not in values and _is_size(heads) and _is_size(hidden):
        values["head_dim"] = hidden // heads
    wrong = [name for name in _SIZES if not _is_size(values.get(name))]
    wrong += [name for name in _OTHERS if not isinstance(values[name], int | float)]
    if wrong:
        shown = ", ".join(f"{name}={values.get(name)!r}" for name in wrong)
        raise ArtifactError(f"{source}: missing or impossible: {shown}")
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
        _refuse([f"rope_type={kind!r} (only 'default' and 'llama3')"], source)
    _refuse(
        [f"{name}={rope[name]!r} of rope_type {kind!r}" for name in rope.keys() - expected[kind]],
        source,
    )
    wrong = [name for name in expected[kind] if not isinstance(rope.get(name), int | float)]
    if wrong or not isinstance(theta, int | float):
        raise ArtifactError(f"{source}: rope values missing or no numbers: {rope}, θ {theta!r}")
    if kind == "default":
        return float(theta), None
    return float(theta), RopeScaling(**{ours: rope[name] for name, ours in _LLAMA3_SCALING.items()})


def _refuse(attributes: list[str], source: object) -> None:
    if attributes:
        raise InputError(
            f"{source}: not supported, and the model would compute something else without it: "
            + ", ".join(attributes)
        )


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
