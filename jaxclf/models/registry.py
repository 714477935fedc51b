"""Model names and the dimensions of their released checkpoints."""

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
from jaxclf.models.decoder import Llama, LlamaConfig
from jaxclf.models.encoder import Encoder, EncoderConfig
from jaxclf.models.layers import RopeScaling
from jaxclf.models.masks import Implementation
from jaxclf.models.quantization import Quantise
from jaxclf.models.t5 import T5, T5Config

_LLAMA31 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
)
_LLAMA32 = dataclasses.replace(_LLAMA31, factor=32.0)


def _llama2(hidden, ffn, num_layers, heads, kv_heads):
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        max_position=4096,
    )


def _llama3(hidden, ffn, num_layers, heads, head_dim=128, **rest):
    return LlamaConfig(
        **{
            "vocab_size": 128_256,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_layers": num_layers,
            "num_heads": heads,
            "num_kv_heads": 8,
            "head_dim": head_dim,
            "rope_theta": 500_000.0,
            "max_position": 8192,
            **rest,
        }
    )


def _small(hidden, ffn, num_layers, heads, kv_heads, vocab_size=2048):
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_position=16_384,
        tie_embeddings=True,
        initializer_std=0.04,  # nearer to 1/sqrt(hidden) of these sizes than the 0.02 of large ones
    )


def _bert(hidden, ffn, num_layers, heads, **rest):
    return EncoderConfig(
        **{
            "family": "bert",
            "vocab_size": 30_522,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_layers": num_layers,
            "num_heads": heads,
            "embedding_size": hidden,
            **rest,
        }
    )


def _roberta(hidden, ffn, num_layers, heads, vocab_size=50_265, **rest):
    return _bert(
        hidden,
        ffn,
        num_layers,
        heads,
        family="roberta",
        vocab_size=vocab_size,
        position_offset=2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **rest,
    )


def _flan_t5(hidden, ffn, num_layers, heads, vocab_size=32_128, head_dim=64):
    return T5Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=num_layers,
        num_decoder_layers=num_layers,
        num_heads=heads,
        head_dim=head_dim,
    )


ModelConfig = LlamaConfig | EncoderConfig | T5Config

CONFIGS: dict[str, ModelConfig] = {
    "llama2_7b": _llama2(4096, 11_008, 32, 32, 32),
    "llama2_13b": _llama2(5120, 13_824, 40, 40, 40),
    "llama2_70b": _llama2(8192, 28_672, 80, 64, 8),
    "llama3_8b": _llama3(4096, 14_336, 32, 32),
    "llama3_70b": _llama3(8192, 28_672, 80, 64),
    "llama3.1_8b": _llama3(4096, 14_336, 32, 32, rope_scaling=_LLAMA31, max_position=131_072),
    "llama3.1_70b": _llama3(8192, 28_672, 80, 64, rope_scaling=_LLAMA31, max_position=131_072),
    "llama3.2_1b": _llama3(
        2048,
        8192,
        16,
        32,
        head_dim=64,
        rope_scaling=_LLAMA32,
        max_position=131_072,
        tie_embeddings=True,
    ),
    "llama3.2_3b": _llama3(
        3072, 8192, 28, 24, rope_scaling=_LLAMA32, max_position=131_072, tie_embeddings=True
    ),
    "flan_t5_small": _flan_t5(512, 1024, 8, 6),
    "flan_t5_base": _flan_t5(768, 2048, 12, 12),
    "flan_t5_large": _flan_t5(1024, 2816, 24, 16),
    "flan_t5_xl": _flan_t5(2048, 5120, 24, 32),
    "flan_t5_xxl": _flan_t5(4096, 10_240, 24, 64),
    "bert_base": _bert(768, 3072, 12, 12),
    "bert_large": _bert(1024, 4096, 24, 16),
    "minilm_l6": _bert(384, 1536, 6, 12),
    "roberta_base": _roberta(768, 3072, 12, 12),
    "roberta_large": _roberta(1024, 4096, 24, 16),
    "distilbert": _bert(768, 3072, 6, 12, family="distilbert", type_vocab_size=0, head_dropout=0.2),
    "electra_small": _bert(256, 1024, 12, 4, family="electra", embedding_size=128),
    "electra_base": _bert(768, 3072, 12, 12, family="electra"),
    # From scratch, for a laptop and for tests; the vocabulary follows the tokenizer.
    "llama_30m": _small(512, 1408, 8, 8, 4),
    "llama_2m": _small(192, 512, 4, 8, 8),
    "llama_tiny": _small(128, 344, 4, 4, 2),
    "llama_smoke": _small(32, 64, 2, 4, 2),
    "t5_smoke": _flan_t5(32, 64, 2, 4, vocab_size=2048, head_dim=8),
    "encoder_smoke": _roberta(32, 64, 2, 4, vocab_size=2048, max_position=4096),
}


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
        """`llama`, `t5`, or which encoder it is."""
        return family_of(self.config)

    @property
    def is_encoder(self) -> bool:
        return isinstance(self.config, EncoderConfig)

    @property
    def reads_apart(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder of its own writes the answer."""
        return isinstance(self.config, T5Config)

    def bind(self, params: Params) -> Any:
        """The Llama, T5 or Encoder over these parameters; call it inside a traced function."""
        return nnx.merge(self.graphdef, params)


def family_of(config: ModelConfig) -> str:
    """`llama`, `t5`, or the family of an encoder."""
    if isinstance(config, EncoderConfig):
        return config.family
    return "t5" if isinstance(config, T5Config) else "llama"


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
    remat: bool = False,
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
        return Llama(config, **options, rngs=rngs)

    def init(key):
        params = layers.pure_params(make(key))
        return params if quantise == "none" else quantization.quantised(params, quantise)

    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(jax.random.key(0))))
    return Model(config, graphdef, dtype, jax.eval_shape(init, key), init)
