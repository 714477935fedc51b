"""A tiny model, random weights for it without compiling an initialiser, and random examples."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.types import Params
from jaxclf.data.batching import ANSWER, Batch
from jaxclf.data.examples import Tokens
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.layers import RopeScaling
from jaxclf.models.registry import Model
from jaxclf.training import losses

CONFIG = DecoderConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_scaling=RopeScaling(5.0, 1.5, 6.0, original_max_position=16),
)


# Every attribute of a decoder that changes what is seen or how it is weighed, in one model.
ATTRIBUTES: dict[str, Any] = {
    "num_layers": 4,
    "layer_types": ("window", "full", "chunk", "window"),
    "window": 4,
    "chunk": 5,
    "rotary_layers": (True, True, False, True),
    "local_rope_theta": 99.0,
    "query_norm": "head",
    "attention_scale": 0.3,
    "attention_cap": 2.0,
    "sinks": True,
    "norms": "both",
    "norm_offset": True,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "logit_cap": 3.0,
    "logit_scale": 0.5,
    "residual_scale": 0.7,
    "swiglu_limit": 0.6,
    "swiglu_alpha": 1.3,
}

# Experts, with biases and the clamped gate.
EXPERTS: dict[str, Any] = {
    "experts": 4,
    "experts_per_token": 2,
    "expert_size": 8,
    "mlp_bias": True,
    "swiglu_limit": 0.9,
    "swiglu_alpha": 1.3,
}

# What Llama 4 has: layers with experts and without, temperature where nothing rotates.
LLAMA4: dict[str, Any] = {
    "num_layers": 5,
    "layer_types": ("chunk", "chunk", "full", "chunk", "chunk"),
    "chunk": 5,
    "rotary_layers": (True, True, False, True, True),
    "rotary_interleaved": True,
    "temperature_floor": 3.0,
    "temperature_scale": 0.4,
    "query_norm": "l2",
    "experts": 4,
    "experts_per_token": 2,
    "expert_size": 8,
    "routing": "sigmoid",
    "weighted_inputs": True,
    "shared_expert_size": 8,
    "expert_layers": (False, True, False, True, False),
}


def random_params(model: Model, seed: int = 0) -> Params:
    """Weights large enough that attention is far from uniform and logits are of order 1."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "scale":
            values = random.uniform(0.5, 1.5, leaf.shape)
        else:
            deviation = leaf.shape[-2] ** -0.5 if path[-1].key == "kernel" else 1.0
            values = random.normal(0, deviation, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.abstract)


def examples(
    sizes: Iterable[tuple[int, int, int]], seed: int = 0, vocab_size: int = CONFIG.vocab_size
) -> list[Tokens]:
    """Random examples of these (prefix, text, label) lengths; their ids count from "0"."""
    random = np.random.default_rng(seed)

    def ids(count):
        return random.integers(0, vocab_size, count).astype(np.int32)

    return [
        Tokens(str(index), ids(prefix), ids(text), ids(label), cut=0)
        for index, (prefix, text, label) in enumerate(sizes)
    ]


def summed_loss(module, batch: Batch) -> losses.Sums:
    """Loss, right ones and count of a batch's label tokens, all summed."""
    return losses.GENERATION.sums(module, batch, {ANSWER: jnp.ones(())})


def shapes(function: Callable, *arguments) -> Iterator[tuple[int, ...]]:
    """The shape of every array that tracing `function` computes, nested programs included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.shape for variable in equation.outvars)
            inner = jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"),
            )
            for leaf in inner:
                leaf = getattr(leaf, "jaxpr", leaf)
                if hasattr(leaf, "eqns"):
                    yield from walk(leaf)

    return walk(jax.make_jaxpr(function)(*arguments).jaxpr)


def sharing(documents: list[Tokens], lengths: Iterable[int], seed: int = 9) -> list[Tokens]:
    """The examples with prefixes of these lengths, which they take in turn."""
    random = np.random.default_rng(seed)
    prefixes = [random.integers(0, CONFIG.vocab_size, count).astype(np.int32) for count in lengths]
    return [
        dataclasses.replace(each, prefix=prefixes[index % len(prefixes)])
        for index, each in enumerate(documents)
    ]
