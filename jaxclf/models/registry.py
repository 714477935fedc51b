"""Models by their dimensions: definitions and pure functions, without a parameter allocated."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.errors import InputError
from jaxclf.core.suggest import nearest_names
from jaxclf.core.types import Array, Key, Params
from jaxclf.models import layers, quantization
from jaxclf.models.decoder import Decoder
from jaxclf.models.encoder import Encoder, EncoderConfig
from jaxclf.models.masks import Implementation
from jaxclf.models.quantization import Quantise
from jaxclf.models.t5 import T5, T5Config
from jaxclf.models.zoo import CONFIGS, ModelConfig


@dataclasses.dataclass(frozen=True)
class Model:
    """A module definition and pure functions over its parameter tree."""

    config: ModelConfig
    graphdef: nnx.GraphDef
    dtype: Any  # of matmuls
    abstract: Params  # shapes and dtypes
    init: Callable[[Key[Array, ""]], Params]

    @property
    def family(self) -> str:
        """What transformers calls the model's kind, such as `llama` or `bert`."""
        return self.config.family

    @property
    def is_encoder(self) -> bool:
        return isinstance(self.config, EncoderConfig)

    @property
    def has_heads(self) -> bool:
        """Whether it labels by scores of its heads; else it generates labels."""
        return self.is_encoder or bool(self.config.heads)

    @property
    def reads_apart(self) -> bool:
        """Whether there is an encoder, and a decoder of its own that writes the answer."""
        return isinstance(self.config, T5Config)

    def bind(self, params: Params) -> Any:
        """The Decoder, T5 or Encoder over these parameters; call it inside a traced function."""
        return nnx.merge(self.graphdef, params)


def has_heads(output: str, dimensions: ModelConfig) -> bool:
    """Whether such a model labels by heads where a config's `model.output` is `output`.

    Raises InputError where it cannot do as that says.
    """
    if isinstance(dimensions, EncoderConfig):
        if output == "generate":
            raise InputError(
                f"model.output is 'generate', and a model of kind {dimensions.family} writes no "
                "text. Set it to 'head' or 'auto', or choose a decoder"
            )
        return True
    if output == "generate" and dimensions.heads:
        raise InputError(
            "model.output is 'generate', and the checkpoint has heads in the place of what writes "
            "text. Set it to 'head' or 'auto', or choose the checkpoint that it was made from"
        )
    return output == "head" or (output == "auto" and bool(dimensions.heads))


def find(name: str) -> ModelConfig:
    """The dimensions behind a zoo name; raises InputError with the nearest names."""
    if name in CONFIGS:
        return CONFIGS[name]
    near = nearest_names(name, CONFIGS, 3) or list(CONFIGS)
    raise InputError(f"model.name {name!r} is not in the zoo; nearest: {', '.join(near)}")


def create(
    config: str | ModelConfig,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: int = 0,
    unroll: int = 1,
    quantise: Quantise = "none",
    attention: Implementation = "plain",
) -> Model:
    """Build a model from a zoo name or dimensions, without allocating any parameter.

    `quantise`: "none", or the kind that kernels of the layers, embedding and unembedding have.
    """
    if isinstance(config, str):
        config = find(config)

    def make(key):
        options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "unroll": unroll}
        options["attention"] = attention
        rngs = nnx.Rngs(params=key)
        if isinstance(config, EncoderConfig):
            return Encoder(config, **options, rngs=rngs)
        if isinstance(config, T5Config):
            return T5(config, **options, rngs=rngs)
        return Decoder(config, **options, rngs=rngs)

    def init(key):
        params = layers.pure_params(make(key))
        return params if quantise == "none" else quantization.quantised(params, quantise)

    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(jax.random.key(0))))
    return Model(config, graphdef, dtype, jax.eval_shape(init, key), init)
