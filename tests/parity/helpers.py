"""Tiny random transformers models, and their tensors as our parameter tree.

The mapping is written out here a second time, apart from the `conversion` package, so that an
error there cannot hide itself.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.types import Params
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.encoder import EncoderConfig

TOLERANCE = 1e-5


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


def hf_llama(config: DecoderConfig, seed: int):
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


_BERT_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "o": "attention.out_lin",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "attention_norm": "sa_layer_norm",
    "mlp_norm": "output_layer_norm",
}


def encoder_tree(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> Params:
    """An encoder checkpoint's tensors (or their gradients, by the same names) as our tree."""
    base = f"{config.family}." if config.heads else ""
    distilbert = config.family == "distilbert"
    layer_names = _DISTILBERT_LAYER if distilbert else _BERT_LAYER
    layer_prefix = base + ("transformer.layer" if distilbert else "encoder.layer")

    def linear(name: str):
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    def norm(name: str):
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def stack(make, ours: str):
        names = [f"{layer_prefix}.{i}.{layer_names[ours]}" for i in range(config.num_layers)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *map(make, names))

    tree: Params = {
        "embed": {
            "tokens": {"embedding": tensors[f"{base}embeddings.word_embeddings.weight"]},
            "positions": {"embedding": tensors[f"{base}embeddings.position_embeddings.weight"]},
            "norm": norm(f"{base}embeddings.LayerNorm"),
        },
        "layers": {
            "attention": {name: stack(linear, name) for name in "qkvo"},
            "attention_norm": stack(norm, "attention_norm"),
            "mlp": {name: stack(linear, name) for name in ("up", "down")},
            "mlp_norm": stack(norm, "mlp_norm"),
        },
    }
    if not distilbert:
        types = tensors[f"{base}embeddings.token_type_embeddings.weight"]
        tree["embed"]["types"] = {"embedding": types}
    if config.embedding_size != config.hidden_size:
        tree["project"] = linear(f"{base}embeddings_project")
    if config.pooler:
        tree["pooler"] = linear(f"{base}pooler.dense")
    for head in config.heads:
        out, dense = "classifier", None
        if head.kind == "sequence" and config.family in ("roberta", "electra"):
            out, dense = "classifier.out_proj", "classifier.dense"
        elif head.kind == "sequence" and distilbert:
            dense = "pre_classifier"
        modules = {"out": linear(out)} | ({"dense": linear(dense)} if dense else {})
        tree.setdefault("heads", {})[head.name] = modules
    return jax.tree.map(jnp.asarray, tree)


_CLASSES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "electra": "Electra"}
_ENDINGS = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}


def hf_encoder(config: EncoderConfig, seed: int, ending: str | None = None):
    """A random transformers model of these dimensions, in float32, with the config's one head.

    `ending` of the class's name chooses another model, such as "ForMaskedLM". Weights are large
    enough that logits, attention patterns and gradients are of order 1.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    title = _CLASSES[config.family]
    activation = {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation)
    if config.family == "distilbert":
        values = {
            "dim": config.hidden_size,
            "hidden_dim": config.intermediate_size,
            "n_layers": config.num_layers,
            "n_heads": config.num_heads,
            "activation": activation,
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "seq_classif_dropout": config.head_dropout,
        }
    else:
        values = {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "hidden_act": activation,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "classifier_dropout": config.head_dropout,
            "type_vocab_size": config.type_vocab_size,
            "layer_norm_eps": config.layer_norm_eps,
        }
    if config.family == "electra":
        values["embedding_size"] = config.embedding_size
    if config.heads:
        values["num_labels"] = config.heads[0].size
    hf_config = getattr(transformers, f"{title}Config")(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position + config.position_offset,
        initializer_range=config.initializer_std,
        pad_token_id=max(0, config.position_offset - 1),
        **values,
    )
    if ending is None:
        ending = _ENDINGS[config.heads[0].kind] if config.heads else "Model"
    # BERT and RoBERTa alone ask; only BERT's pooler is ours.
    bare = ending == "Model" and config.family in ("bert", "roberta")
    options = {"add_pooling_layer": config.pooler} if bare else {}
    model = getattr(transformers, title + ending)(hf_config, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.uniform_(0.5, 1.5, generator=generator)
            elif weight.ndim == 1:
                weight.normal_(0.0, 0.3, generator=generator)
            else:
                gain = 2.0 if "classifier" in name else 1.0  # few scores: some must be of order 1
                weight.normal_(0.0, gain * weight.shape[1] ** -0.5, generator=generator)
    return model


def assert_close(actual, expected, what: str):
    """Within TOLERANCE, absolute, and relative where values exceed 1."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    worst = np.max(np.abs(actual - expected) / np.maximum(1.0, np.abs(expected)))
    assert worst <= TOLERANCE, f"{what}: off by {worst:.2e}"
