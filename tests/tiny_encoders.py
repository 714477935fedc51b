"""Tiny encoders with unusual values everywhere, so that an ignored field fails."""

import dataclasses

import numpy as np

from jaxclf.models.encoder import FAMILIES, EncoderConfig
from jaxclf.models.heads import HeadConfig

_BERT = EncoderConfig(
    family="bert",
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=3,
    embedding_size=24,
    max_position=20,
    layer_norm_eps=3e-3,
    dropout=0.15,
    attention_dropout=0.25,
    head_dropout=0.35,
    initializer_std=0.03,
    head=FAMILIES["bert"]["head"],
)


def _like_bert(family: str, **changes) -> EncoderConfig:
    return dataclasses.replace(_BERT, family=family, **FAMILIES[family] | changes)


ENCODERS = {
    "bert": _BERT,
    "roberta": _like_bert("roberta", position_offset=4, type_vocab_size=2, activation="gelu_tanh"),
    "distilbert": _like_bert("distilbert", layer_norm_eps=1e-12, activation="relu"),
    "electra": _like_bert("electra", embedding_size=16, activation="silu"),
}
HEADS = {
    "sequence": HeadConfig("sequence", "sequence", 5),
    "token": HeadConfig("token", "token", 7),
    "regression": HeadConfig("regression", "sequence", 1),
}


def with_heads(family: str, *names: str) -> EncoderConfig:
    """The encoder with these heads; BERT without any has its pooler, as in transformers."""
    found = ENCODERS[family].with_heads(tuple(HEADS[name] for name in names))
    return found if names else dataclasses.replace(found, pooler=family == "bert")


def inputs(lengths: tuple[int, ...] = (16, 11, 5, 2), seed: int = 0):
    """Random tokens, positions, segment ids and types, padded on the right with id 3."""
    random = np.random.default_rng(seed)
    width = max(lengths)
    segment_ids = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    tokens = random.integers(4, _BERT.vocab_size, segment_ids.shape).astype(np.int32)
    positions = np.arange(width, dtype=np.int32) * segment_ids
    types = random.integers(0, 2, segment_ids.shape).astype(np.int32) * segment_ids
    return np.where(segment_ids, tokens, 3), positions, segment_ids, types
