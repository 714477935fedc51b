"""How families of decoders differ in their files: the table that `decoders` goes by.

A family is a row in `VARIANTS`: which attributes follow from its name, which it has of its own, and
under which names its tensors lie.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxclf.convert.attributes import is_number
from jaxclf.models.heads import HeadKind

Values = dict[str, Any]  # the content of a config.json, with defaults


@dataclasses.dataclass(frozen=True)
class Experts:
    """Attributes and tensors of a family's experts.

    place, router: their names in a layer, and the router's there. module: the first where it is
    another once transformers has read the file. names: of gate, up and down in an
    expert, or, where those of all experts lie in one tensor, fused: how its gate and up do. shared:
    the name of one that every token has, of the same size; empty: there is none. count,
    size: the attributes of their number and size. normalised: the attribute that says whether
    weights sum to 1; empty: they do. dense: that of the size of layers without experts; empty:
    intermediate_size.
    """

    place: str
    count: str
    size: str
    names: tuple[str, ...] = ()
    fused: Literal["", "halves", "interleaved"] = ""
    shared: str = ""
    router: str = "gate"
    normalised: str = ""
    module: str = "mlp"
    dense: str = ""


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a family differs from Llama in its files.

    title: of transformers' class. headed: of its classes with a head, and the kinds of head that
    there are. defaults: its values for attributes that a file may leave out.
    implied: our attributes that its name stands for. numbers: attributes of its own, and ours.
    activation: the attribute that names it. layer_types: of a file without them, from its other
    attributes, of which `windows` speak of windows. biases: which attributes it has for them.
    experts: how the files have them, if there are any. norms: names of the norms around attention
    and feed-forward, and ours. fused: whether q, k, v and gate, up lie in one tensor each. by_hand:
    other attributes of its own, see `_by_hand`.
    """

    title: str
    defaults: Values = dataclasses.field(default_factory=dict)
    implied: Values = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    activation: str = "hidden_act"
    layer_types: Callable[[Values], Sequence[str] | None] = lambda values: None
    windows: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    norms: tuple[tuple[str, str], ...] = (
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "mlp_norm"),
    )
    fused: bool = False
    by_hand: tuple[str, ...] = ()
    experts: Experts | None = None
    headed: str = ""
    kinds: tuple[HeadKind, ...] = ("sequence", "token")

    @property
    def class_name(self) -> str:
        return self.headed or self.title.removesuffix("ForCausalLM")


_AROUND = (
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "after_attention_norm"),
    ("pre_feedforward_layernorm", "mlp_norm"),
    ("post_feedforward_layernorm", "after_mlp_norm"),
)
_BEHIND = (_AROUND[1], _AROUND[3])


def _all_windows(values: Values) -> Sequence[str] | None:
    """Of families whose window is that of every layer."""
    count = values["num_hidden_layers"]
    return ("sliding_attention",) * count if values.get("sliding_window") else None


def _late_windows(values: Values) -> Sequence[str] | None:
    """Of Qwen, where windows begin at a layer and only if they are used at all."""
    if not values.get("use_sliding_window") or not values.get("sliding_window"):
        return None
    first = values.get("max_window_layers", 28)
    first = first if is_number(first) else 0
    return [
        "sliding_attention" if index >= first else "full_attention"
        for index in range(values["num_hidden_layers"])
    ]


def _windows_without_rope(values: Values) -> Sequence[str] | None:
    """Of SmolLM3, where layers that do not rotate have the window, if it is used."""
    if not values.get("use_sliding_window") or not values.get("sliding_window"):
        return None
    return ["full_attention" if turns else "sliding_attention" for turns in rotating(values)]


def _chunks_with_rope(values: Values) -> Sequence[str] | None:
    """Of Llama 4, where layers that rotate have chunks, if there are any."""
    if not values.get("attention_chunk_size"):
        return None
    return ["chunked_attention" if turns else "full_attention" for turns in rotating(values)]


