"""Greedy decoding, id for id, against transformers' `generate(do_sample=False)`."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxclf.data import batching
from jaxclf.data.examples import Tokens
from jaxclf.decoding import decode
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.layers import RopeScaling
from tests.parity import helpers
from tests.tiny import examples

NEW = 20
GROUPED = DecoderConfig(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    rope_theta=777.0,
    rms_norm_eps=1e-3,
    max_position=128,
)
CASES = {
    "grouped_scaled": dataclasses.replace(
        GROUPED, rope_scaling=RopeScaling(5.0, 1.5, 6.0, original_max_position=16)
    ),
    "multi_query_tied": dataclasses.replace(GROUPED, num_kv_heads=1, tie_embeddings=True),
}


def random_prompts() -> list[Tokens]:
    return examples([(0, length, 0) for length in (1, 9, 30, 4)], 5, GROUPED.vocab_size)


def hf_greedy(hf, prompts, eos_id: int | None) -> np.ndarray:
    """New ids `[B, NEW]` from left-padded prompts, filled with `eos_id` after the end."""
    torch = pytest.importorskip("torch")
    width = max(len(prompt.text) for prompt in prompts)
    ids, mask = (np.zeros((len(prompts), width), np.int64) for _ in range(2))
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt.text) :] = prompt.text
        mask[index, width - len(prompt.text) :] = 1
    output = hf.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    ).numpy()[:, width:]
    return np.pad(output, ((0, 0), (0, NEW - output.shape[1])), constant_values=eos_id or 0)


def an_end_some_rows_reach(ids: np.ndarray) -> int:
    """A token that ends most rows early, but not at once and not all."""
    seen = {int(token): [np.flatnonzero(row == token) for row in ids] for token in ids.ravel()}
    for token, places in seen.items():
        ends = [int(place[0]) for place in places if len(place)]
        if 0 < len(ends) < len(ids) and 0 < min(ends) < NEW - 1:
            return token
    raise AssertionError("choose another seed: no token ends only some rows")


@pytest.mark.parametrize("name", CASES)
def test_mixed_lengths_equal_transformers(name):
    pytest.importorskip("torch")
    config = CASES[name]
    hf = helpers.hf_llama(config, seed=11)
    params = helpers.llama_tree(helpers.hf_tensors(hf), config.num_layers)
    prompts = random_prompts()
    eos_id = an_end_some_rows_reach(hf_greedy(hf, prompts, None))
    expected = hf_greedy(hf, prompts, eos_id)
    assert (expected[:, -1] == eos_id).any()
    assert len(np.unique(expected)) > 5, "a model that repeats itself tests little"

    greedy = jax.jit(decode.make_greedy(registry.create(config), NEW, eos_id))
    actual = greedy(params, batching.prompts(prompts, rows=len(prompts)))
    np.testing.assert_array_equal(actual, expected)


def test_trained_model_writes_its_story(shared_root):
    from safetensors.numpy import load_file

    directory = shared_root / "weights" / "stories260k-hf"
    fields = json.loads((directory / "config.json").read_text())
    config = DecoderConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        num_kv_heads=fields["num_key_value_heads"],
        head_dim=fields["head_dim"],
        rope_theta=fields["rope_parameters"]["rope_theta"],
        rms_norm_eps=fields["rms_norm_eps"],
        tie_embeddings=fields["tie_word_embeddings"],
    )
    params = helpers.llama_tree(load_file(directory / "model.safetensors"), config.num_layers)
    story = json.loads((directory / "greedy.json").read_text())
    start, ids = story["greedy_from"], story["greedy_ids"]

    empty = np.zeros(0, np.int32)
    prompt = batching.prompts([Tokens("story", np.array(start, np.int32), empty, empty, 0)], rows=2)
    count = len(ids) - len(start)
    greedy = jax.jit(decode.make_greedy(registry.create(config), count, fields["eos_token_id"]))
    for row in greedy(params, prompt):
        assert start + row.tolist() == ids
