"""What is exported labels in transformers' pipelines as the run does here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxclf.checkpoint.model_dir import resolve
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.convert import hf_export
from jaxclf.core.tree import flatten, nest
from jaxclf.data import datasets
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.models import registry
from jaxclf.runs.setup import with_heads
from jaxclf.runs.training import train
from tests import tiny
from tests.tiny_adapters import write_model
from tests.tiny_encoders import ENCODERS

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
LENGTH = 12  # tokens of the run; many texts are longer
WORDS = "wake me up at five in the morning and play some jazz please".split()
# What a tokenizer trained on few texts cuts into many tokens.
TEXTS = [
    " ".join(np.random.default_rng(seed).choice(WORDS, 2 + seed % 15)) + " zyx" * (seed % 3)
    for seed in range(30)
]


def run_config(*overrides):
    return loading.load(
        str(ROOT / "configs/minilm_massive.py:smoke"),
        [
            "data.name=builtin",
            "model.unroll=9",
            "train.steps=1",
            "train.learning_rate=1e-5",
            f"train.max_length={LENGTH}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One small step from a model that tells texts apart."""
    root = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.train([*TEXTS, *TEXTS], 320)
    config = dataclasses.replace(
        ENCODERS["roberta"],
        vocab_size=tokenizer.vocab_size,
        position_offset=tokenizer.pad_id + 1,
    )
    tasks = datasets.load(run_config().data, 0).tasks
    config = with_heads(config, tasks, "names")
    leaves = flatten(tiny.random_params(registry.create(config)))
    # What the tokens say is to weigh more than constants do.
    leaves |= {path: 0 * leaf for path, leaf in leaves.items() if path.endswith("bias")}
    leaves |= {path: 5 * leaf for path, leaf in leaves.items() if "/attention/" in path}
    write_model(root / "base", config, nest(leaves))
    tokenizer.save(root / "base" / "tokenizer")
    start = ("model.name=", f"model.checkpoint={root / 'base'}")
    train(run_config(*start), root / "run", resolve(root / "base"))
    return root / "run"


@pytest.fixture(scope="module")
def own(run):
    records = [Record(str(number), text, {}) for number, text in enumerate(TEXTS)]
    return open_run(run).classifier.predict(records, 8, tempered=False)


def export(run, directory, **options):
    hf_export.export(run, directory, progress=lambda line: None, **options)
    return directory


def test_classes_of_a_pipeline_are_the_runs(run, own, tmp_path):
    directory = export(run, tmp_path / "hf", task="intent")
    classify = transformers.pipeline("text-classification", str(directory))
    assert classify.tokenizer.model_max_length == LENGTH
    lengths = [len(ids) for ids in classify.tokenizer(TEXTS)["input_ids"]]
    assert sum(length > LENGTH for length in lengths) > 5
    found = classify(TEXTS, truncation=True)
    assert [each["label"] for each in found] == [each.predicted["intent"] for each in own]
    assert len({each["label"] for each in found}) > 2
    for each, prediction in zip(found, own, strict=True):
        assert each["score"] == pytest.approx(max(prediction.scores["intent"].values()), abs=1e-4)


def test_slots_of_a_pipeline_are_the_runs(run, own, tmp_path):
    directory = export(run, tmp_path / "hf", task="slots")
    tag = transformers.pipeline("token-classification", str(directory), ignore_labels=[])
    cut = 0
    for text, tokens, prediction in zip(TEXTS, tag(TEXTS), own, strict=True):
        starts = np.cumsum([0] + [len(word) + 1 for word in text.split()])
        first: dict[int, str] = {}  # a word's tag is that of its first token
        for token in tokens:
            if token["end"] > token["start"]:
                place = token["start"] + (text[token["start"]] == " ")
                word = int(np.searchsorted(starts, place, "right")) - 1
                first.setdefault(word, token["entity"])
        words = len(text.split())
        cut += len(first) < words
        assert [first.get(word, "Other") for word in range(words)] == [
            *prediction.predicted["slots"]
        ]
    assert cut > 5


def test_the_cards_code_runs(run, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path / "cache"))
    directory = export(run, tmp_path / "hf", task="intent")
    card = (directory / "README.md").read_text("utf-8")
    blocks = [each.partition("```")[0] for each in card.split("```python\n")[1:]]
    assert len(blocks) == 3
    for block in blocks:
        if "token-classification" not in block:  # of the other task's export
            exec(block.replace("DIRECTORY", repr(str(directory))), {})


def test_a_single_class_is_exported(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [json.dumps({"text": text, "label": "only"}) for text in TEXTS[:8]]
    file.write_text("\n".join(rows))
    data = ("data.name=file", f"data.train={file}", f"data.test={file}", "data.task=label")
    train(run_config(*data, "train.steps=1"), tmp_path / "run")
    directory = export(tmp_path / "run", tmp_path / "hf")
    assert "a single class" in (directory / "README.md").read_text("utf-8")
    classify = transformers.pipeline("text-classification", str(directory))
    found = classify(TEXTS[:4], truncation=True)
    assert [each["label"] for each in found] == ["only"] * 4
    assert all(0 < each["score"] < 1 for each in found)
