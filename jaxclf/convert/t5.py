"""T5, Flan-T5, UL2, mT5 and UMT5: tensors and configuration, of what writes and of classifiers."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxclf.convert import attributes
from jaxclf.convert.mapping import Family, TensorRow
from jaxclf.core.errors import ArtifactError
from jaxclf.models.heads import HeadKind
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
_BODY = "transformer."  # before names of the body in files of a model with a head
# A head's modules by its kind, and ours.
_HEADS: dict[HeadKind, tuple[tuple[str, str], ...]] = {
    "sequence": (("classification_head.dense", "dense"), ("classification_head.out_proj", "out")),
    "token": (("classifier", "out"),),
}


def rows(config: T5Config) -> list[TensorRow]:
    """The table; without a gate `up` has another name, with a head the body's names are longer."""
    prefix = _BODY if config.heads else ""
    body = [row for row in ROWS if config.gated or "wi_0" not in row.theirs]
    found = [
        TensorRow(
            prefix + (row.theirs if config.gated else row.theirs.replace("wi_1", "wi")),
            row.ours,
            row.transpose,
        )
        for row in body
    ]
    for head in config.heads:
        for theirs, name in _HEADS[head.kind]:
            ours = f"heads/{head.name}/{name}"
            found.append(TensorRow(f"{theirs}.weight", f"{ours}/kernel", transpose=True))
            found.append(TensorRow(f"{theirs}.bias", f"{ours}/bias"))
    return found


# What the first T5's files hold beside its parameters: transformers does not read it either.
IGNORED = (
    r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)

# Copies that some files hold: name → the tensor they must equal.
TIED = {
    f"{prefix}{name}.weight": f"{prefix}shared.weight"
    for prefix in ("", _BODY)
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
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
    "classifier_dropout": "head_dropout",
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
    "classifier_dropout": 0.0,
    "eos_token_id": 1,
}

# Of mT5 and UMT5 where they differ.
_LATER = {"feed_forward_proj": "gated-gelu"}

_FIXED = attributes.FIXED | {"is_encoder_decoder": True, "is_decoder": False}

# `n_positions` limits nothing; two follow from feed_forward_proj, two are read with the labels.
_HARMLESS = {"n_positions", "output_past", "is_gated_act", "dense_act_fn"}
_HARMLESS |= {"num_labels", "_num_labels"}
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
    known |= {"feed_forward_proj", "model_type"}
    family = str(theirs.get("model_type", "t5"))
    heads = attributes.heads(theirs, _TITLES[family], source)
    if any(head.kind == "token" for head in heads):  # which has no decoder, whatever files say
        known |= {"is_encoder_decoder"}
    attributes.refuse_unknown(theirs, known, _FIXED, source)
    values: dict[str, Any] = {**_DEFAULTS, **({} if family == "t5" else _LATER), **theirs}
    values.setdefault("num_decoder_layers", values.get("num_layers"))
    values.setdefault("decoder_start_token_id", values.get("pad_token_id", 0))
    attributes.check_numbers(values, _SIZES, _OTHERS, source)
    start = values["decoder_start_token_id"]
    if not _is_id(start, values):
        raise ArtifactError(
            f"{source}: impossible: {attributes.shown(values, ['decoder_start_token_id'])}"
        )
    if not _is_id(end := values["eos_token_id"], values):
        if any(head.kind == "sequence" for head in heads):
            raise ArtifactError(
                f"{source}: impossible: {attributes.shown(values, ['eos_token_id'])}, which ends "
                "the texts that a head reads"
            )
        end = _DEFAULTS["eos_token_id"]
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
        end_id=end,
        heads=heads,
        own_distances=family == "umt5",
        gated=gated,
        activation=activation,
        tie_embeddings="lm_head.weight" not in tensors or bool(says_tied and scales),
        scale_outputs=bool(scales),
    )


def _is_id(value: Any, values: Mapping[str, Any]) -> bool:
    """Whether it is a token of the model's vocabulary."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and 0 <= value < values["vocab_size"]


def write_config(config: T5Config, labels: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a config.json, for transformers 4 and 5.

    `labels` name the scores of the model's one head.
    """
    form = next(
        name
        for name, (gated, activation, _) in _FEED_FORWARD.items()
        if (gated, activation) == (config.gated, config.activation)
    )
    title = _TITLES[config.family]
    written = {
        "architectures": [f"{title}ForConditionalGeneration"],
        "model_type": config.family,
        "is_encoder_decoder": config.decodes,
        **{name: getattr(config, ours) for name, ours in (_SIZES | _OTHERS).items()},
        "feed_forward_proj": form,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.scale_outputs,
    }
    for head in config.heads:
        written |= attributes.written_head(title, head.kind, labels)
        # transformers shifts no text without a padding id, which none holds.
        written |= {"eos_token_id": config.end_id, "pad_token_id": config.start_id}
    return written


FAMILIES = {
    name: Family(
        rows=rows,
        read_config=read_config,
        write_config=write_config,
        ignored=IGNORED,
        tied=TIED,
    )
    for name in _TITLES
}
