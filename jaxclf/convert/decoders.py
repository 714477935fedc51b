"""Decoders of one kind with Llama: tensors and configuration of transformers' causal models.

A family is a row in `VARIANTS`: which attributes follow from its name, which it has of its own, and
under which names its tensors lie.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxclf.convert import attributes, rope
from jaxclf.convert.attributes import is_number, is_size, refuse
from jaxclf.convert.mapping import Family, TensorRow
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.heads import HeadKind

_LAYER = "model.layers.{layer}."

Values = dict[str, Any]  # the content of a config.json, with defaults

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

# transformers' values for attributes that a file may leave out.
_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}

# Attributes that would change the computation, with the one value under which they do not.
_FIXED = attributes.FIXED | {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "use_bidirectional_attention": False,
    "rope_interleaved": False,
}
_HARMLESS = attributes.HARMLESS | {
    "is_decoder",
    "is_llama_config",
    "unk_token_id",
    "num_labels",
    "_num_labels",
    "classifier_dropout",
    "cache_implementation",
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# Attributes of single families that count something, and those that are true or false.
_COUNTS = ("no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern")
_FLAGS = ("attention_bias", "mlp_bias", "use_sliding_window")
_LAYER_TYPES = {
    "full_attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "chunk",
}


@dataclasses.dataclass(frozen=True)
class Experts:
    """Attributes and tensors of a family's experts.

    router, names: its name in a layer, and of gate, up and down in an expert. size: the attribute
    of an expert's. normalised: the attribute that says whether weights sum to 1; empty: they do.
    """

    place: str
    names: tuple[str, str, str]
    count: str
    size: str
    normalised: str = ""


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
    return ["full_attention" if turns else "sliding_attention" for turns in _rotating(values)]


def _every(period: int, attribute: str = "") -> Callable[[Values], Sequence[str]]:
    """Windows but for every so many-th layer."""

    def found(values: Values) -> Sequence[str]:
        each = values.get(attribute) or values.get(f"_{attribute}") or period
        return [
            "sliding_attention" if (index + 1) % each else "full_attention"
            for index in range(values["num_hidden_layers"])
        ]

    return found


def _rotating(values: Values) -> list[int]:
    """Whether each layer of SmolLM3 rotates."""
    if (given := values.get("no_rope_layers")) is not None:
        return given if isinstance(given, list) else []
    each = values.get("no_rope_layer_interval", 4)
    return [int((index + 1) % each != 0) for index in range(values["num_hidden_layers"])]


_QWEN = ("use_sliding_window", "max_window_layers", "sliding_window")
_GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
_GEMMA |= {"max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh"}
_CAPS = {
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
        _CAPS,
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
        _CAPS,
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


_MIXTRAL = Experts("block_sparse_moe", ("w1", "w3", "w2"), "num_local_experts", "intermediate_size")
_QWEN3_MOE = Experts(
    "mlp",
    ("gate_proj", "up_proj", "down_proj"),
    "num_experts",
    "moe_intermediate_size",
    "norm_topk_prob",
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
}


# Tensors ------------------------------------------------------------------------------------------


def rows(config: DecoderConfig) -> list[TensorRow]:
    """The table for a model of these dimensions; several rows of one name are parts of a tensor."""
    variant = VARIANTS[config.family]
    attention, mlp = _LAYER + "self_attn.", _LAYER + "mlp."
    fused = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}

    def linear(place: str, ours: str, name: str) -> list[TensorRow]:
        theirs = place + (fused.get(name, name) if variant.fused else name) + "_proj."
        path = f"layers/{ours}/{name}/"
        return [
            TensorRow(theirs + "weight", path + "kernel", transpose=True),
            TensorRow(theirs + "bias", path + "bias"),
        ]

    return [
        TensorRow("model.embed_tokens.weight", "embed/embedding"),
        *(
            TensorRow(f"{_LAYER}{theirs}.weight", f"layers/{ours}/scale")
            for theirs, ours in variant.norms
        ),
        *(row for name in "qkvo" for row in linear(attention, "attention", name)),
        *(
            TensorRow(f"{attention}{name}_norm.weight", f"layers/attention/{name}_norm/scale")
            for name in "qk"
        ),
        *(_expert_rows(variant.experts) if variant.experts else ()),
        *(row for name in ("gate", "up", "down") for row in linear(mlp, "mlp", name)),
        TensorRow("model.norm.weight", "norm/scale"),
        TensorRow("lm_head.weight", "unembed/kernel", transpose=True),
        *(
            row
            for head in config.heads
            for row in (
                TensorRow("score.weight", f"heads/{head.name}/out/kernel", transpose=True),
                TensorRow("score.bias", f"heads/{head.name}/out/bias"),
            )
        ),
    ]


def _expert_rows(experts: Experts) -> Iterator[TensorRow]:
    place = f"{_LAYER}{experts.place}."
    yield TensorRow(f"{place}gate.weight", "layers/mlp/router", transpose=True)
    for theirs, ours in zip(experts.names, ("gate", "up", "down"), strict=True):
        name = f"{place}experts.{{expert}}.{theirs}.weight"
        yield TensorRow(name, f"layers/mlp/{ours}", transpose=True)


# Buffers that old transformers saved; we compute them from the configuration.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

# Copies that some files of tied models hold: name → the tensor they must equal.
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


# Configuration ------------------------------------------------------------------------------------


def read_config(theirs: Mapping[str, Any], source: object) -> DecoderConfig:
    """Our dimensions from the content of a config.json.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    theirs = {name: value for name, value in theirs.items() if value is not None}
    family = str(theirs.get("model_type"))
    variant = VARIANTS[family]
    if variant.experts is not None and variant.experts.count not in theirs:
        # transformers 5 has one name for the number, whatever older files call it.
        count = theirs.pop("num_local_experts", None)
        theirs |= {} if count is None else {variant.experts.count: count}
    known = _SIZES.keys() | _OTHERS.keys() | rope.ATTRIBUTES | _HARMLESS | {"model_type"}
    known |= {variant.activation, "hidden_act", "layer_types", *variant.numbers, *variant.windows}
    known |= {*variant.biases, *variant.by_hand}
    unused = {"attention_bias": False, "mlp_bias": False, "sliding_window": None}
    attributes.refuse_unknown(theirs, known, _FIXED | unused, source)
    values = _DEFAULTS | variant.defaults | theirs
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    values.setdefault("num_key_value_heads", heads)  # files from before grouped queries
    if "head_dim" not in values and is_size(heads) and is_size(hidden):
        values["head_dim"] = hidden // heads
    attributes.check_numbers(values, _SIZES, _OTHERS, source)
    numbers = [name for name in variant.numbers if name in values]
    attributes.check_numbers(values, [], numbers, source)
    wrong = [name for name in _COUNTS if name in values and not is_size(values[name])]
    wrong += [name for name in _FLAGS if not isinstance(values.get(name, False), bool)]
    if wrong:
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, wrong)}")
    rotated = rope.read(values, family, source)
    impossible = {
        "num_key_value_heads": values["num_attention_heads"] % values["num_key_value_heads"],
        "head_dim": int(values["head_dim"] * rotated.share) % 2,  # the halves of rotary embeddings
    }
    if wrong := [name for name, rest in impossible.items() if rest]:
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, wrong)}")
    return DecoderConfig(
        **{ours: values[name] for name, ours in (_SIZES | _OTHERS).items()},
        **{ours: float(values[name]) for name, ours in variant.numbers.items() if name in values},
        **variant.implied,
        **_seen(values, variant, source),
        **_by_hand(values, family, source),
        **_biases(values, variant),
        **_head(theirs, variant, source),
        **_experts(values, variant.experts, source),
        family=family,
        activation=_activation(values, variant, source),
        rope_theta=rotated.theta,
        rope_scaling=rotated.scaling,
        rotary_share=rotated.share,
        local_rope_theta=rotated.local_theta,
    )


