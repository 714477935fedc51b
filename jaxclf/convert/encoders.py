"""BERT, RoBERTa, DistilBERT and ELECTRA: tensors and configuration of transformers' models.

A model has no head or one: that of …ForSequenceClassification or …ForTokenClassification. It is
called "sequence" or "token" when it is read, and may have any name when it is written.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxclf.convert import attributes
from jaxclf.convert.mapping import Family, TensorRow
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.encoder import EncoderConfig, EncoderFamily
from jaxclf.models.heads import HeadConfig, HeadKind

# Tensors ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Table:
    """Everything in which one family's files differ from another's.

    `embeddings`, `norms`, `linears`: modules by name, theirs → ours; of the last two each has a
    weight and a bias. `sequence_head`: its linear layers likewise. `unused`: modules of other
    heads. `sizes`, `numbers`: attributes and our fields, with transformers' `defaults`.
    """

    title: str
    embeddings: dict[str, str]
    norms: dict[str, str]
    linears: dict[str, str]
    sequence_head: dict[str, str]
    unused: tuple[str, ...]
    sizes: dict[str, str]
    numbers: dict[str, str]
    activation: str
    head_dropout: str
    defaults: dict[str, Any]


_BERT = _Table(
    "Bert",
    embeddings={
        "embeddings.word_embeddings": "embed/tokens",
        "embeddings.position_embeddings": "embed/positions",
        "embeddings.token_type_embeddings": "embed/types",
    },
    norms={
        "embeddings.LayerNorm": "embed/norm",
        "encoder.layer.{layer}.attention.output.LayerNorm": "layers/attention_norm",
        "encoder.layer.{layer}.output.LayerNorm": "layers/mlp_norm",
    },
    linears={
        "encoder.layer.{layer}.attention.self.query": "layers/attention/q",
        "encoder.layer.{layer}.attention.self.key": "layers/attention/k",
        "encoder.layer.{layer}.attention.self.value": "layers/attention/v",
        "encoder.layer.{layer}.attention.output.dense": "layers/attention/o",
        "encoder.layer.{layer}.intermediate.dense": "layers/mlp/up",
        "encoder.layer.{layer}.output.dense": "layers/mlp/down",
        "embeddings_project": "project",
        "pooler.dense": "pooler",
    },
    sequence_head={"classifier": "out"},
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
    activation="hidden_act",
    head_dropout="classifier_dropout",  # if absent, the model's
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
    sequence_head={"classifier.dense": "dense", "classifier.out_proj": "out"},
    unused=("lm_head", "qa_outputs", "roberta.pooler"),  # its classifiers read no pooler
    defaults=_BERT.defaults | {"pad_token_id": 1},
)
_ELECTRA = dataclasses.replace(
    _ROBERTA,
    title="Electra",
    unused=(
        "generator_predictions",
        "generator_lm_head",
        "discriminator_predictions",
        "qa_outputs",
    ),
    sizes=_BERT.sizes | {"embedding_size": "embedding_size"},
    defaults=_BERT.defaults | {"embedding_size": 128},
)
_DISTILBERT = _Table(
    "DistilBert",
    embeddings={
        "embeddings.word_embeddings": "embed/tokens",
        "embeddings.position_embeddings": "embed/positions",
    },
    norms={
        "embeddings.LayerNorm": "embed/norm",
        "transformer.layer.{layer}.sa_layer_norm": "layers/attention_norm",
        "transformer.layer.{layer}.output_layer_norm": "layers/mlp_norm",
    },
    linears={
        "transformer.layer.{layer}.attention.q_lin": "layers/attention/q",
        "transformer.layer.{layer}.attention.k_lin": "layers/attention/k",
        "transformer.layer.{layer}.attention.v_lin": "layers/attention/v",
        "transformer.layer.{layer}.attention.out_lin": "layers/attention/o",
        "transformer.layer.{layer}.ffn.lin1": "layers/mlp/up",
        "transformer.layer.{layer}.ffn.lin2": "layers/mlp/down",
    },
    sequence_head={"pre_classifier": "dense", "classifier": "out"},
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
    defaults={
        "max_position_embeddings": 512,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "initializer_range": 0.02,
        "activation": "gelu",
    },
)

_TABLES: dict[EncoderFamily, _Table] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "electra": _ELECTRA,
    "distilbert": _DISTILBERT,
}


def _rows(config: EncoderConfig) -> list[TensorRow]:
    table, prefix = _TABLES[config.family], f"{config.family}."
    rows = [
        TensorRow(f"{prefix}{theirs}.weight", f"{ours}/embedding")
        for theirs, ours in table.embeddings.items()
    ]
    for theirs, ours in table.norms.items():
        rows += [
            TensorRow(f"{prefix}{theirs}.weight", f"{ours}/scale"),
            TensorRow(f"{prefix}{theirs}.bias", f"{ours}/bias"),
        ]
    for theirs, ours in table.linears.items():
        rows += _linear(prefix + theirs, ours)
    for head in config.heads:
        modules = table.sequence_head if head.kind == "sequence" else {"classifier": "out"}
        for theirs, ours in modules.items():
            rows += _linear(theirs, f"heads/{head.name}/{ours}")
    return rows


def _linear(theirs: str, ours: str) -> Iterator[TensorRow]:
    yield TensorRow(f"{theirs}.weight", f"{ours}/kernel", transpose=True)
    yield TensorRow(f"{theirs}.bias", f"{ours}/bias")


# Configuration ------------------------------------------------------------------------------------

_ARCHITECTURES: dict[str, HeadKind] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

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
    family: EncoderFamily, theirs: Mapping[str, Any], source: object, tensors: Collection[str]
) -> EncoderConfig:
    """Our dimensions from the content of a config.json; `tensors` tell whether BERT has a pooler.

    Raises InputError naming every attribute that we do not honour, ArtifactError for a missing
    or impossible value.
    """
    table = _TABLES[family]
    theirs = {name: value for name, value in theirs.items() if value is not None}
    known = table.sizes.keys() | table.numbers.keys() | attributes.HARMLESS | _HARMLESS
    fixed = {"model_type": family, **_FIXED}
    attributes.refuse_unknown(theirs, known | {table.activation, table.head_dropout}, fixed, source)
    values = {**table.defaults, **theirs}
    activation = str(values[table.activation])
    if activation not in ACTIVATIONS:
        known_ones = f"(only {', '.join(ACTIVATIONS)})"
        attributes.refuse([f"{table.activation}={activation!r} {known_ones}"], source)
    heads = _read_heads(table, theirs, source)
    head_dropout = _head_dropout_name(table, heads)
    values.setdefault(head_dropout, values.get("hidden_dropout_prob"))
    attributes.check_numbers(values, table.sizes, [*table.numbers, head_dropout], source)
    fields = {ours: values[name] for name, ours in (table.sizes | table.numbers).items()}
    if fields["hidden_size"] % fields["num_heads"]:
        raise ArtifactError(
            f"{source}: impossible: {fields['num_heads']} attention heads cannot share a hidden "
            f"size of {fields['hidden_size']}"
        )
    if family == "roberta":
        fields |= _read_positions(values, source)
    if family == "distilbert":
        fields |= {"type_vocab_size": 0, "layer_norm_eps": _DISTILBERT_EPS}
    with_pooler = family == "bert" and (
        "bert.pooler.dense.weight" in tensors or any(head.kind == "sequence" for head in heads)
    )
    return EncoderConfig(
        **{
            "family": family,
            "embedding_size": fields["hidden_size"],
            "activation": ACTIVATIONS[activation],
            "head_dropout": values[head_dropout],
            "pooler": with_pooler,
            "heads": heads,
            **fields,
        }
    )


def _read_heads(table: _Table, theirs: Mapping[str, Any], source: object) -> tuple[HeadConfig, ...]:
    architectures = theirs.get("architectures", ())
    if not isinstance(architectures, list | tuple):
        raise ArtifactError(f"{source}: architectures is no list: {architectures!r}")
    for ending, kind in _ARCHITECTURES.items():
        if table.title + ending in architectures:
            return (HeadConfig(kind, kind, len(attributes.labels(theirs, source))),)
    return ()


def _head_dropout_name(table: _Table, heads: Sequence[HeadConfig]) -> str:
    """DistilBERT's token head has no dropout of its own but that of the model."""
    of_tokens = any(head.kind == "token" for head in heads)
    return "dropout" if table.title == "DistilBert" and of_tokens else table.head_dropout


