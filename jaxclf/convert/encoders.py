"""Encoders of one kind with BERT: tensors and configuration of transformers' models.

A model has no head or one: that of …ForSequenceClassification or …ForTokenClassification. It is
called "sequence" or "token" when it is read, and may have any name when it is written. A family is
a row of `_TABLES`; what its name implies of the model stands in `models.encoder.FAMILIES`.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxclf.convert import attributes, rope
from jaxclf.convert.attributes import is_size
from jaxclf.convert.mapping import Family, TensorRow
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.encoder import FAMILIES as IMPLIED
from jaxclf.models.encoder import EncoderConfig

Values = dict[str, Any]  # the content of a config.json, with defaults
Names = tuple[tuple[str, str], ...]  # theirs and ours; several of one name are parts of a tensor

# Tensors ------------------------------------------------------------------------------------------


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


@dataclasses.dataclass(frozen=True)
class _Table:
    """Everything in which one family's files differ from another's.

    prefix: before all names but the head's; body: modules (a pattern) that files of a model without
    a head name without it. embeddings, norms, linears: modules by name; of the last two each has a
    weight and, where the model has it, a bias. sequence_head, token_head: their modules likewise.
    unused: modules of other heads.

    sizes, numbers: attributes and our fields, with transformers' `defaults`. head_dropout,
    token_dropout: what heads of each kind have it by; a missing one is the model's. known: more
    attributes, which `read` makes fields of ours of, and `write` back. fixed: those with the one
    value under which the model is as we compute it, whether a file says it or not.
    """

    title: str
    prefix: str
    embeddings: Names
    norms: Names
    linears: Names
    sequence_head: Names
    unused: tuple[str, ...]
    sizes: Mapping[str, str]
    numbers: Mapping[str, str]
    defaults: Values
    body: str = "embeddings|embeddings_project|encoder|pooler|transformer"
    activation: str = "hidden_act"
    head_dropout: str = "classifier_dropout"
    token_dropout: str = ""
    token_head: Names = (("classifier", "out"),)
    known: tuple[str, ...] = ()
    read: Callable[[Values, object], Values] = lambda values, source: {}
    write: Callable[[EncoderConfig], Values] = lambda config: {}
    fixed: Values = dataclasses.field(default_factory=dict)


# Attributes that are more than another name -------------------------------------------------------


def _read_offset(values: Values, source: object) -> Values:
    """RoBERTa counts positions from the one after its padding token's id."""
    padding, rows = values["pad_token_id"], values["max_position_embeddings"]
    if not isinstance(padding, int) or not 0 <= padding < rows - 1:
        raise ArtifactError(
            f"{source}: missing or impossible: pad_token_id={padding!r}, which must leave some of "
            f"the {rows} rows of max_position_embeddings"
        )
    return {"position_offset": padding + 1, "max_position": rows - padding - 1}


def _write_offset(config: EncoderConfig) -> Values:
    rows = config.max_position + config.position_offset
    return {"max_position_embeddings": rows, "pad_token_id": config.position_offset - 1}


def _read_mpnet(values: Values, source: object) -> Values:
    """As RoBERTa, but the padding token's id is written into the model."""
    return _read_offset(values | {"pad_token_id": 1}, source)


