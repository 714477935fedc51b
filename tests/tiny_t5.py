"""Tiny T5s of unusual numbers, random ones of transformers, and their tensors as our tree."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.types import Params
from jaxclf.data.examples import Tokens
from jaxclf.models.t5 import T5Config
from tests.tiny import examples

FLAN = T5Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=40,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
    head_dim=12,
    buckets=10,
    max_distance=23,
    rms_norm_eps=1e-3,
    start_id=5,
)
CASES = {
    "flan": FLAN,
    "first": dataclasses.replace(
        FLAN,
        gated=False,
        tie_embeddings=True,
        scale_outputs=True,
        buckets=32,
        max_distance=128,
        num_decoder_layers=3,
        rms_norm_eps=1e-6,
        start_id=0,
    ),
}


def t5_examples(sizes: Iterable[tuple[int, int, int]], seed: int) -> list[Tokens]:
    """Random examples of these (prefix, text, label) lengths, read apart."""
    found = examples(sizes, seed, FLAN.vocab_size)
    return [dataclasses.replace(each, apart=True) for each in found]


def t5_tree(tensors: Mapping[str, np.ndarray], config: T5Config) -> Params:
    """A T5 checkpoint's tensors (or their gradients, by the same names) as our tree."""

    def side(name: str, count: int):
        def stack(part: str) -> np.ndarray:
            found = [tensors[f"{name}.block.{i}.layer.{part}.weight"] for i in range(count)]
            return np.stack([each.T for each in found])

        last = 2 if name == "decoder" else 1
        ffn = {"up": "wi", "down": "wo"}
        if config.gated:
            ffn = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
        tree = {
            "attention_norm": {"scale": stack("0.layer_norm")},
            "attention": {key: {"kernel": stack(f"0.SelfAttention.{key}")} for key in "qkvo"},
            "mlp_norm": {"scale": stack(f"{last}.layer_norm")},
            "mlp": {
                ours: {"kernel": stack(f"{last}.DenseReluDense.{theirs}")}
                for ours, theirs in ffn.items()
            },
        }
        if name == "decoder":
            tree["cross_norm"] = {"scale": stack("1.layer_norm")}
            tree["cross"] = {key: {"kernel": stack(f"1.EncDecAttention.{key}")} for key in "qkvo"}
        return tree

    def distances(name: str):
        bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {"embedding": tensors[bias]}

    tree = {
        "embed": {"embedding": tensors["shared.weight"]},
        "layers": {
            "encoder": side("encoder", config.num_layers),
            "decoder": side("decoder", config.num_decoder_layers),
        },
        "distances": {name: distances(name) for name in ("encoder", "decoder")},
        "encoder_norm": {"scale": tensors["encoder.final_layer_norm.weight"]},
        "decoder_norm": {"scale": tensors["decoder.final_layer_norm.weight"]},
    }
    if not config.tie_embeddings:
        tree["unembed"] = {"kernel": tensors["lm_head.weight"].T}
    return jax.tree.map(jnp.asarray, tree)


def hf_t5(config: T5Config, seed: int):
    """A random `T5ForConditionalGeneration` of these dimensions, in float32.

    Weights are large enough that logits, attention patterns and gradients are of order 1.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # faster for models this small
    hf_config = transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        d_kv=config.head_dim,
        d_ff=config.intermediate_size,
        num_layers=config.num_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        layer_norm_epsilon=config.rms_norm_eps,
        feed_forward_proj="gated-gelu" if config.gated else "relu",
        tie_word_embeddings=config.scale_outputs,
        decoder_start_token_id=config.start_id,
        eos_token_id=None,
    )
    model = transformers.T5ForConditionalGeneration(hf_config).eval()
    if not config.tie_embeddings:  # transformers 5 unties them where a file holds both
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=generator)
                continue
            std = weight.shape[1] ** -0.5
            if name.endswith("Attention.q.weight"):
                std *= config.head_dim**-0.25
            if "shared" in name:
                std = 0.4  # larger ones make a tied model repeat what it reads
            if "bias" in name:
                std = 1.0
            weight.normal_(0.0, std, generator=generator)
    return model
