"""Names of models and the dimensions of their released checkpoints.

A checkpoint brings its own; a name is for a random start, and for plans of what is not here.
"""

import dataclasses
import math

from jaxclf.models.decoder_config import DecoderConfig
from jaxclf.models.encoder import FAMILIES, EncoderConfig
from jaxclf.models.layers import RopeScaling
from jaxclf.models.t5 import T5Config

_LLAMA31 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
)
_LLAMA32 = dataclasses.replace(_LLAMA31, factor=32.0)


def _llama2(hidden, ffn, num_layers, heads, kv_heads):
    return DecoderConfig(
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
    return DecoderConfig(
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
    return DecoderConfig(
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


def _bert(hidden, ffn, num_layers, heads, family="bert", **rest):
    return EncoderConfig(
        **{
            "family": family,
            "vocab_size": 30_522,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_layers": num_layers,
            "num_heads": heads,
            "embedding_size": hidden,
            **FAMILIES[family],
            **rest,
        }
    )


def _roberta(*sizes, family="roberta", vocab_size=50_265, **rest):
    return _bert(*sizes, family=family, vocab_size=vocab_size, layer_norm_eps=1e-5, **rest)


def _modernbert(*sizes):
    num_layers = sizes[2]
    types = ("full", "window", "window")
    return _bert(
        *sizes,
        family="modernbert",
        vocab_size=50_368,
        max_position=8192,
        layer_norm_eps=1e-5,
        layer_types=(types * num_layers)[:num_layers],
        window=65,
        rope_theta=160_000.0,
        local_rope_theta=10_000.0,
        **_NO_DROPOUT,
    )


def _deberta(*sizes, vocab_size=128_100):
    return _bert(
        *sizes,
        family="deberta-v2",
        vocab_size=vocab_size,
        layer_norm_eps=1e-7,
        distance_vectors=256,
        max_distance=512,
    )


def _albert(*sizes, **rest):
    options = {"vocab_size": 30_000, "embedding_size": 128, "activation": "gelu_tanh"}
    return _bert(*sizes, family="albert", **(options | _NO_DROPOUT | rest))


def _eurobert(*sizes, kv_heads):
    return _bert(
        *sizes,
        family="eurobert",
        vocab_size=128_256,
        max_position=8192,
        layer_norm_eps=1e-5,
        activation="silu",
        rope_theta=250_000.0,
        num_kv_heads=kv_heads,
        **_NO_DROPOUT,
    )


_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0}


def _flan_t5(hidden, ffn, num_layers, heads, vocab_size=32_128, head_dim=64, **rest):
    return T5Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=num_layers,
        num_decoder_layers=num_layers,
        num_heads=heads,
        head_dim=head_dim,
        **rest,
    )


def _mt5(*sizes):
    return _flan_t5(*sizes, vocab_size=250_112, family="mt5")


def _decoder(family, vocab_size, hidden, ffn, num_layers, heads, kv_heads, **rest):
    head_dim = rest.pop("head_dim", hidden // heads)
    return DecoderConfig(
        vocab_size,
        hidden,
        ffn,
        num_layers,
        heads,
        kv_heads,
        head_dim,
        family=family,
        **rest,
    )


def _qwen2(*sizes, vocab_size=152_064, eps=1e-6, max_position=131_072, **rest):
    return _decoder(
        "qwen2",
        vocab_size,
        *sizes,
        rope_theta=1e6,
        rms_norm_eps=eps,
        max_position=max_position,
        qkv_bias=True,
        **rest,
    )


def _qwen3(*sizes, tied=False):
    return _decoder(
        "qwen3",
        151_936,
        *sizes,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position=40_960,
        tie_embeddings=tied,
        query_norm="head",
    )


def _qwen3_moe(*sizes, size):
    experts = {"experts": 128, "experts_per_token": 8, "expert_size": size}
    return dataclasses.replace(_qwen3(*sizes), family="qwen3_moe", **experts)


def _gpt_oss(num_layers, experts):
    return _decoder(
        "gpt_oss",
        *(201_088, 2880, 2880, num_layers, 64, 8),
        head_dim=64,
        rope_theta=150_000.0,
        rope_scaling=_GPT_OSS_ROPE,
        max_position=131_072,
        layer_types=("window", "full") * (num_layers // 2),
        window=128,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        sinks=True,
        swiglu_limit=7.0,
        swiglu_alpha=1.702,
        experts=experts,
        experts_per_token=4,
        expert_size=2880,
    )


_GPT_OSS_ROPE = RopeScaling(
    32.0,
    original_max_position=4096,
    kind="yarn",
    truncate=False,
    attention_factor=0.1 * math.log(32) + 1,
)


def _gemma(family, vocab_size, hidden, *sizes, scalar=256, period=2, **rest):
    num_layers = sizes[1]
    types = ("window",) * (period - 1) + ("full",)
    return _decoder(
        family,
        vocab_size,
        hidden,
        *sizes,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        layer_types=(types * num_layers)[:num_layers],
        attention_scale=scalar**-0.5,
        embed_scale=hidden**0.5,
        norms="both",
        norm_offset=True,
        activation="gelu_tanh",
        **rest,
    )


def _gemma2(*sizes, head_dim=256, scalar=256):
    return _gemma(
        "gemma2",
        256_000,
        *sizes,
        head_dim=head_dim,
        scalar=scalar,
        window=4096,
        attention_cap=50.0,
        logit_cap=30.0,
        max_position=8192,
    )


def _gemma3(*sizes, window=1024, scalar=256, head_dim=256, small=False):
    long = None if small else RopeScaling(8.0, kind="linear")
    return _gemma(
        "gemma3_text",
        262_144 if small else 262_208,
        *sizes,
        period=6,
        head_dim=head_dim,
        scalar=scalar,
        window=window,
        rope_theta=1e6,
        rope_scaling=long,
        local_rope_theta=1e4,
        query_norm="head",
        max_position=32_768 if small else 131_072,
    )


def _olmo2(*sizes):
    return _decoder(
        "olmo2",
        100_352,
        *sizes,
        rope_theta=5e5,
        rms_norm_eps=1e-6,
        max_position=4096,
        query_norm="whole",
        norms="after",
    )


def _granite(*sizes, theta, attention, logits):
    return _decoder(
        "granite",
        49_155,
        *sizes,
        rope_theta=theta,
        max_position=131_072,
        tie_embeddings=True,
        embed_scale=12.0,
        residual_scale=0.22,
        attention_scale=attention,
        logit_scale=1 / logits,
    )


def _smollm2(*sizes, theta=100_000.0):
    return _decoder(
        "llama", 49_152, *sizes, rope_theta=theta, max_position=8192, tie_embeddings=True
    )


# Sizes: hidden, feed-forward, layers, heads, key heads.
_QWEN = {
    "qwen2.5_0.5b": _qwen2(
        896, 4864, 24, 14, 2, vocab_size=151_936, max_position=32_768, tie_embeddings=True
    ),
    "qwen2.5_1.5b": _qwen2(1536, 8960, 28, 12, 2, vocab_size=151_936, tie_embeddings=True),
    "qwen2.5_3b": _qwen2(
        2048, 11_008, 36, 16, 2, vocab_size=151_936, max_position=32_768, tie_embeddings=True
    ),
    "qwen2.5_7b": _qwen2(3584, 18_944, 28, 28, 4),
    "qwen2.5_14b": _qwen2(5120, 13_824, 48, 40, 8, eps=1e-5),
    "qwen2.5_32b": _qwen2(5120, 27_648, 64, 40, 8, eps=1e-5),
    "qwen2.5_72b": _qwen2(8192, 29_568, 80, 64, 8, eps=1e-5),
    "qwen3_0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3_1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3_4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3_8b": _qwen3(4096, 12_288, 36, 32, 8),
    "qwen3_14b": _qwen3(5120, 17_408, 40, 40, 8),
    "qwen3_32b": _qwen3(5120, 25_600, 64, 64, 8),
}
_GEMMA = {
    "gemma2_2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma2_9b": _gemma2(3584, 14_336, 42, 16, 8),
    "gemma2_27b": _gemma2(4608, 36_864, 46, 32, 16, head_dim=128, scalar=144),
    "gemma3_270m": _gemma3(640, 2048, 18, 4, 1, window=512, small=True),
    "gemma3_1b": _gemma3(1152, 6912, 26, 4, 1, window=512, small=True),
    "gemma3_4b": _gemma3(2560, 10_240, 34, 8, 4),
    "gemma3_12b": _gemma3(3840, 15_360, 48, 16, 8),
    "gemma3_27b": _gemma3(5376, 21_504, 62, 32, 16, head_dim=128, scalar=168),
}
_OTHERS = {
    "mistral_7b_v0.1": _decoder(
        "mistral",
        *(32_000, 4096, 14_336, 32, 32, 8),
        max_position=32_768,
        layer_types=("window",) * 32,
        window=4096,
    ),
    "mistral_7b_v0.3": _decoder(
        "mistral", 32_768, 4096, 14_336, 32, 32, 8, rope_theta=1e6, max_position=32_768
    ),
    "phi4": _decoder(
        "phi3", 100_352, 5120, 17_920, 40, 40, 10, rope_theta=250_000.0, max_position=16_384
    ),
    "mixtral_8x7b": _decoder(
        "mixtral",
        *(32_000, 4096, 14_336, 32, 32, 8),
        rope_theta=1e6,
        max_position=32_768,
        experts=8,
        experts_per_token=2,
        expert_size=14_336,
    ),
    "qwen3_30b_a3b": _qwen3_moe(2048, 6144, 48, 32, 4, size=768),
    "qwen3_235b_a22b": _qwen3_moe(4096, 12_288, 94, 64, 4, size=1536),
    "llama4_scout": _decoder(
        "llama4_text",
        *(202_048, 5120, 16_384, 48, 40, 8),
        head_dim=128,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(16.0, 1.0, 1.0, original_max_position=8192),
        max_position=10_485_760,
        rotary_layers=(True, True, True, False) * 12,
        rotary_interleaved=True,
        temperature_floor=8192.0,
        temperature_scale=0.1,
        layer_types=("chunk", "chunk", "chunk", "full") * 12,
        chunk=8192,
        query_norm="l2",
        experts=16,
        experts_per_token=1,
        expert_size=8192,
        routing="sigmoid",
        weighted_inputs=True,
        shared_expert_size=8192,
    ),
    "gpt_oss_20b": _gpt_oss(24, 32),
    "gpt_oss_120b": _gpt_oss(36, 128),
    "smollm2_135m": _smollm2(576, 1536, 30, 9, 3),
    "smollm2_360m": _smollm2(960, 2560, 32, 15, 5),
    "smollm2_1.7b": _smollm2(2048, 8192, 24, 32, 32, theta=130_000.0),
    "smollm3_3b": _decoder(
        "smollm3",
        *(128_256, 2048, 11_008, 36, 16, 4),
        rope_theta=5e6,
        rms_norm_eps=1e-6,
        max_position=65_536,
        tie_embeddings=True,
        rotary_layers=(True, True, True, False) * 9,
    ),
    "olmo2_1b": _olmo2(2048, 8192, 16, 16, 16),
    "olmo2_7b": _olmo2(4096, 11_008, 32, 32, 32),
    "olmo2_13b": _olmo2(5120, 13_824, 40, 40, 40),
    "olmo2_32b": _olmo2(5120, 27_648, 64, 40, 8),
    "granite3_2b": _granite(2048, 8192, 40, 32, 8, theta=5e6, attention=1 / 64, logits=8),
    "granite3_8b": _granite(4096, 12_800, 40, 32, 8, theta=1e7, attention=1 / 128, logits=16),
}


_ENCODERS = {
    "xlm_roberta_base": _roberta(768, 3072, 12, 12, family="xlm-roberta", vocab_size=250_002),
    "xlm_roberta_large": _roberta(1024, 4096, 24, 16, family="xlm-roberta", vocab_size=250_002),
    "camembert_base": _roberta(768, 3072, 12, 12, family="camembert", vocab_size=32_005),
    "albert_base": _albert(768, 3072, 12, 12, head_dropout=0.1),
    "albert_large": _albert(1024, 4096, 24, 16, head_dropout=0.1),
    "mpnet_base": _bert(768, 3072, 12, 12, family="mpnet", vocab_size=30_527, layer_norm_eps=1e-5),
    "deberta_v3_xsmall": _deberta(384, 1536, 12, 6),
    "deberta_v3_small": _deberta(768, 3072, 6, 12),
    "deberta_v3_base": _deberta(768, 3072, 12, 12),
    "deberta_v3_large": _deberta(1024, 4096, 24, 16),
    "mdeberta_v3_base": _deberta(768, 3072, 12, 12, vocab_size=251_000),
    "modernbert_base": _modernbert(768, 1152, 22, 12),
    "modernbert_large": _modernbert(1024, 2624, 28, 16),
    "eurobert_210m": _eurobert(768, 3072, 12, 12, kv_heads=0),
    "eurobert_610m": _eurobert(1152, 4096, 26, 18, kv_heads=6),
}


ModelConfig = DecoderConfig | EncoderConfig | T5Config

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
    "mt5_small": _mt5(512, 1024, 8, 6),
    "mt5_base": _mt5(768, 2048, 12, 12),
    "mt5_large": _mt5(1024, 2816, 24, 16),
    "mt5_xl": _mt5(2048, 5120, 24, 32),
    "mt5_xxl": _mt5(4096, 10_240, 24, 64),
    "bert_base": _bert(768, 3072, 12, 12),
    "bert_large": _bert(1024, 4096, 24, 16),
    "minilm_l6": _bert(384, 1536, 6, 12),
    "roberta_base": _roberta(768, 3072, 12, 12),
    "roberta_large": _roberta(1024, 4096, 24, 16),
    "distilbert": _bert(768, 3072, 6, 12, family="distilbert", head_dropout=0.2),
    "electra_small": _bert(256, 1024, 12, 4, family="electra", embedding_size=128),
    "electra_base": _bert(768, 3072, 12, 12, family="electra"),
    **_ENCODERS,
    **_QWEN,
    **_GEMMA,
    **_OTHERS,
    # From scratch, for a laptop and for tests; the vocabulary follows the tokenizer.
    "llama_30m": _small(512, 1408, 8, 8, 4),
    "llama_2m": _small(192, 512, 4, 8, 8),
    "llama_tiny": _small(128, 344, 4, 4, 2),
    "llama_smoke": _small(32, 64, 2, 4, 2),
    "t5_smoke": _flan_t5(32, 64, 2, 4, vocab_size=2048, head_dim=8),
    "encoder_smoke": _roberta(32, 64, 2, 4, vocab_size=2048, max_position=4096),
}