def _experts(values: Values, experts: Experts | None, source: object) -> dict[str, Any]:
    if experts is None:
        return {}
    sizes = [experts.count, "num_experts_per_tok", experts.size]
    attributes.check_numbers(values, sizes, [], source)
    count, chosen = values[experts.count], values["num_experts_per_tok"]
    if chosen > count:
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, sizes)}")
    normalised = values.get(experts.normalised, True)
    if not isinstance(normalised, bool):
        raise ArtifactError(f"{source}: impossible: {experts.normalised}={normalised!r}")
    return {
        "experts": count,
        "experts_per_token": chosen,
        "expert_size": values[experts.size],
        "normalised_experts": normalised,
    }


def _head(theirs: Mapping[str, Any], variant: Variant, source: object) -> dict[str, Any]:
    """Our heads and their dropout, which those of whole texts have none of."""
    found = attributes.heads(theirs, variant.class_name, source)
    rate = theirs.get("classifier_dropout", 0.1)
    if any(head.kind == "token" for head in found):
        attributes.check_numbers({"classifier_dropout": rate}, [], ["classifier_dropout"], source)
        return {"heads": found, "head_dropout": rate}
    return {"heads": found}


def _activation(values: Values, variant: Variant, source: object) -> Any:
    name = values.get(variant.activation, "silu")
    if str(name) not in _ACTIVATIONS:
        refuse([f"{variant.activation}={name!r} (only {', '.join(_ACTIVATIONS)})"], source)
    return _ACTIVATIONS[str(name)]


def _biases(values: Values, variant: Variant) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "attention_bias" in variant.biases:
        found |= dict.fromkeys(("qkv_bias", "out_bias"), bool(values.get("attention_bias", False)))
    if "mlp_bias" in variant.biases:
        found["mlp_bias"] = bool(values.get("mlp_bias", False))
    return found


def _seen(values: Values, variant: Variant, source: object) -> dict[str, Any]:
    """Our layer_types and window."""
    given = attributes.layer_types(values, _LAYER_TYPES, source)
    window = values.get("sliding_window")
    if window is not None and not is_size(window):
        raise ArtifactError(f"{source}: impossible: sliding_window={window!r}")
    types = [_LAYER_TYPES[name] for name in given or variant.layer_types(values) or ()]
    if "window" not in types:
        return {}
    if window is None:
        raise ArtifactError(f"{source}: layer_types has windows, and sliding_window is missing")
    return {"layer_types": tuple(types), "window": window}


