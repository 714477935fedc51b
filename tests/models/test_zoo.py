"""The zoo: parameters as their makers count them, and configs that transformers reads."""

import dataclasses
import math

import jax
import pytest

from jaxclf.convert import decoders, encoders
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.encoder import EncoderConfig

# As the hub counts them in checkpoints (Gemma 3: the text decoder's): no size can be another.
PUBLISHED = {
    "llama3_8b": 8_030_261_248,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_70b": 70_553_706_496,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "smollm2_1.7b": 1_711_376_384,
    "smollm2_360m": 361_821_120,
    "smollm2_135m": 134_515_008,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_7b": 7_615_616_512,
    "qwen2.5_72b": 72_706_203_648,
    "mistral_7b_v0.1": 7_241_732_096,
    "mistral_7b_v0.3": 7_248_023_552,
    "mixtral_8x7b": 46_702_792_704,
    "phi4": 14_659_507_200,
    "gemma2_2b": 2_614_341_888,
    "gemma2_27b": 27_227_128_320,
    "qwen3_0.6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "qwen3_32b": 32_762_123_264,
    "olmo2_7b": 7_298_617_344,
    "gemma3_1b": 999_885_952,
    "gemma3_270m": 268_098_176,
    "smollm3_3b": 3_075_098_624,
    "granite3_8b": 8_170_848_256,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "olmo2_32b": 32_234_279_936,
}


# Millions, as their cards and papers round them (backbone and embeddings of DeBERTa-v3; Llama 4
# without the 872 that see images).
ROUNDED = {
    "xlm_roberta_base": 278,
    "xlm_roberta_large": 560,
    "deberta_v3_small": 44 + 98,
    "deberta_v3_base": 86 + 98,
    "deberta_v3_large": 304 + 131,
    "modernbert_base": 149,
    "modernbert_large": 395,
    "eurobert_210m": 210,
    "eurobert_610m": 610,
    "mt5_small": 300,
    "mt5_base": 580,
    "mt5_xxl": 13_000,
    "gpt_oss_20b": 20_910,
    "gpt_oss_120b": 116_830,
    "llama4_scout": 108_642 - 872,
}


@pytest.mark.parametrize(("name", "millions"), ROUNDED.items())
def test_parameters_are_about_as_many_as_cards_say(name, millions):
    leaves = jax.tree.leaves(registry.create(name).abstract)
    assert sum(math.prod(leaf.shape) for leaf in leaves) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, count):
    leaves = jax.tree.leaves(registry.create(name).abstract)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_heads_share_key_heads_evenly():
    """Also in the models from scratch, which are nobody's but ours."""
    decoders_ = {n: each for n, each in registry.CONFIGS.items() if isinstance(each, DecoderConfig)}
    assert len(decoders_) > 30
    assert [n for n, each in decoders_.items() if each.num_heads % each.num_kv_heads] == []


# What a count of parameters does not see, from the config.json that each was published with: heads,
# key heads, positions, the base of rotary angles and the epsilon of norms.
READ = {
    "llama2_7b": (32, 32, 4096, 1e4, 1e-5),
    "llama2_13b": (40, 40, 4096, 1e4, 1e-5),
    "llama2_70b": (64, 8, 4096, 1e4, 1e-5),
    "llama3_8b": (32, 8, 8192, 5e5, 1e-5),
    "llama3_70b": (64, 8, 8192, 5e5, 1e-5),
    "llama3.1_8b": (32, 8, 131_072, 5e5, 1e-5),
    "llama3.1_70b": (64, 8, 131_072, 5e5, 1e-5),
    "llama3.2_1b": (32, 8, 131_072, 5e5, 1e-5),
    "llama3.2_3b": (24, 8, 131_072, 5e5, 1e-5),
    "qwen2.5_0.5b": (14, 2, 32_768, 1e6, 1e-6),
    "qwen2.5_7b": (28, 4, 131_072, 1e6, 1e-6),
    "qwen2.5_72b": (64, 8, 131_072, 1e6, 1e-5),
    "qwen3_0.6b": (16, 8, 40_960, 1e6, 1e-6),
    "qwen3_8b": (32, 8, 40_960, 1e6, 1e-6),
    "qwen3_32b": (64, 8, 40_960, 1e6, 1e-6),
    "qwen3_30b_a3b": (32, 4, 40_960, 1e6, 1e-6),
    "gemma2_2b": (8, 4, 8192, 1e4, 1e-6),
    "gemma2_27b": (32, 16, 8192, 1e4, 1e-6),
    "gemma3_1b": (4, 1, 32_768, 1e6, 1e-6),
    "mistral_7b_v0.1": (32, 8, 32_768, 1e4, 1e-5),
    "mistral_7b_v0.3": (32, 8, 32_768, 1e6, 1e-5),
    "mixtral_8x7b": (32, 8, 32_768, 1e6, 1e-5),
    "phi4": (40, 10, 16_384, 250_000, 1e-5),
    "smollm2_135m": (9, 3, 8192, 1e5, 1e-5),
    "smollm2_1.7b": (32, 32, 8192, 130_000, 1e-5),
    "smollm3_3b": (16, 4, 65_536, 5e6, 1e-6),
    "olmo2_7b": (32, 32, 4096, 5e5, 1e-6),
    "granite3_8b": (32, 8, 131_072, 1e7, 1e-5),
}
HEADS = {
    "bert_base": 12,
    "bert_large": 16,
    "roberta_base": 12,
    "roberta_large": 16,
    "distilbert": 12,
    "electra_small": 4,
    "electra_base": 12,
    "xlm_roberta_base": 12,
    "xlm_roberta_large": 16,
    "albert_base": 12,
    "mpnet_base": 12,
    "deberta_v3_xsmall": 6,
    "deberta_v3_small": 12,
    "deberta_v3_base": 12,
    "deberta_v3_large": 16,
}


@pytest.mark.parametrize(("name", "read"), READ.items())
def test_a_decoder_has_the_heads_and_positions_that_it_was_published_with(name, read):
    each = registry.CONFIGS[name]
    found = each.num_heads, each.num_kv_heads, each.max_position, each.rope_theta
    assert (*found, each.rms_norm_eps) == read


@pytest.mark.parametrize(("name", "heads"), HEADS.items())
def test_an_encoder_has_the_heads_and_positions_that_it_was_published_with(name, heads):
    each = registry.CONFIGS[name]
    assert (each.num_heads, each.max_position) == (heads, 512)


@pytest.mark.parametrize(
    "name", [name for name, each in registry.CONFIGS.items() if isinstance(each, DecoderConfig)]
)
def test_every_decoder_is_written_for_transformers_and_read_back(name):
    config = registry.CONFIGS[name]
    assert decoders.read_config(decoders.write_config(config), "x") == config


@pytest.mark.parametrize(
    "name", [name for name, each in registry.CONFIGS.items() if isinstance(each, EncoderConfig)]
)
def test_every_encoder_is_written_for_transformers_and_read_back(name):
    config = registry.CONFIGS[name]
    family = encoders.FAMILIES[config.family]
    found = family.read_config(family.write_config(config, ()), "x", ())
    assert dataclasses.replace(found, head_dropout=config.head_dropout) == config