def _read_deberta(values: Values, source: object) -> Values:
    given = values.get("pos_att_type") or ""
    kinds = given.lower().split("|") if isinstance(given, str) else given
    if not isinstance(kinds, list) or {str(kind).strip() for kind in kinds} != {"c2p", "p2c"}:
        attributes.refuse([f"pos_att_type={given!r} (only c2p and p2c)"], source)
    longest, types = values["max_relative_positions"], values["type_vocab_size"]
    longest = values["max_position_embeddings"] if longest in (0, -1) else longest
    buckets = values.get("position_buckets")
    # Of both sides each distance below a half of the buckets has its own: 2 and more are needed.
    if not (is_size(longest) and is_size(buckets)) or buckets < 4 or longest <= buckets // 2 + 1:
        names = ["position_buckets", "max_relative_positions"]
        raise ArtifactError(
            f"{source}: missing or impossible: {attributes.shown(values, names)}. Expected 4 "
            "position_buckets or more, and a farthest distance beyond a half of them"
        )
    if types != 0 and not is_size(types):
        raise ArtifactError(f"{source}: impossible: type_vocab_size={types!r}")
    for name in ("embedding_size", "pooler_hidden_size"):
        if values.get(name, values["hidden_size"]) != values["hidden_size"]:
            attributes.refuse([f"{name}={values[name]!r} (only that of hidden_size)"], source)
    style = dataclasses.replace(
        IMPLIED["deberta-v2"]["head"], dense=_activation(values, "pooler_hidden_act", source)
    )
    return {
        "distance_vectors": buckets,
        "max_distance": longest,
        "type_vocab_size": types,
        "head": style,
    }


def _write_deberta(config: EncoderConfig) -> Values:
    return _DEBERTA_FIXED | {
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": config.distance_vectors,
        "max_relative_positions": config.max_distance,
        "type_vocab_size": config.type_vocab_size,
        "pooler_hidden_act": _NAMES[config.head.dense],
        "pooler_hidden_size": config.hidden_size,
    }


def _read_rotary(family: str, values: Values, source: object) -> Values:
    size = values["hidden_size"] // max(1, values["num_attention_heads"])
    head_dim = values.get("head_dim", size)
    if not is_size(head_dim) or head_dim % 2:
        raise ArtifactError(f"{source}: impossible: head_dim={head_dim!r} (an even size)")
    rotated = rope.read(values | {"head_dim": head_dim}, family, source)
    return {
        "rope_theta": rotated.theta,
        "rope_scaling": rotated.scaling,
        "local_rope_theta": rotated.local_theta,
        "head_dim": 0 if head_dim == size else head_dim,
    }


def _write_rotary(config: EncoderConfig) -> Values:
    return rope.written(config) | {"head_dim": config.head_size}


def _flags(values: Values, names: Sequence[str], source: object) -> dict[str, bool]:
    if wrong := [name for name in names if not isinstance(values[name], bool)]:
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, wrong)}")
    return {name: values[name] for name in names}


def _activation(values: Values, name: str, source: object) -> str:
    if str(values.get(name)) not in ACTIVATIONS:
        attributes.refuse([f"{name}={values.get(name)!r} (only {', '.join(ACTIVATIONS)})"], source)
    return ACTIVATIONS[str(values[name])]


def _pooling(values: Values, known: Mapping[str, Any], source: object) -> Any:
    name = values["classifier_pooling"]
    if str(name) not in known:
        attributes.refuse([f"classifier_pooling={name!r} (only {', '.join(known)})"], source)
    return known[str(name)]


_MODERN_POOLING = {"cls": "first", "mean": "mean"}
_EURO_POOLING = {"bos": "first", "mean": "mean", "late": "scores"}
_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "window"}


