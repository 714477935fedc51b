"""A decoder that scores labels by heads: trained, opened, exported and scored as any classifier."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxclf import opening
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.convert import hf_export
from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Record
from jaxclf.evaluate import run as evaluate
from jaxclf.models import registry
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]
TEXTS = ["wake me up at five", "play some jazz", "is it raining", "turn off the lights please"]


def config(*overrides: str):
    return loading.load(
        str(ROOT / "configs/quickstart.py:smoke"),
        [
            "model.output=head",
            "train.steps=12",
            "train.learning_rate=0.01",
            "eval.limit=8",
            "train.save_steps=0",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config("train.pack=true", "train.row_length=128"), folder)
    return folder


def test_a_run_learns_by_heads_alone(run):
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert report["model"]["output"] == "head"
    assert {head["name"] for head in report["model"]["dimensions"]["heads"]} == {"intent", "slots"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    manifest = json.dumps(json.loads((run / "model.json").read_text("utf-8")))
    assert '"heads": [{' in manifest
    assert evaluate(run)["eval"] == report["eval"]


def test_a_text_is_scored_at_its_last_token_and_a_word_at_its_last(run):
    """What comes after changes nothing, in a row that is packed or padded."""
    classifier = open_run(run).classifier
    records = [Record(str(index), text, {}) for index, text in enumerate(TEXTS)]
    alone = [classifier.predict([record], 1)[0] for record in records]
    together = classifier.predict(records, 4)
    for one, other in zip(alone, together, strict=True):
        assert one.predicted == other.predicted
        values = zip(one.scores["intent"].values(), other.scores["intent"].values(), strict=True)
        assert all(a == pytest.approx(b, abs=1e-6) for a, b in values)
    first, last = (
        classifier.predict([Record("x", text, {})], 1)[0] for text in (TEXTS[0], TEXTS[0] + " now")
    )
    assert first.scores != last.scores
    assert last.predicted["slots"][: len(first.predicted["slots"])] == first.predicted["slots"]


def test_an_export_is_the_same_in_transformers_and_here(run, tmp_path):
    pytest.importorskip("torch")
    import transformers

    hf_export.export(run, tmp_path / "hf", task="intent", progress=lambda line: None)
    own = open_run(run).classifier.predict(
        [Record(str(index), text, {}) for index, text in enumerate(TEXTS)], 4, tempered=False
    )
    classify = transformers.pipeline("text-classification", str(tmp_path / "hf"))
    for found, prediction in zip(classify(TEXTS), own, strict=True):
        assert found["label"] == prediction.predicted["intent"]
        best = max(prediction.scores["intent"].values())
        assert found["score"] == pytest.approx(best, abs=1e-5)
    again = opening.open_source(str(tmp_path / "hf")).classifier.predict(
        [Record("0", TEXTS[0], {})], 1, tempered=False
    )[0]
    np.testing.assert_allclose(
        list(again.scores["intent"].values()), list(own[0].scores["intent"].values()), atol=1e-6
    )

    # As a classifier that somebody else made: its labels are those of the data, in any order.
    (tmp_path / "hf" / "jaxclf.json").unlink()
    labels = [prediction.predicted["intent"] for prediction in own]
    names = list(own[0].scores["intent"])
    rows = [*zip(TEXTS, labels, strict=True), *(("any", name) for name in names)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": t, "label": name}) + "\n" for t, name in rows))
    report = evaluate(
        str(tmp_path / "hf"),
        split="test",
        overrides={
            "data.name": "file",
            "data.task": "label",
            "data.train": str(data),
            "data.test": str(data),
        },
    )
    expected = (len(TEXTS) + 1) / len(rows)  # one of "any" is what it says of all of them
    assert report["eval"]["label"]["accuracy"] == pytest.approx(expected)


def test_adapters_are_trained_beside_a_head_of_a_decoder_that_wrote(run, tmp_path):
    wrote = config("model.output=generate", "train.steps=1", "eval.limit=2")
    train(wrote, tmp_path / "wrote")
    base = f"model.checkpoint={tmp_path / 'wrote'}"
    from jaxclf.checkpoint.model_dir import resolve

    fields = config("tune=lora", "model.name=", base, "train.steps=2")
    train(fields, tmp_path / "run", resolve(tmp_path / "wrote"))
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    assert {name.split("/")[1] for name in report["model"]["new_parameters"]} == {"intent", "slots"}
    found = open_run(tmp_path / "run").classifier.predict([Record("0", TEXTS[0], {})], 1)
    assert set(found[0].predicted) == {"intent", "slots"}
    # And one with heads writes nothing.
    with pytest.raises(InputError, match="heads in the place of what writes"):
        train(
            config("model.output=generate", "model.name=", f"model.checkpoint={run}"),
            tmp_path / "none",
            resolve(run),
        )


def test_what_a_model_cannot_do_is_told():
    encoder = registry.find("roberta_base")
    with pytest.raises(InputError, match="roberta writes no text"):
        registry.has_heads("generate", encoder)
    assert registry.has_heads("auto", encoder)
    for name in ("llama3_8b", "flan_t5_small"):
        assert registry.has_heads("head", registry.find(name))
        assert not registry.has_heads("auto", registry.find(name))
