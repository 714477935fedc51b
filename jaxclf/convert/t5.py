"""T5, Flan-T5, UL2, mT5 and UMT5: tensors and configuration of …ForConditionalGeneration."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxclf.convert import attributes
from jaxclf.convert.mapping import Family, TensorRow
from jaxclf.core.errors import ArtifactError
from jaxclf.models.t5 import T5Config


def _side(side: str, feed_forward: int) -> list[TensorRow]:
    """The rows of encoder or decoder; `feed_forward`: its place among a layer's parts."""
    theirs, ours = f"{side}.block.{{layer}}.layer.", f"layers/{side}/"
    dense = f"{theirs}{feed_forward}.DenseReluDense."
    rows = [
        TensorRow(f"{theirs}0.layer_norm.weight", f"{ours}attention_norm/scale"),
        *_attention(f"{theirs}0.SelfAttention.", f"{ours}attention/"),
        TensorRow(f"{theirs}{feed_forward}.layer_norm.weight", f"{ours}mlp_norm/scale"),
        TensorRow(f"{dense}wi_0.weight", f"{ours}mlp/gate/kernel", transpose=True),
        TensorRow(f"{dense}wi_1.weight", f"{ours}mlp/up/kernel", transpose=True),
        TensorRow(f"{dense}wo.weight", f"{ours}mlp/down/kernel", transpose=True),
        TensorRow(f"{side}.final_layer_norm.weight", f"{side}_norm/scale"),
        *(
            TensorRow(
                f"{side}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight", place
            )
            for layer, place in (
                ("0", f"distances/{side}/embedding"),
                ("{layer}", f"{ours}distances/embedding"),
            )
        ),
    ]
    if side == "decoder":
        rows += _attention(f"{theirs}1.EncDecAttention.", f"{ours}cross/")
        rows.append(TensorRow(f"{theirs}1.layer_norm.weight", f"{ours}cross_norm/scale"))
    return rows


def _attention(theirs: str, ours: str) -> list[TensorRow]:
    return [
        TensorRow(f"{theirs}{name}.weight", f"{ours}{name}/kernel", transpose=True)
        for name in "qkvo"
    ]


ROWS = (
    TensorRow("shared.weight", "embed/embedding"),
    *_side("encoder", 1),
    *_side("decoder", 2),
    TensorRow("lm_head.weight", "unembed/kernel", transpose=True),
)


def rows(config: T5Config) -> list[TensorRow]:
    """The table; without a gate `up` has another name."""
    if config.gated:
        return list(ROWS)
    return [
        TensorRow(row.theirs.replace("wi_1", "wi"), row.ours, row.transpose)
        for row in ROWS
        if "wi_0" not in row.theirs
    ]


# What the first T5's files hold beside its parameters: transformers does not read it either.
IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)

# Copies that some files hold: name → the tensor they must equal.
TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}

_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
}
_OTHERS = {
    "layer_norm_epsilon": "rms_norm_eps",
    "initializer_factor": "initializer_factor",
    "dropout_rate": "dropout",
    "decoder_start_token_id": "start_id",
}
# feed_forward_proj → whether it is gated, our activation, and its names in `dense_act_fn`.
_FEED_FORWARD: dict[str, tuple[bool, str, tuple[str, ...]]] = {
    "gated-gelu": (True, "", ("gelu_new", "gelu")),
    "gated-silu": (True, "silu", ("silu",)),
    "relu": (False, "", ("relu",)),
}
_TITLES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}

# transformers' values for attributes that a file may leave out.
_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "dropout_rate": 0.1,
    "feed_forward_proj": "relu",
}

# Of mT5 and UMT5 where they differ.
_LATER = {"feed_forward_proj": "gated-gelu"}

_FIXED = attributes.FIXED | {"is_encoder_decoder": True, "is_decoder": False}

# `n_positions` limits nothing; the others follow from feed_forward_proj, or are of another head.
_HARMLESS = {"n_positions", "output_past", "is_gated_act", "dense_act_fn", "classifier_dropout"}
_HEAD = {"tie_word_embeddings", "scale_decoder_outputs"}


def read_config(
    theirs: Mapping[str, Any], source: object, tensors: Collection[str] = ()
) -> T5Config:
    """Our dimensions from the content of a config.json beside tensors of these names.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    theirs = {name: value for name, value in theirs.items() if value is not None}
    known = _SIZES.keys() | _OTHERS.keys() | _HARMLESS | _HEAD | attributes.HARMLESS
    attributes.refuse_unknown(theirs, known | {"feed_forward_proj", "model_type"}, _FIXED, source)
    family = str(theirs.get("model_type", "t5"))
    values: dict[str, Any] = {**_DEFAULTS, **({} if family == "t5" else _LATER), **theirs}
    values.setdefault("num_decoder_layers", values.get("num_layers"))
    values.setdefault("decoder_start_token_id", values.get("pad_token_id", 0))
    attributes.check_numbers(values, _SIZES, _OTHERS, source)
    start = values["decoder_start_token_id"]
    if not isinstance(start, int) or start >= values["vocab_size"]:
        raise ArtifactError(
            f"{source}: impossible: {attributes.shown(values, ['decoder_start_token_id'])}"
        )
    if (form := str(values["feed_forward_proj"])) not in _FEED_FORWARD:
        attributes.refuse([f"feed_forward_proj={form!r} (only {[*_FEED_FORWARD]})"], source)
    gated, activation, names = _FEED_FORWARD[form]
    if (given := values.get("dense_act_fn", names[0])) not in names:
        attributes.refuse([f"dense_act_fn={given!r} beside {form!r}"], source)
    exact = values["relative_attention_num_buckets"] // 2
    if values["relative_attention_max_distance"] <= exact or exact < 2:
        raise ArtifactError(
            f"{source}: relative_attention_max_distance must exceed half of "
            f"relative_attention_num_buckets, {exact}, and that be 2 or more"
        )
    # Until transformers 4 one attribute says both; 5 always says "tied", and the file shows it.
    says_tied = values.get("tie_word_embeddings", True)
    scales = values.get("scale_decoder_outputs", says_tied)
    if family == "mt5":  # whatever its files say, which tie nothing and scale nothing
        scales = False
    return T5Config(
        **{ours: values[name] for name, ours in (_SIZES | _OTHERS).items()},
        family=family,
        own_distances=family == "umt5",
        gated=gated,
        activation=activation,
        tie_embeddings="lm_head.weight" not in tensors or bool(says_tied and scales),
        scale_outputs=bool(scales),
    )


def write_config(config: T5Config) -> dict[str, Any]:
    """The content of a config.json, for transformers 4 and 5."""
    form = next(
        name
        for name, (gated, activation, _) in _FEED_FORWARD.items()
        if (gated, activation) == (config.gated, config.activation)
    )
    return {
        "architectures": [f"{_TITLES[config.family]}ForConditionalGeneration"],
        "model_type": config.family,
        "is_encoder_decoder": True,
        **{name: getattr(config, ours) for name, ours in (_SIZES | _OTHERS).items()},
        "feed_forward_proj": form,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.scale_outputs,
    }


FAMILIES = {
    name: Family(
        rows=rows,
        read_config=read_config,
        write_config=lambda config, labels: write_config(config),
        ignored=IGNORED,
        tied=TIED,
    )
    for name in _TITLES
}
