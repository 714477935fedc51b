"""Decoders of one kind with Llama: the configuration of transformers' causal models, both ways.

Each by its row in `decoder_families`; their tensors are in `decoder_tensors`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxclf.convert import attributes, rope
from jaxclf.convert.attributes import is_number, is_size, refuse
from jaxclf.convert.decoder_families import CAPS, VARIANTS, Experts, Values, Variant, rotating
from jaxclf.convert.decoder_tensors import IGNORED, TIED, rows
from jaxclf.convert.mapping import Family
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.decoder_config import DecoderConfig

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
    "for_llm_compressor": False,
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
_COUNTS = (
    *("no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern"),
    *("interleave_moe_layer_step", "floor_scale"),
)
_FLAGS = ("attention_bias", "mlp_bias", "use_sliding_window", "use_qk_norm")
_LAYER_TYPES = {
    "full_attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "chunk",
}
# What says how much layers of these kinds see.
_SPANS = {"window": "sliding_window", "chunk": "attention_chunk_size"}


def read_config(theirs: Mapping[str, Any], source: object) -> DecoderConfig:
    """Our dimensions from the content of a config.json.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    off = {name for name in (*_SPANS.values(), *CAPS) if name in theirs and theirs[name] is None}
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
    defaults = _DEFAULTS | variant.defaults
    values = {name: defaults[name] for name in defaults if name not in off} | theirs
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
    sizes = _SIZES
    if variant.experts and variant.experts.dense:
        sizes = _SIZES | {variant.experts.dense: "intermediate_size"}
        attributes.check_numbers(values, [variant.experts.dense], [], source)
    return DecoderConfig(
        **{ours: values[name] for name, ours in (sizes | _OTHERS).items()},
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
        "shared_expert_size": values[experts.size] if experts.shared else 0,
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
    """Our layer_types, window and chunk."""
    given = attributes.layer_types(values, _LAYER_TYPES, source)
    types = [_LAYER_TYPES[name] for name in given or variant.layer_types(values) or ()]
    found: dict[str, Any] = {}
    for kind, attribute in _SPANS.items():
        size = values.get(attribute)
        if size is not None and not is_size(size):
            raise ArtifactError(f"{source}: impossible: {attribute}={size!r}")
        if kind not in types:
            continue
        if size is None or attribute not in variant.windows:
            raise ArtifactError(f"{source}: layer_types has {kind}s, and {attribute} is missing")
        found |= {"layer_types": tuple(types), kind: size}
    return found


def _by_hand(values: Values, family: str, source: object) -> dict[str, Any]:
    """Attributes of single families that are more than another name."""
    wrong = [
        name
        for name in ("query_pre_attn_scalar", "logits_scaling", "swiglu_limit")
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
    if family == "llama4_text":
        found |= _llama4(values, source)
    if "no_rope_layers" in VARIANTS[family].by_hand:
        turns = rotating(values)
        if len(turns) != values["num_hidden_layers"] or not {*map(str, turns)} <= {"0", "1"}:
            raise ArtifactError(
                f"{source}: no_rope_layers must have 0 or 1 for each layer: "
                f"{attributes.shown(values, ['no_rope_layers'])}"
            )
        found["rotary_layers"] = () if all(turns) else tuple(map(bool, turns))
    if family == "gpt_oss":
        _check_repeated(values, source)
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


def _llama4(values: Values, source: object) -> dict[str, Any]:
    """Norms of queries and keys, which layers have experts, what those without rotation have."""
    step, count = values["interleave_moe_layer_step"], values["num_hidden_layers"]
    sparse = values.get("moe_layers", list(range(step - 1, count, step)))
    if not isinstance(sparse, list) or not {*map(str, sparse)} <= {*map(str, range(count))}:
        raise ArtifactError(f"{source}: impossible: moe_layers={sparse!r}")
    if not sparse:
        refuse([f"moe_layers={sparse!r} (at least one)"], source)
    tuned, scale = values["attn_temperature_tuning"], values["attn_scale"]
    if not is_number(tuned) or not is_number(scale):
        wrong = ["attn_temperature_tuning", "attn_scale"]
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, wrong)}")
    found: dict[str, Any] = {"query_norm": "l2" if values.get("use_qk_norm", True) else "none"}
    if len({*sparse}) < count:
        found["expert_layers"] = tuple(index in sparse for index in range(count))
    if tuned and scale:
        found["temperature_floor"] = float(values["floor_scale"])
        found["temperature_scale"] = float(scale)
    return found