def _by_hand(values: Values, family: str, source: object) -> dict[str, Any]:
    """Attributes of single families that are more than another name."""
    wrong = [
        name
        for name in ("query_pre_attn_scalar", "logits_scaling")
        if name in values and not (is_number(values[name]) and values[name])
    ]
    if wrong:
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, wrong)}")
    found: dict[str, Any] = {}
    if family.startswith("gemma"):
        found["embed_scale"] = math.sqrt(values["hidden_size"])
    if "query_pre_attn_scalar" in values:
        found["attention_scale"] = values["query_pre_attn_scalar"] ** -0.5
    if family == "granite":
        found["logit_scale"] = 1 / values.get("logits_scaling", 1.0)
    if family == "smollm3":
        turns = _rotating(values)
        if len(turns) != values["num_hidden_layers"] or not {*map(str, turns)} <= {"0", "1"}:
            raise ArtifactError(
                f"{source}: no_rope_layers must have 0 or 1 for each layer: "
                f"{attributes.shown(values, ['no_rope_layers'])}"
            )
        found["rotary_layers"] = () if all(turns) else tuple(map(bool, turns))
    if family == "phi3":
        refuse(
            [
                f"{name}={values[name]!r}"
                for name in ("resid_pdrop", "embd_pdrop")
                if values.get(name)
            ],
            source,
        )
    return found


def write_config(config: DecoderConfig, labels: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a config.json, for transformers 5 and, in its old names, for 4.

    `labels` name the scores of the model's one head. Raises InputError where transformers has none
    of its kind.
    """
    variant = VARIANTS[config.family]
    head = config.heads[0] if config.heads else None
    if head is not None and head.kind not in variant.kinds:
        raise InputError(
            f"transformers has no {config.family} model with a {head.kind} head; the run stays "
            "usable as it is"
        )
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation)
    written = {
        "architectures": [variant.title],
        "model_type": config.family,
        **{name: getattr(config, ours) for name, ours in (_SIZES | _OTHERS).items()},
        **{name: getattr(config, ours) for name, ours in variant.numbers.items()},
        "hidden_act": activation,
        variant.activation: activation,
        **rope.written(config),
    }
    if "attention_bias" in variant.biases:
        written["attention_bias"] = config.qkv_bias
    if "mlp_bias" in variant.biases:
        written["mlp_bias"] = config.mlp_bias
    if variant.windows:
        names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
        types = config.layer_types or ("full",) * config.num_layers
        written["sliding_window"] = config.window
        written["layer_types"] = [names[each] for each in types]
    if "use_sliding_window" in variant.windows:
        written["use_sliding_window"] = config.window is not None
    for name in _CAPS:
        if name in variant.numbers:
            written[name] = written[name] or None
    if "query_pre_attn_scalar" in variant.by_hand:
        scale = config.attention_scale**-2 if config.attention_scale else config.head_dim
        written["query_pre_attn_scalar"] = (
            round(scale) if abs(scale - round(scale)) < 1e-6 else scale
        )
    if config.family == "granite":
        written["logits_scaling"] = 1 / config.logit_scale
    if config.family == "smollm3":
        turns = config.rotary_layers or (True,) * config.num_layers
        written["no_rope_layers"] = [int(each) for each in turns]
    if variant.experts is not None:
        written |= {
            variant.experts.count: config.experts,
            "num_experts_per_tok": config.experts_per_token,
            variant.experts.size: config.expert_size,
        }
        if variant.experts.normalised:
            written[variant.experts.normalised] = config.normalised_experts
    if head is not None:
        written |= attributes.written_head(variant.class_name, head.kind, labels)
    if head is not None and head.kind == "token":
        written["classifier_dropout"] = config.head_dropout
    return written


FAMILIES = {
    name: Family(
        rows=rows,
        read_config=lambda theirs, source, tensors: read_config(theirs, source),
        write_config=write_config,
        ignored=IGNORED,
        beside_head=(r"lm_head\.weight",),
        tied=TIED,
    )
    for name in VARIANTS
}


def _text_alone(
    theirs: Mapping[str, Any], source: object, tensors: Collection[str]
) -> DecoderConfig:
    """Of a model that sees images too: the decoder of its texts."""
    text = theirs.get("text_config")
    if not isinstance(text, dict):
        raise ArtifactError(f"{source}: text_config is missing, which describes the decoder")
    return read_config({**text, "model_type": "gemma3_text"}, source)


FAMILIES["gemma3"] = dataclasses.replace(
    FAMILIES["gemma3_text"],
    read_config=_text_alone,
    # In files of transformers 4 and 5.
    renamed=((r"^(model\.language_model|language_model\.model)\.", "model."),),
    unused=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    tied={"language_model.lm_head.weight": "model.embed_tokens.weight", **TIED},
)