def _every(period: int, attribute: str = "") -> Callable[[Values], Sequence[str]]:
    """Windows but for every so many-th layer."""

    def found(values: Values) -> Sequence[str]:
        each = values.get(attribute) or values.get(f"_{attribute}") or period
        return [
            "sliding_attention" if (index + 1) % each else "full_attention"
            for index in range(values["num_hidden_layers"])
        ]

    return found


def rotating(values: Values) -> list[int]:
    """Whether each layer of SmolLM3 or Llama 4 rotates."""
    count = values["num_hidden_layers"]
    if given := values.get("no_rope_layers"):
        return given[:count] if isinstance(given, list) else []
    each = values.get("no_rope_layer_interval", 4)
    return [int((index + 1) % each != 0) for index in range(count)]


_QWEN = ("use_sliding_window", "max_window_layers", "sliding_window")
_GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
_GEMMA |= {"max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh"}
CAPS = {
    "final_logit_softcapping": "logit_cap",
    "attn_logit_softcapping": "attention_cap",
}
_BOTH = {"norms": "both", "norm_offset": True}

VARIANTS: dict[str, Variant] = {
    "llama": Variant("LlamaForCausalLM", biases=("attention_bias", "mlp_bias")),
    "mistral": Variant(
        "MistralForCausalLM",
        {"max_position_embeddings": 131_072, "sliding_window": 4096, "num_key_value_heads": 8},
        layer_types=_all_windows,
        windows=("sliding_window",),
    ),
    "qwen2": Variant(
        "Qwen2ForCausalLM",
        {"max_position_embeddings": 32_768, "use_sliding_window": False, "sliding_window": 4096},
        {"qkv_bias": True},
        layer_types=_late_windows,
        windows=_QWEN,
    ),
    "qwen3": Variant(
        "Qwen3ForCausalLM",
        {"max_position_embeddings": 32_768, "head_dim": 128, "sliding_window": 4096},
        {"query_norm": "head"},
        layer_types=_late_windows,
        windows=_QWEN,
        biases=("attention_bias",),
    ),
    "gemma": Variant("GemmaForCausalLM", _GEMMA, {"norm_offset": True}, biases=("attention_bias",)),
    "gemma2": Variant(
        "Gemma2ForCausalLM",
        _GEMMA
        | {"sliding_window": 4096, "query_pre_attn_scalar": 256}
        | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        _BOTH,
        CAPS,
        activation="hidden_activation",
        layer_types=_every(2),
        windows=("sliding_window",),
        biases=("attention_bias",),
        norms=_AROUND,
        by_hand=("query_pre_attn_scalar",),
    ),
    "gemma3_text": Variant(
        "Gemma3ForCausalLM",
        _GEMMA
        | {"sliding_window": 4096, "query_pre_attn_scalar": 256}
        | {"max_position_embeddings": 131_072, "vocab_size": 262_208}
        | {"num_attention_heads": 8, "num_key_value_heads": 4},
        _BOTH | {"query_norm": "head"},
        CAPS,
        activation="hidden_activation",
        layer_types=_every(6, "sliding_window_pattern"),
        windows=("sliding_window", "sliding_window_pattern", "_sliding_window_pattern"),
        biases=("attention_bias",),
        norms=_AROUND,
        by_hand=("query_pre_attn_scalar", "rope_local_base_freq"),
        headed="Gemma3Text",
        kinds=("sequence",),
    ),
    "phi3": Variant(
        "Phi3ForCausalLM",
        {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None},
        layer_types=_all_windows,
        windows=("sliding_window",),
        fused=True,
        by_hand=(
            *("original_max_position_embeddings", "partial_rotary_factor"),
            *("resid_pdrop", "embd_pdrop"),
        ),
    ),
    "smollm3": Variant(
        "SmolLM3ForCausalLM",
        {"max_position_embeddings": 32_768, "tie_word_embeddings": True}
        | {"num_key_value_heads": 4, "sliding_window": None},
        layer_types=_windows_without_rope,
        windows=("use_sliding_window", "sliding_window"),
        biases=("attention_bias", "mlp_bias"),
        by_hand=("no_rope_layers", "no_rope_layer_interval"),
    ),
    "olmo2": Variant(
        "Olmo2ForCausalLM",
        {"rms_norm_eps": 1e-5},
        {"norms": "after", "query_norm": "whole"},
        biases=("attention_bias",),
        norms=_BEHIND,
        kinds=("sequence",),
    ),
    "granite": Variant(
        "GraniteForCausalLM",
        {"attention_multiplier": 1.0},
        numbers={
            "embedding_multiplier": "embed_scale",
            "residual_multiplier": "residual_scale",
            "attention_multiplier": "attention_scale",
        },
        biases=("attention_bias", "mlp_bias"),
        by_hand=("logits_scaling",),
        kinds=(),
    ),
}


