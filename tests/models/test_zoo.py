"""The zoo: parameters as their makers count them, and configs that transformers reads."""

import math

import jax
import pytest

from jaxclf.convert import decoders
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig

# Billions, as published on the model cards (Gemma 3: the text decoder's).
PUBLISHED = {
    "llama3_8b": 8.03,
    "qwen2.5_0.5b": 0.494,
    "qwen2.5_7b": 7.616,
    "qwen2.5_72b": 72.706,
    "qwen3_0.6b": 0.596,
    "qwen3_32b": 32.762,
    "gemma2_2b": 2.614,
    "gemma2_27b": 27.227,
    "gemma3_270m": 0.268,
    "gemma3_1b": 1.0,
    "mistral_7b_v0.1": 7.242,
    "mistral_7b_v0.3": 7.248,
    "phi4": 14.66,
    "smollm2_135m": 0.1345,
    "smollm3_3b": 3.075,
    "olmo2_7b": 7.299,
    "olmo2_32b": 32.234,
    "granite3_8b": 8.171,
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, billions):
    leaves = jax.tree.leaves(registry.create(name).abstract)
    assert sum(math.prod(leaf.shape) for leaf in leaves) / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize(
    "name", [name for name, each in registry.CONFIGS.items() if isinstance(each, DecoderConfig)]
)
def test_every_decoder_is_written_for_transformers_and_read_back(name):
    config = registry.CONFIGS[name]
    assert decoders.read_config(decoders.write_config(config), "x") == config