def _read_modernbert(values: Values, source: object) -> Values:
    count, period = values["num_hidden_layers"], values["global_attn_every_n_layers"]
    reach = values["local_attention"]
    if not is_size(period) or not is_size(reach) or reach < 2:
        names = ["global_attn_every_n_layers", "local_attention"]
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, names)}")
    types = attributes.layer_types(values, _LAYER_TYPES, source) or [
        "sliding_attention" if index % period else "full_attention" for index in range(count)
    ]
    ours = tuple(_LAYER_TYPES[name] for name in types)
    old = {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"}
    renamed = {name: values[theirs] for name, theirs in old.items() if theirs in values}
    flags = _flags(values, ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"], source)
    style = dataclasses.replace(
        IMPLIED["modernbert"]["head"],
        pooling=_pooling(values, _MODERN_POOLING, source),
        dense=_activation(values, "classifier_activation", source),
        dense_bias=flags.pop("classifier_bias"),
    )
    rotary = _read_rotary("modernbert", values | renamed, source)
    if "window" not in ours:
        rotary["local_rope_theta"] = 0.0
    return (
        rotary
        | flags
        | {
            "head": style,
            "layer_types": ours if "window" in ours else (),
            "window": reach // 2 + 1 if "window" in ours else None,
        }
    )


def _write_modernbert(config: EncoderConfig) -> Values:
    names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
    pooling = {ours: theirs for theirs, ours in _MODERN_POOLING.items()}
    types = config.layer_types or ("full",) * config.num_layers
    parameters = rope.written(config)["rope_parameters"]
    if "full_attention" not in parameters:
        parameters = {"full_attention": parameters, "sliding_attention": parameters}
    flags = ("attention_bias", "mlp_bias", "norm_bias")
    return {name: getattr(config, name) for name in flags} | {
        "rope_parameters": parameters,
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta or config.rope_theta,
        "layer_types": [names[each] for each in types],
        "local_attention": 2 * (config.window or 65) - 2,
        "classifier_pooling": pooling[config.head.pooling],
        "classifier_activation": _NAMES[config.head.dense],
        "classifier_bias": config.head.dense_bias,
        "attention_dropout": 0.0,
    }


def _read_eurobert(values: Values, source: object) -> Values:
    flags = _flags(values, ["attention_bias", "mlp_bias"], source)
    heads = values["num_attention_heads"]
    of_keys = values.get("num_key_value_heads", heads)
    if not is_size(of_keys) or heads % of_keys:
        raise ArtifactError(
            f"{source}: impossible: {attributes.shown(values, ['num_key_value_heads'])} (a divisor "
            f"of {heads} heads)"
        )
    style = IMPLIED["eurobert"]["head"]
    style = dataclasses.replace(style, pooling=_pooling(values, _EURO_POOLING, source))
    own = {"num_kv_heads": 0 if of_keys == heads else of_keys, "head": style}
    return _read_rotary("eurobert", values, source) | flags | own


def _write_eurobert(config: EncoderConfig) -> Values:
    pooling = {ours: theirs for theirs, ours in _EURO_POOLING.items()}
    return _write_rotary(config) | {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "num_key_value_heads": config.key_heads,
        "classifier_pooling": pooling[config.head.pooling],
    }


# Tables -------------------------------------------------------------------------------------------

_BERT = _Table(
    "Bert",
    "bert.",
    embeddings=(
        ("embeddings.word_embeddings", "embed/tokens"),
        ("embeddings.position_embeddings", "embed/positions"),
        ("embeddings.token_type_embeddings", "embed/types"),
    ),
    norms=(
        ("embeddings.LayerNorm", "embed/norm"),
        ("encoder.layer.{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        ("encoder.layer.{layer}.output.LayerNorm", "layers/mlp_norm"),
    ),
    linears=(
        ("encoder.layer.{layer}.attention.self.query", "layers/attention/q"),
        ("encoder.layer.{layer}.attention.self.key", "layers/attention/k"),
        ("encoder.layer.{layer}.attention.self.value", "layers/attention/v"),
        ("encoder.layer.{layer}.attention.output.dense", "layers/attention/o"),
        ("encoder.layer.{layer}.intermediate.dense", "layers/mlp/up"),
        ("encoder.layer.{layer}.output.dense", "layers/mlp/down"),
        ("embeddings_project", "project"),
        ("pooler.dense", "pooler"),
    ),
    sequence_head=(("classifier", "out"),),
    unused=("cls", "qa_outputs"),
    sizes={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position",
        "type_vocab_size": "type_vocab_size",
    },
    numbers={
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "initializer_std",
        "layer_norm_eps": "layer_norm_eps",
    },
    defaults={
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    },
)
_ROBERTA = dataclasses.replace(
    _BERT,
    title="Roberta",
    prefix="roberta.",
    sequence_head=(("classifier.dense", "dense"), ("classifier.out_proj", "out")),
    unused=("lm_head", "qa_outputs", "roberta.pooler"),  # its classifiers read no pooler
    defaults=_BERT.defaults | {"pad_token_id": 1},
    read=_read_offset,
    write=_write_offset,
)
_ELECTRA = dataclasses.replace(
    _BERT,
    title="Electra",
    prefix="electra.",
    sequence_head=_ROBERTA.sequence_head,
    unused=(
        "generator_predictions",
        "generator_lm_head",
        "discriminator_predictions",
        "qa_outputs",
    ),
    sizes={**_BERT.sizes, "embedding_size": "embedding_size"},
    defaults=_BERT.defaults | {"embedding_size": 128},
)
_ALBERT_LAYER = "encoder.albert_layer_groups.0.albert_layers.{layer}."
_ALBERT = dataclasses.replace(
    _BERT,
    title="Albert",
    prefix="albert.",
    norms=(
        ("embeddings.LayerNorm", "embed/norm"),
        (_ALBERT_LAYER + "attention.LayerNorm", "layers/attention_norm"),
        (_ALBERT_LAYER + "full_layer_layer_norm", "layers/mlp_norm"),
    ),
    linears=(
        (_ALBERT_LAYER + "attention.query", "layers/attention/q"),
        (_ALBERT_LAYER + "attention.key", "layers/attention/k"),
        (_ALBERT_LAYER + "attention.value", "layers/attention/v"),
        (_ALBERT_LAYER + "attention.dense", "layers/attention/o"),
        (_ALBERT_LAYER + "ffn", "layers/mlp/up"),
        (_ALBERT_LAYER + "ffn_output", "layers/mlp/down"),
        ("encoder.embedding_hidden_mapping_in", "project"),
        ("pooler", "pooler"),
    ),
    unused=("predictions", "sop_classifier", "qa_outputs"),
    sizes=_ELECTRA.sizes,
    defaults=_BERT.defaults
    | {"embedding_size": 128, "hidden_act": "gelu_new", "classifier_dropout_prob": 0.1}
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    head_dropout="classifier_dropout_prob",
    known=("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"),
    fixed={"num_hidden_groups": 1, "inner_group_num": 1},
)
_MPNET = dataclasses.replace(
    _BERT,
    title="MPNet",
    prefix="mpnet.",
    embeddings=(
        *_BERT.embeddings[:2],
        ("encoder.relative_attention_bias", "distances"),
    ),
    norms=(
        ("embeddings.LayerNorm", "embed/norm"),
        ("encoder.layer.{layer}.attention.LayerNorm", "layers/attention_norm"),
        ("encoder.layer.{layer}.output.LayerNorm", "layers/mlp_norm"),
    ),
    linears=(
        *(
            (f"encoder.layer.{{layer}}.attention.attn.{name}", f"layers/attention/{name}")
            for name in "qkvo"
        ),
        *_BERT.linears[4:6],
    ),
    sequence_head=_ROBERTA.sequence_head,
    unused=("lm_head", "qa_outputs", "mpnet.pooler"),
    sizes={name: ours for name, ours in _BERT.sizes.items() if name != "type_vocab_size"},
    head_dropout="hidden_dropout_prob",
    read=_read_mpnet,
    write=_write_offset,
    fixed={"relative_attention_num_buckets": 32},
)
_DEBERTA_FIXED: Values = {
    "relative_attention": True,
    "share_att_key": True,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
}
_DEBERTA = dataclasses.replace(
    _BERT,
    title="DebertaV2",
    prefix="deberta.",
    body="embeddings|encoder",
    embeddings=(
        _BERT.embeddings[0],
        _BERT.embeddings[2],
        ("encoder.rel_embeddings", "vectors"),
    ),
    norms=(*_BERT.norms, ("encoder.LayerNorm", "vectors_norm")),
    linears=(
        *(
            (f"encoder.layer.{{layer}}.attention.self.{name}_proj", f"layers/attention/{name[0]}")
            for name in ("query", "key", "value")
        ),
        *_BERT.linears[3:6],
    ),
    sequence_head=(("pooler.dense", "dense"), ("classifier", "out")),
    unused=(
        *("cls", "lm_predictions", "mask_predictions", "qa_outputs"),
        "deberta.embeddings.position_embeddings",
    ),
    sizes=_MPNET.sizes,
    defaults=_BERT.defaults
    | {"type_vocab_size": 0, "layer_norm_eps": 1e-7, "pooler_hidden_act": "gelu"}
    | {"max_relative_positions": -1}
    | {"relative_attention": False, "share_att_key": False, "position_biased_input": True}
    | {"norm_rel_ebd": "none"},
    head_dropout="cls_dropout",
    token_dropout="hidden_dropout_prob",
    known=(
        *("type_vocab_size", "pos_att_type", "position_buckets", "max_relative_positions"),
        *("pooler_hidden_act", "pooler_hidden_size", "embedding_size", "legacy"),
    ),
    read=_read_deberta,
    write=_write_deberta,
    fixed=_DEBERTA_FIXED | {"pooler_dropout": 0.0, "conv_kernel_size": 0},
)
_DISTILBERT = _Table(
    "DistilBert",
    "distilbert.",
    embeddings=_BERT.embeddings[:2],
    norms=(
        ("embeddings.LayerNorm", "embed/norm"),
        ("transformer.layer.{layer}.sa_layer_norm", "layers/attention_norm"),
        ("transformer.layer.{layer}.output_layer_norm", "layers/mlp_norm"),
    ),
    linears=(
        ("transformer.layer.{layer}.attention.q_lin", "layers/attention/q"),
        ("transformer.layer.{layer}.attention.k_lin", "layers/attention/k"),
        ("transformer.layer.{layer}.attention.v_lin", "layers/attention/v"),
        ("transformer.layer.{layer}.attention.out_lin", "layers/attention/o"),
        ("transformer.layer.{layer}.ffn.lin1", "layers/mlp/up"),
        ("transformer.layer.{layer}.ffn.lin2", "layers/mlp/down"),
    ),
    sequence_head=(("pre_classifier", "dense"), ("classifier", "out")),
    unused=("vocab_transform", "vocab_layer_norm", "vocab_projector", "qa_outputs"),
    sizes={
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "hidden_dim": "intermediate_size",
        "max_position_embeddings": "max_position",
    },
    numbers={
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_std",
    },
    activation="activation",
    head_dropout="seq_classif_dropout",
    token_dropout="dropout",
    defaults={
        "max_position_embeddings": 512,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "initializer_range": 0.02,
        "activation": "gelu",
    },
)
_ROTARY = ("head_dim", *sorted(rope.ATTRIBUTES))
_NOMIC_LAYER = "encoder.layers.{layer}."
_NOMIC = dataclasses.replace(
    _BERT,
    title="NomicBert",
    prefix="nomic_bert.",
    body="embeddings|emb_ln|encoder|pooler",
    embeddings=(_BERT.embeddings[0], _BERT.embeddings[2]),
    norms=(
        ("emb_ln", "embed/norm"),
        (_NOMIC_LAYER + "norm1", "layers/attention_norm"),
        (_NOMIC_LAYER + "norm2", "layers/mlp_norm"),
    ),
    linears=(
        *((_NOMIC_LAYER + "attn.Wqkv", f"layers/attention/{name}") for name in "qkv"),
        (_NOMIC_LAYER + "attn.out_proj", "layers/attention/o"),
        (_NOMIC_LAYER + "mlp.fc11", "layers/mlp/up"),
        (_NOMIC_LAYER + "mlp.fc12", "layers/mlp/gate"),
        (_NOMIC_LAYER + "mlp.fc2", "layers/mlp/down"),
        ("pooler.dense", "pooler"),
    ),
    defaults=_BERT.defaults
    | {"max_position_embeddings": 2048, "hidden_act": "silu"}
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    known=_ROTARY,
    read=functools.partial(_read_rotary, "nomic_bert"),
    write=lambda config: _write_rotary(config) | {"pad_token_id": 0},  # which may not be null
)
_MODERN_LAYER = "layers.{layer}."
_MODERNBERT = _Table(
    "ModernBert",
    "model.",
    body="embeddings|layers|final_norm",
    embeddings=(("embeddings.tok_embeddings", "embed/tokens"),),
    norms=(
        ("embeddings.norm", "embed/norm"),
        (_MODERN_LAYER + "attn_norm", "layers/attention_norm"),
        (_MODERN_LAYER + "mlp_norm", "layers/mlp_norm"),
        ("final_norm", "norm"),
    ),
    linears=(
        *((_MODERN_LAYER + "attn.Wqkv", f"layers/attention/{name}") for name in "qkv"),
        (_MODERN_LAYER + "attn.Wo", "layers/attention/o"),
        *((_MODERN_LAYER + "mlp.Wi", f"layers/mlp/{name}") for name in ("gate", "up")),
        (_MODERN_LAYER + "mlp.Wo", "layers/mlp/down"),
    ),
    sequence_head=(("head.dense", "dense"), ("head.norm", "norm"), ("classifier", "out")),
    token_head=(("head.dense", "dense"), ("head.norm", "norm"), ("classifier", "out")),
    unused=("head", "decoder", "qa_outputs"),
    sizes=_MPNET.sizes,
    numbers={"initializer_range": "initializer_std", "norm_eps": "layer_norm_eps"},
    activation="hidden_activation",
    defaults={
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "norm_eps": 1e-5,
        "hidden_activation": "gelu",
        "classifier_dropout": 0.0,
        "classifier_pooling": "cls",
        "classifier_activation": "gelu",
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False),
    },
    known=(
        *("attention_bias", "mlp_bias", "norm_bias", "classifier_bias", "classifier_pooling"),
        *("classifier_activation", "layer_types", "local_attention", "global_attn_every_n_layers"),
        *("global_rope_theta", "local_rope_theta", *sorted(rope.ATTRIBUTES)),
        # Of training, of another head, and of how it is computed.
        *(
            "initializer_cutoff_factor",
            "decoder_bias",
            "deterministic_flash_attn",
            "layer_norm_eps",
        ),
        *("sparse_prediction", "sparse_pred_ignore_index", "reference_compile", "cls_token_id"),
        "repad_logits_with_grad",
    ),
    read=_read_modernbert,
    write=_write_modernbert,
    fixed=dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), 0.0),
)
_EUROBERT = _Table(
    "EuroBert",
    "model.",
    body="embed_tokens|layers|norm",
    embeddings=(("embed_tokens", "embed/tokens"),),
    norms=(
        ("layers.{layer}.input_layernorm", "layers/attention_norm"),
        ("layers.{layer}.post_attention_layernorm", "layers/mlp_norm"),
        ("norm", "norm"),
    ),
    linears=(
        *(
            (f"layers.{{layer}}.self_attn.{name}_proj", f"layers/attention/{name}")
            for name in "qkvo"
        ),
        *(
            (f"layers.{{layer}}.mlp.{name}_proj", f"layers/mlp/{name}")
            for name in ("gate", "up", "down")
        ),
    ),
    sequence_head=(("dense", "dense"), ("classifier", "out")),
    unused=("lm_head",),
    sizes=_MODERNBERT.sizes,
    numbers={
        "initializer_range": "initializer_std",
        "rms_norm_eps": "layer_norm_eps",
        "attention_dropout": "attention_dropout",
    },
    head_dropout="",
    defaults={
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "classifier_pooling": "late",
        **dict.fromkeys(("attention_bias", "mlp_bias"), False),
    },
    known=(
        *("attention_bias", "mlp_bias", "num_key_value_heads", "classifier_pooling", *_ROTARY),
        *("auto_map", "clf_pooling", "mask_token", "mask_token_id", "bos_token", "eos_token"),
        "pad_token",
    ),
    read=_read_eurobert,
    write=_write_eurobert,
    fixed={"pretraining_tp": 1, "hidden_dropout": 0.0},
)