def _read_positions(values: Mapping[str, Any], source: object) -> dict[str, int]:
    """RoBERTa counts positions from the one after its padding token's id."""
    padding, rows = values["pad_token_id"], values["max_position_embeddings"]
    if not isinstance(padding, int) or not 0 <= padding < rows - 1:
        raise ArtifactError(
            f"{source}: missing or impossible: pad_token_id={padding!r}, which must leave some of "
            f"the {rows} rows of max_position_embeddings"
        )
    return {"position_offset": padding + 1, "max_position": rows - padding - 1}


def _write_config(config: EncoderConfig, labels: Sequence[str]) -> dict[str, Any]:
    """The content of a config.json; raises InputError for what transformers has no model for.

    `labels` name the scores of the model's one head.
    """
    _check_writable(config)
    table = _TABLES[config.family]
    head = config.heads[0] if config.heads else None
    endings = {kind: ending for ending, kind in _ARCHITECTURES.items()}
    names = {our_name: name for name, our_name in reversed(ACTIVATIONS.items())}
    theirs = {
        "architectures": [table.title + (endings[head.kind] if head else "Model")],
        "model_type": config.family,
        **{name: getattr(config, ours) for name, ours in (table.sizes | table.numbers).items()},
        table.activation: names[config.activation],
        table.head_dropout: config.head_dropout,
    }
    if config.family == "roberta":
        theirs["max_position_embeddings"] += config.position_offset
        theirs["pad_token_id"] = config.position_offset - 1
    if head:
        theirs["id2label"] = {str(index): label for index, label in enumerate(labels)}
        theirs["label2id"] = {label: index for index, label in enumerate(labels)}
    return theirs


