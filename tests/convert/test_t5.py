"""T5 of transformers: files both ways, config.json, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.convert import hf_export, hf_import, t5
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models import registry
from tests.parity import helpers
from tests.tiny_t5 import CASES, FLAN, hf_t5, t5_tree

FLAN_BASE = {  # as released
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 768,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "num_layers": 12,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"prefix": "summarize: "}},
    "tie_word_embeddings": False,
    "transformers_version": "4.23.1",
    "use_cache": True,
    "vocab_size": 32128,
}
# The first T5, of a time with fewer attributes.
SMALL = {
    name: FLAN_BASE[name]
    for name in ("d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size", "model_type")
} | {"decoder_start_token_id": 0, "is_encoder_decoder": True}


def read(theirs, tensors=("shared.weight", "lm_head.weight")):
    return t5.read_config(theirs, "config.json", tensors)


@pytest.mark.parametrize("name", CASES)
def test_a_transformers_model_survives_the_round_trip(tmp_path, name):
    torch = pytest.importorskip("torch")
    import transformers

    config = CASES[name]
    model = hf_t5(config, seed=2)
    model.save_pretrained(tmp_path / "hf")
    hf_import.convert(tmp_path / "hf", tmp_path / "ours", progress=lambda line: None)
    assert model_dir.read_model(tmp_path / "ours" / "model.json") == (config, "float32")
    loaded = model_dir.load_params(tmp_path / "ours", registry.create(config).abstract)
    expected = t5_tree(helpers.hf_tensors(model), config)
    assert tree_store.describe(loaded) == tree_store.describe(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)

    hf_export.export(tmp_path / "ours", tmp_path / "back", progress=lambda line: None)
    files = [
        safetensors.numpy.load_file(tmp_path / folder / "model.safetensors")
        for folder in ("hf", "back")
    ]
    assert files[0].keys() == files[1].keys()
    for key, array in files[0].items():
        np.testing.assert_array_equal(array, files[1][key])
    again, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = {"input_ids": torch.arange(9)[None], "labels": torch.arange(7)[None]}
    assert torch.equal(again.eval()(**ids).logits, model(**ids).logits)


def test_released_configs_are_the_zoo_s():
    assert read(FLAN_BASE) == registry.CONFIGS["flan_t5_base"]
    first = read(SMALL, ("shared.weight",))
    assert first == dataclasses.replace(
        registry.CONFIGS["flan_t5_base"], gated=False, tie_embeddings=True, scale_outputs=True
    )
    assert read(SMALL) == first  # some files hold the copy, which is checked to be one


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_what_is_written_is_read_back(tied, scaled):
    config = dataclasses.replace(FLAN, tie_embeddings=tied, scale_outputs=scaled, dropout=0.25)
    tensors = ["shared.weight"] if tied else ["shared.weight", "lm_head.weight"]
    assert read(json.loads(json.dumps(t5.write_config(config))), tensors) == config


@pytest.mark.parametrize(
    "attribute",
    [
        {"feed_forward_proj": "gated-tanh"},
        {"dense_act_fn": "silu"},
        {"is_encoder_decoder": False},
        {"is_decoder": True},
        {"dense_act_fn": "relu"},
        {"some_new_switch": 1},
        {"quantization_config": {"bits": 4}},
    ],
)
def test_an_attribute_that_is_not_honoured_is_refused_by_name(attribute):
    with pytest.raises(InputError, match=next(iter(attribute))):
        read(FLAN_BASE | attribute)


@pytest.mark.parametrize(
    "change",
    [{"d_kv": None}, {"num_layers": "12"}, {"relative_attention_max_distance": 16}],
)
def test_missing_and_impossible_values_are_an_artifact_error(change):
    with pytest.raises(ArtifactError, match=next(iter(change))):
        read(FLAN_BASE | change)
