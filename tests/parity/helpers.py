"""Tiny random transformers models, and their tensors as our parameter tree.

The mapping is written out here a second time, apart from the `conversion` package, so that an
error there cannot hide itself.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.models.llama import LlamaConfig
from jaxclf.shapes import Params


def llama_tree(tensors: Mapping[str, np.ndarray], layers: int) -> Params:
    """A Llama checkpoint's tensors (or their gradients, by the same names) as our tree."""

    def stack(name: str) -> np.ndarray:
        return np.stack([tensors[f"model.layers.{i}.{name}.weight"].T for i in range(layers)])

    tree = {
        "embed": {"embedding": tensors["model.embed_tokens.weight"]},
        "layers": {
            "attention_norm": {"scale": stack("input_layernorm")},
            "attention": {name: {"kernel": stack(f"self_attn.{name}_proj")} for name in "qkvo"},
            "mlp_norm": {"scale": stack("post_attention_layernorm")},
            "mlp": {name: {"kernel": stack(f"mlp.{name}_proj")} for name in ("gate", "up", "down")},
        },
        "norm": {"scale": tensors["model.norm.weight"]},
    }
    if "lm_head.weight" in tensors:
        tree["unembed"] = {"kernel": tensors["lm_head.weight"].T}
    return jax.tree.map(jnp.asarray, tree)


def hf_llama(config: LlamaConfig, seed: int):
    """A random `LlamaForCausalLM` of these dimensions, in float32.

    Weights are large enough that logits, attention patterns and gradients are of order 1.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # faster for models this small
    scaling = config.rope_scaling
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    hf_config = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(hf_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    return model


def hf_tensors(model, gradients: bool = False) -> dict[str, np.ndarray]:
    """The model's parameters, or their gradients, by name."""
    return {
        name: (weight.grad if gradients else weight.detach()).numpy().copy()
        for name, weight in model.named_parameters()
    }
