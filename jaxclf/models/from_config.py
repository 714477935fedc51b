"""The model that a run's config asks for: its types, dropout, kernels and way to attend."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxclf.models import registry
from jaxclf.models.masks import BY_BACKEND, Implementation
from jaxclf.models.registry import Model, ModelConfig


def create_model(config: ConfigDict, dimensions: ModelConfig) -> Model:
    """The model in the config's dtypes, quantised and with the prefix that it asks for.

    `auto` computes in float32 on CPU, else in bfloat16.
    """
    dimensions = dataclasses.replace(dimensions, prefix=config.model.num_virtual_tokens)
    if (rate := config.model.dropout) >= 0:
        names = ("dropout", "attention_dropout", "head_dropout")
        present = {field.name for field in dataclasses.fields(dimensions)}
        dimensions = dataclasses.replace(dimensions, **{n: rate for n in names if n in present})
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return registry.create(
        dimensions,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.gradient_checkpointing and config.model.checkpoint_layers,
        unroll=config.model.unroll,
        quantise=config.model.quantize,
        attention=implementation(config),
    )


def implementation(config: ConfigDict) -> Implementation:
    """How attention is computed: as the config says, or by the backend.

    GPUs before Ampere, and those that are not NVIDIA's, attend plainly: cuDNN has no form for them.
    """
    name, backend = config.model.attention, jax.default_backend()
    if name != "auto":
        return name
    capability = getattr(jax.devices()[0], "compute_capability", "")
    if backend == "gpu" and not re.match(r"([89]|\d\d+)\.", str(capability)):
        return "plain"
    return BY_BACKEND.get(backend, "plain")