_MIXTRAL = Experts("block_sparse_moe", "num_local_experts", "intermediate_size", ("w1", "w3", "w2"))
_QWEN3_MOE = Experts(
    "mlp",
    "num_experts",
    "moe_intermediate_size",
    ("gate_proj", "up_proj", "down_proj"),
    normalised="norm_topk_prob",
)
_GPT_OSS = Experts(
    "mlp", "num_local_experts", "intermediate_size", fused="interleaved", router="router"
)
_LLAMA4 = Experts(
    "feed_forward",
    "num_local_experts",
    "intermediate_size",
    fused="halves",
    shared="shared_expert",
    router="router",
    module="feed_forward",
    dense="intermediate_size_mlp",
)
# Of training, where transformers balances the load only if asked to.
_ROUTING = ("output_router_logits", "router_aux_loss_coef")
VARIANTS |= {
    "mixtral": Variant(
        "MixtralForCausalLM",
        {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "sliding_window": None}
        | {"num_key_value_heads": 8, "num_experts_per_tok": 2, "num_local_experts": 8},
        layer_types=_all_windows,
        windows=("sliding_window",),
        by_hand=("num_local_experts", "num_experts_per_tok", *_ROUTING, "router_jitter_noise"),
        experts=_MIXTRAL,
    ),
    "qwen3_moe": Variant(
        "Qwen3MoeForCausalLM",
        {"max_position_embeddings": 32_768, "sliding_window": 4096, "num_key_value_heads": 4}
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"norm_topk_prob": False},
        {"query_norm": "head"},
        layer_types=_late_windows,
        windows=_QWEN,
        biases=("attention_bias",),
        by_hand=(
            *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
            *_ROUTING,
        ),
        experts=_QWEN3_MOE,
    ),
    "gpt_oss": Variant(
        "GptOssForCausalLM",
        {"vocab_size": 201_088, "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64}
        | {"num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8}
        | {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "sliding_window": 128}
        | {"num_local_experts": 128, "num_experts_per_tok": 4, "attention_bias": True}
        | {"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        {"sinks": True, "mlp_bias": True},
        {"swiglu_alpha": "swiglu_alpha", "swiglu_limit": "swiglu_limit"},
        layer_types=_every(2),
        windows=("sliding_window",),
        biases=("attention_bias",),
        by_hand=(
            *("num_local_experts", "num_experts_per_tok", *_ROUTING),
            *("experts_per_token", "initial_context_length", "quantization_config"),
        ),
        experts=_GPT_OSS,
    ),
    "llama4_text": Variant(
        "Llama4ForCausalLM",
        {"vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192, "head_dim": 128}
        | {"num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8}
        | {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "attention_chunk_size": 8192}
        | {"num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
        | {"intermediate_size_mlp": 16_384}
        | {"attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1},
        {"rotary_interleaved": True, "routing": "sigmoid", "weighted_inputs": True},
        layer_types=_chunks_with_rope,
        windows=("attention_chunk_size",),
        biases=("attention_bias",),
        by_hand=(
            *("num_local_experts", "num_experts_per_tok", *_ROUTING, "router_jitter_noise"),
            *("no_rope_layers", "no_rope_layer_interval", "use_qk_norm"),
            *("attn_temperature_tuning", "floor_scale", "attn_scale"),
            *("moe_layers", "interleave_moe_layer_step", "intermediate_size_mlp"),
        ),
        experts=_LLAMA4,
        kinds=(),
    ),
}