_TABLES: dict[str, _Table] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(_ROBERTA, title="XLMRoberta"),
    "camembert": dataclasses.replace(_ROBERTA, title="Camembert"),
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "albert": _ALBERT,
    "mpnet": _MPNET,
    "deberta-v2": _DEBERTA,
    "nomic_bert": _NOMIC,
    "modernbert": _MODERNBERT,
    "eurobert": _EUROBERT,
}


def _rows(config: EncoderConfig) -> list[TensorRow]:
    table = _TABLES[config.family]
    rows = [
        TensorRow(f"{table.prefix}{theirs}.weight", f"{ours}/embedding")
        for theirs, ours in table.embeddings
    ]
    for theirs, ours in table.norms:
        # A first layer without a norm has none in files either.
        first = int(ours == "layers/attention_norm" and not config.first_norm)
        rows += _norm(table.prefix + theirs, ours, first)
    for theirs, ours in table.linears:
        rows += _linear(table.prefix + theirs, ours)
    for head in config.heads:
        for theirs, ours in table.sequence_head if head.kind == "sequence" else table.token_head:
            make = _norm if ours == "norm" else _linear
            rows += make(theirs, f"heads/{head.name}/{ours}")
    return rows


def _norm(theirs: str, ours: str, first: int = 0) -> Iterator[TensorRow]:
    yield TensorRow(f"{theirs}.weight", f"{ours}/scale", first=first)
    yield TensorRow(f"{theirs}.bias", f"{ours}/bias", first=first)


