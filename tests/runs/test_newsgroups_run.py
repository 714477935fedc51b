"""The paper's configs on the real files: counts, prompts, a few steps, a full report."""

import json
from pathlib import Path

import pytest

from jaxclf.config import loading
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_smoke_on_the_real_newsgroups(shared_root, tmp_path):
    # data.limit comes after the check of the counts, so all 18,846 texts are read.
    config = loading.load(
        str(ROOT / "configs/llama3_8b_20ng.py:smoke"),
        [
            f"data.root={shared_root / 'data'}",
            "data.limit=8",
            "train.steps=2",
            "eval.max_new_tokens=4",
        ],
    )
    train(config, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["data"]["records"] == {"train": 8, "test": 8}
    assert len(report["data"]["tasks"]["7class"]["labels"]) == 7
    assert len(report["data"]["tasks"]["20class"]["labels"]) == 20
    assert report["train"]["steps"] == 2
    assert set(report["eval"]) == {"7class", "20class", "joint"}
    recipe = json.loads((tmp_path / "task.json").read_text())
    before = "".join(piece["text"] for piece in recipe["prompt"]["before"])
    assert "rec.sport.hockey" in before
    assert before.startswith("<|start_header_id|>user")
    assert before.endswith("Beginning of <<News>>\n")