def _check_repeated(values: Values, source: object) -> None:
    """Raise InputError where released files of gpt-oss contradict what they say twice.

    transformers reads only the other place. Their experts are read as what MXFP4 stands for.
    """
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    twice = {
        "experts_per_token": values["num_experts_per_tok"],
        "initial_context_length": scaling.get("original_max_position_embeddings"),
    }
    refuse(
        [
            f"{name}={values[name]!r} (elsewhere {wanted!r})"
            for name, wanted in twice.items()
            if values.get(name, wanted) != wanted and wanted is not None
        ],
        source,
    )
    packed = values.get("quantization_config", {"quant_method": "mxfp4"})
    if not isinstance(packed, dict) or packed.get("quant_method") != "mxfp4":
        refuse([f"quantization_config={packed!r} (only quant_method mxfp4)"], source)


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
        for kind, attribute in _SPANS.items():
            if attribute in variant.windows:
                written[attribute] = getattr(config, kind)
        written["layer_types"] = [names[each] for each in types]
    if "use_sliding_window" in variant.windows:
        written["use_sliding_window"] = config.window is not None
    for name in CAPS:
        if name in variant.numbers:
            written[name] = written[name] or None
    if "query_pre_attn_scalar" in variant.by_hand:
        scale = config.attention_scale**-2 if config.attention_scale else config.head_dim
        written["query_pre_attn_scalar"] = (
            round(scale) if abs(scale - round(scale)) < 1e-6 else scale
        )
    if config.family == "granite":
        written["logits_scaling"] = 1 / config.logit_scale
    if config.family == "llama4_text":
        has_experts = config.expert_layers or (True,) * config.num_layers
        written |= {
            "use_qk_norm": config.query_norm == "l2",
            "attn_temperature_tuning": config.temperature_scale > 0,
            "floor_scale": round(config.temperature_floor) or 8192,
            "attn_scale": config.temperature_scale,
            "moe_layers": [index for index, has in enumerate(has_experts) if has],
        }
    if "no_rope_layers" in variant.by_hand:
        turns = config.rotary_layers or (True,) * config.num_layers
        written["no_rope_layers"] = [int(each) for each in turns]
    if variant.experts is not None:
        written |= {
            variant.experts.count: config.experts,
            "num_experts_per_tok": config.experts_per_token,
            variant.experts.size: config.expert_size,
        }
        if variant.experts.dense:
            written[variant.experts.dense] = config.intermediate_size
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
        parameters=lambda config: rows(config, in_files=False),
        ignored=IGNORED,
        beside_head=(r"lm_head\.weight",),
        tied=TIED,
    )
    for name in VARIANTS
}


def _text_alone(kind: str) -> Callable[[Mapping[str, Any], object, Collection[str]], DecoderConfig]:
    """Of a model that sees images too: the decoder of its texts, of this model_type."""

    def read(theirs: Mapping[str, Any], source: object, tensors: Collection[str]) -> DecoderConfig:
        text = theirs.get("text_config")
        if not isinstance(text, dict):
            raise ArtifactError(f"{source}: text_config is missing, which describes the decoder")
        return read_config({**text, "model_type": kind}, source)

    return read


# Models that see images, and the decoders of their texts; names in files of transformers 4 and 5.
FAMILIES |= {
    name: dataclasses.replace(
        FAMILIES[kind],
        read_config=_text_alone(kind),
        renamed=(
            (r"^(model\.language_model|language_model\.model)\.", "model."),
            (r"^language_model\.lm_head\.", "lm_head."),
        ),
        unused=(r"(model\.)?(vision_tower|vision_model|multi_modal_projector)\..*",),
    )
    for name, kind in {"gemma3": "gemma3_text", "llama4": "llama4_text"}.items()
}
