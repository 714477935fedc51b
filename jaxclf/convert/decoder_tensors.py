"""Which tensors of transformers' causal models ours are, by the row of each family."""

import dataclasses
from collections.abc import Iterator

from jaxclf.convert.decoder_families import VARIANTS, Experts, Variant
from jaxclf.convert.mapping import TensorRow
from jaxclf.models.decoder_config import DecoderConfig

_LAYER = "model.layers.{layer}."


def rows(config: DecoderConfig, in_files: bool = True) -> list[TensorRow]:
    """The table for a model of these dimensions; several rows of one name are parts of a tensor.

    in_files: by the names that tensors have there; else by those of transformers' parameters.
    """
    order = config.order
    layers = [
        dataclasses.replace(
            row,
            ours=row.ours.replace("layers/", f"layers/{stack}/" if stack else "layers/", 1),
            numbers=tuple(index for index, own in enumerate(order) if own == stack),
        )
        for stack in dict.fromkeys(order or ("",))
        for row in _layer_rows(VARIANTS[config.family], stack != "dense", in_files)
    ]
    return [
        TensorRow("model.embed_tokens.weight", "embed/embedding"),
        *layers,
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


def _layer_rows(variant: Variant, has_experts: bool, in_files: bool) -> Iterator[TensorRow]:
    """Those of a layer; without experts its feed-forward lies where they would."""
    attention, experts = _LAYER + "self_attn.", variant.experts
    fused = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}

    def linear(place: str, ours: str, name: str) -> Iterator[TensorRow]:
        theirs = place + (fused.get(name, name) if variant.fused else name) + "_proj."
        path = f"layers/{ours}/{name}/"
        yield TensorRow(theirs + "weight", path + "kernel", transpose=True)
        yield TensorRow(theirs + "bias", path + "bias")

    for theirs, ours in variant.norms:
        yield TensorRow(f"{_LAYER}{theirs}.weight", f"layers/{ours}/scale")
    for name in "qkvo":
        yield from linear(attention, "attention", name)
    for name in "qk":
        theirs = f"{attention}{name}_norm.weight"
        yield TensorRow(theirs, f"layers/attention/{name}_norm/scale")
    yield TensorRow(f"{attention}sinks", "layers/attention/sinks")
    place, ours = f"{_LAYER}{experts.place if experts else 'mlp'}.", "mlp"
    if experts and has_experts:
        yield from _expert_rows(experts, in_files)
        if not experts.shared:
            return
        place, ours = f"{place}{experts.shared}.", "mlp/shared"
    for name in ("gate", "up", "down"):
        yield from linear(place, ours, name)


def _expert_rows(experts: Experts, in_files: bool) -> Iterator[TensorRow]:
    place = f"{_LAYER}{experts.place if in_files else experts.module}."
    router = f"{place}{experts.router}."
    yield TensorRow(f"{router}weight", "layers/mlp/router/weight", transpose=True)
    yield TensorRow(f"{router}bias", "layers/mlp/router/bias")
    if experts.fused or not in_files:  # [E D 2F]; else each expert has tensors of its own
        name = f"{place}experts.gate_up_proj"
        turns = 2 if experts.fused == "interleaved" else 1
        for ours in ("gate", "up"):
            path = f"layers/mlp/{ours}/"
            yield TensorRow(name, f"{path}kernel", axis=2, interleaved=turns)
            yield TensorRow(f"{name}_bias", f"{path}bias", axis=1, interleaved=turns)
        yield TensorRow(f"{place}experts.down_proj", "layers/mlp/down/kernel")
        yield TensorRow(f"{place}experts.down_proj_bias", "layers/mlp/down/bias")
        return
    for theirs, ours in zip(experts.names, ("gate", "up", "down"), strict=True):
        name = f"{place}experts.{{expert}}.{theirs}.weight"
        yield TensorRow(name, f"layers/mlp/{ours}/kernel", transpose=True)


# Buffers that old transformers saved; we compute them from the configuration.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

# Copies that some files of tied models hold: name → the tensor they must equal.
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