def _check_writable(config: EncoderConfig) -> None:
    distilbert, roberta = config.family == "distilbert", config.family == "roberta"
    eps = config.layer_norm_eps
    defects = {
        "a sequence head without a pooler": config.family == "bert"
        and not config.pooler
        and any(head.kind == "sequence" for head in config.heads),
        "a pooler": config.pooler and config.family != "bert",
        f"layer_norm_eps={eps} (only {_DISTILBERT_EPS})": distilbert and eps != _DISTILBERT_EPS,
        "token types": distilbert and config.type_vocab_size > 0,
        f"position_offset={config.position_offset}": roberta != (config.position_offset > 0),
        f"embedding_size={config.embedding_size} beside hidden_size={config.hidden_size}": (
            config.family != "electra" and config.embedding_size != config.hidden_size
        ),
    }
    if found := [name for name, is_there in defects.items() if is_there]:
        title = _TABLES[config.family].title
        raise InputError(f"transformers has no {title} model with {', '.join(found)}")


FAMILIES = {
    family: Family(
        rows=_rows,
        read_config=functools.partial(_read_config, family),
        write_config=_write_config,
        prefix=f"{family}.",
        renamed=(
            (r"^(?=(embeddings|embeddings_project|encoder|pooler|transformer)\.)", f"{family}."),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
        # Buffers that old transformers saved.
        ignored=(r"(.*\.)?embeddings\.(position_ids|token_type_ids)",),
        unused=tuple(rf"{name}\..*" for name in table.unused),
    )
    for family, table in _TABLES.items()
}