def _linear(theirs: str, ours: str) -> Iterator[TensorRow]:
    yield TensorRow(f"{theirs}.weight", f"{ours}/kernel", transpose=True)
    yield TensorRow(f"{theirs}.bias", f"{ours}/bias")


# Configuration ------------------------------------------------------------------------------------

_FIXED = attributes.FIXED | {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "sinusoidal_pos_embds": False,
}

# Attributes of heads other than classifiers, and of training.
_HARMLESS = set(
    """
    _num_labels directionality gradient_checkpointing num_labels output_past pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type qa_dropout
    summary_activation summary_last_dropout summary_type summary_use_proj tie_weights_
    tie_word_embeddings
    """.split()
)
_DISTILBERT_EPS = 1e-12  # no attribute: it is written into the model


def _read_config(
    family: str, theirs: Mapping[str, Any], source: object, tensors: Collection[str]
) -> EncoderConfig:
    """Our dimensions from the content of a config.json; `tensors` tell whether there is a pooler.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    table = _TABLES[family]
    theirs = {name: value for name, value in theirs.items() if value is not None}
    known = table.sizes.keys() | table.numbers.keys() | attributes.HARMLESS | _HARMLESS
    known |= {table.activation, table.head_dropout, *table.known}
    fixed = {"model_type": family, **_FIXED, **table.fixed}
    attributes.refuse_unknown(theirs, known, fixed, source)
    values = {**table.defaults, **theirs}
    assumed = {name: values[name] for name in table.fixed if name in values}
    attributes.refuse_unknown(assumed, (), table.fixed, source)
    activation = _activation(values, table.activation, source)
    heads = attributes.heads(theirs, table.title, source)
    rates = [table.head_dropout] if table.head_dropout else []
    if table.token_dropout and any(head.kind == "token" for head in heads):
        rates = [table.token_dropout]
    for name in rates:
        values.setdefault(name, values.get("hidden_dropout_prob"))
    attributes.check_numbers(values, table.sizes, [*table.numbers, *rates], source)
    fields = {ours: values[name] for name, ours in (*table.sizes.items(), *table.numbers.items())}
    fields = {"embedding_size": fields["hidden_size"], **IMPLIED[family], **fields}
    if fields["hidden_size"] % fields["num_heads"] and "head_dim" not in values:
        raise ArtifactError(
            f"{source}: impossible: {fields['num_heads']} attention heads cannot share a hidden "
            f"size of {fields['hidden_size']}"
        )
    fields |= table.read(values, source)
    pooler = next((theirs for theirs, ours in table.linears if ours == "pooler"), None)
    with_pooler = fields["head"].pooler and (
        f"{table.prefix}{pooler}.weight" in tensors
        or any(head.kind == "sequence" for head in heads)
    )
    return EncoderConfig(
        **{
            "family": family,
            "activation": activation,
            "head_dropout": values[rates[0]] if rates else 0.0,
            "pooler": with_pooler,
            "heads": heads,
            **fields,
        }
    )


def _write_config(config: EncoderConfig, labels: Sequence[str]) -> dict[str, Any]:
    """The content of a config.json; raises InputError for what transformers has no model for.

    `labels` name the scores of the model's one head.
    """
    _check_writable(config)
    table = _TABLES[config.family]
    head = config.heads[0] if config.heads else None
    theirs = {
        "architectures": [table.title + "Model"],
        "model_type": config.family,
        **{name: getattr(config, ours) for name, ours in table.sizes.items()},
        **{name: getattr(config, ours) for name, ours in table.numbers.items()},
        table.activation: _NAMES[config.activation],
        **table.write(config),
    }
    if table.head_dropout:
        theirs.setdefault(table.head_dropout, config.head_dropout)
    if head:
        theirs |= attributes.written_head(table.title, head.kind, labels)
    return theirs


# Fields of ours that each family's `write` has attributes for.
_OFFSET_FIELDS = {"position_offset"}
_ROTARY_FIELDS = {"rope_theta", "rope_scaling", "head_dim"}
_WRITTEN: dict[str, set[str]] = {
    "roberta": _OFFSET_FIELDS,
    "xlm-roberta": _OFFSET_FIELDS,
    "camembert": _OFFSET_FIELDS,
    "deberta-v2": {"distance_vectors", "max_distance", "type_vocab_size", "head"},
    "nomic_bert": _ROTARY_FIELDS,
    "modernbert": {
        *("rope_theta", "rope_scaling", "local_rope_theta", "layer_types", "window", "head"),
        *("attention_bias", "mlp_bias", "norm_bias"),
    },
    "eurobert": _ROTARY_FIELDS | {"num_kv_heads", "attention_bias", "mlp_bias", "head"},
}
_ANYWHERE = {"family", "heads", "activation", "head_dropout", "prefix", "pooler"}


def _check_writable(config: EncoderConfig) -> None:
    table = _TABLES[config.family]
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }
    expected = defaults | {"embedding_size": config.hidden_size} | IMPLIED[config.family]
    if config.family == "distilbert":
        expected["layer_norm_eps"] = _DISTILBERT_EPS
    written = {*table.sizes.values(), *table.numbers.values()} | _ANYWHERE
    written |= _WRITTEN.get(config.family, set())
    found = [
        f"{name}={getattr(config, name)!r} (only {value!r})"
        for name, value in expected.items()
        if name not in written and getattr(config, name) != value
    ]
    sequence = any(head.kind == "sequence" for head in config.heads)
    if config.pooler and not config.head.pooler:
        found.append("a pooler")
    if sequence and config.head.pooler and not config.pooler:
        found.append("a sequence head without a pooler")
    if expected.get("position_offset") and not config.position_offset:
        found.append("position_offset=0")
    if found:
        raise InputError(f"transformers has no {table.title} model with {', '.join(found)}")


FAMILIES = {
    family: Family(
        rows=_rows,
        read_config=functools.partial(_read_config, family),
        write_config=_write_config,
        prefix=table.prefix,
        renamed=(
            (rf"^(?=({table.body})\.)", table.prefix),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
        # Buffers that old transformers saved.
        ignored=(r"(.*\.)?embeddings\.(position_ids|token_type_ids)",),
        unused=tuple(rf"{name}\..*" for name in table.unused),
    )
    for family, table in _TABLES.items()
}
