"""Whole runs of an encoder with heads on the built-in data, and what they start from."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.checkpoint.model_dir import load_params, resolve
from jaxclf.checkpoint.tree_store import manifest_to_json
from jaxclf.classifiers import transfer
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.convert.merge import merge
from jaxclf.core.errors import InputError
from jaxclf.core.logs import read_metrics
from jaxclf.core.tree import flatten
from jaxclf.data.tasks import Record
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.labelling import label_file
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]


def tiny(*overrides: str):
    """Six steps of a tiny encoder on 24 built-in utterances, two tasks."""
    return loading.load(
        str(ROOT / "configs/minilm_massive.py:smoke"),
        [
            "data.name=builtin",
            "model.unroll=9",
            "train.steps=6",
            "train.save_steps=3",
            "train.learning_rate=0.01",
            "train.schedule=constant",  # so that a run may be made longer
            "train.max_length=32",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(), workdir)
    return workdir


def test_a_run_leaves_report_predictions_and_scores(finished):
    report = json.loads((finished / "report.json").read_text())
    assert report["model"]["family"] == "roberta"
    assert set(report["eval"]) == {"intent", "slots", "joint"}
    (first, *rest) = map(json.loads, (finished / "predictions.jsonl").open())
    assert len(rest) == 23
    scores = first["scores"]["intent"]
    assert abs(sum(scores.values()) - 1) < 1e-5
    assert max(scores, key=scores.__getitem__) == first["predicted"]["intent"]
    assert len(first["predicted"]["slots"]) == len(first["gold"]["slots"])
    assert first["unparsed"] == []
    figures = report["calibration"]["intent"]
    assert set(report["calibration"]) == {"intent"}  # slots are no single label
    assert figures["accuracy"] == figures["before"]["accuracy"]
    assert figures["accuracy"] == report["eval"]["intent"]["accuracy"]
    assert sum(each["count"] for each in figures["bins"]) == 24
    assert (finished / "report.html").stat().st_size > 10_000


def test_evaluate_and_predict_agree_with_the_run(finished, tmp_path):
    opened = open_run(finished)
    with pytest.raises(InputError, match="the run itself, whose report would be lost"):
        evaluate(opened, finished / ".")
    again = evaluate(opened, tmp_path / "again")
    assert again["eval"] == json.loads((finished / "report.json").read_text())["eval"]
    predicted = (tmp_path / "again" / "predictions.jsonl").read_text()
    assert predicted == (finished / "predictions.jsonl").read_text()
    assert again["calibration"] == json.loads((finished / "report.json").read_text())["calibration"]
    records = [Record("a", "wake me at five am", {}), Record("b", "play " * 80, {})]
    label_file(opened, records, tmp_path / "out.jsonl", batch_size=4)
    rows = list(map(json.loads, (tmp_path / "out.jsonl").open()))
    assert [len(row["predicted"]["slots"]) for row in rows] == [5, 80]  # cut words are Other


def test_a_temperature_changes_scores_and_no_label(finished, tmp_path):
    opened = open_run(finished)
    (temperature,) = opened.classifier.temperatures.values()
    assert temperature != 1
    report = json.loads((finished / "report.json").read_text())["calibration"]["intent"]
    assert report["temperature"] == temperature
    classifier = opened.classifier
    untempered = classifier.with_params(classifier.params, classifier.mesh)
    plain = dataclasses.replace(opened, classifier=untempered)
    found = evaluate(plain, tmp_path)["calibration"]["intent"]
    assert found["temperature"] is None
    assert found["nll"] == report["before"]["nll"] != report["nll"]
    rows = [
        list(map(json.loads, (folder / "predictions.jsonl").open()))
        for folder in (finished, tmp_path)
    ]
    for mended, raw in zip(*rows, strict=True):
        assert mended["predicted"] == raw["predicted"]
        assert mended["scores"] != raw["scores"]
    assert open_run(finished, overrides=["eval.temperature=none"]).classifier.temperatures == {}


def test_a_resumed_run_ends_as_an_unbroken_one(finished, tmp_path):
    """Dropout draws from the step's number, not from how often the run began."""
    train(tiny("train.steps=3"), tmp_path)
    train(tiny(), tmp_path)
    ends = [manifest_to_json(resolve(run, "last").manifest) for run in (finished, tmp_path)]
    assert ends[0] == ends[1]


def test_padded_batches_and_one_task(tmp_path):
    fields = ("train.pack=False", "train.batch_size=4", "data.task=intent", "train.steps=2")
    result = train(tiny(*fields), tmp_path)
    assert set(result["eval"]) == {"intent"}


def test_a_run_starts_from_another_with_its_heads_or_new_ones(finished, tmp_path):
    base = resolve(finished)
    config = ("model.name=", f"model.checkpoint={finished}", "train.steps=0")
    kept = train(tiny(*config), tmp_path / "kept", base)
    assert kept["model"]["new_parameters"] == []
    assert kept["eval"] == json.loads((finished / "report.json").read_text())["eval"]
    new = train(tiny(*config, "model.heads=new"), tmp_path / "new", base)
    assert "heads/intent/out/kernel" in new["model"]["new_parameters"]
    assert "heads/intent/out/kernel" in new["model"]["unused_tensors"]
    one = train(tiny(*config, "data.task=slots"), tmp_path / "one", base)
    assert one["model"]["new_parameters"] == []
    assert all(name.startswith("heads/intent/") for name in one["model"]["unused_tensors"])


def test_new_heads_are_random_and_the_body_is_the_checkpoints(finished):
    opened = open_run(finished)
    base, model = opened.source, opened.classifier.model
    plan = transfer.plan(model, base, "new", opened.classifier.recipe)
    params = flatten(transfer.load(model, base, plan, jax.random.key(1)))
    stored = flatten(load_params(base, model.abstract))
    for path, leaf in params.items():
        same = np.array_equal(leaf, stored[path])
        assert same != (path in plan.new), path


def test_a_head_of_another_size_or_other_labels_is_named(finished, tmp_path):
    file = tmp_path / "train.jsonl"
    rows = [{"text": f"wake me {i}", "label": "ab"[i % 2]} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data.name=file", f"data.train={file}", f"data.test={file}", "data.task=label")
    first = tmp_path / "first"
    train(tiny(*own, "train.steps=1"), first)
    other = [row | {"label": "ac"[i % 2]} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in other))
    config = tiny(*own, "model.name=", f"model.checkpoint={first}", "train.steps=1")
    with pytest.raises(InputError, match="head label scores a, b; 'c' of task label is outside"):
        train(config, tmp_path / "third", resolve(first))
    file.write_text(
        "".join(json.dumps(row | {"label": str(i)}) + "\n" for i, row in enumerate(rows))
    )
    config = tiny(*own, "model.name=", f"model.checkpoint={first}", "train.steps=1")
    with pytest.raises(InputError, match=r"heads/label/out/kernel \(32, 2\).*\(32, 8\).*heads=new"):
        train(config, tmp_path / "second", resolve(first))


def test_more_tokens_than_positions_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"train\.max_length is 5,000; .* has 4,096 positions"):
        train(tiny("train.max_length=5000"), tmp_path)


def test_a_checkpoint_counts_whatever_the_name_of_the_model(finished, tmp_path, capsys):
    config = tiny("model.name=llama_smoke", f"model.checkpoint={finished}", "train.steps=1")
    report = train(config, tmp_path, resolve(finished))
    assert report["model"]["family"] == "roberta"
    said = "model.name llama_smoke does not describe: a model of kind roberta, not llama"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.task_weights=(1.0,)", "loss.task_weights has 1 numbers for 2 tasks"),
        ("loss.class_weights=(('alarm_st', 2.0),)", "no label of the data. Did you mean"),
        ("prompt.shots=2", "prompt.shots is for models that write"),
    ],
)
def test_settings_that_do_not_fit_are_told(override, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tiny(override), tmp_path)


def test_the_best_checkpoint_has_the_smallest_error(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [{"text": f"wake me {i}", "label": 8 * (i % 3)} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (f"data.train={file}", f"data.dev={file}", f"data.test={file}")
    own = ("data.name=file", "data.task=label", "data.kind=regression", *files)
    best = ("train.metric_for_best_model=label.mse", "train.learning_rate=0.05")
    each = ("train.steps=4", "train.eval_steps=1", "train.save_steps=1")
    result = train(tiny(*own, *best, *each), tmp_path / "run")
    found = {
        row["step"]: row["dev/label.mse"]
        for row in read_metrics(tmp_path / "run")
        if "dev/label.mse" in row
    }
    assert len({*found.values()}) == 4
    assert result["train"]["best_step"] == min(found, key=found.__getitem__)
    assert result["eval"]["label"]["mse"] == pytest.approx(min(found.values()), rel=1e-5)
    with pytest.raises(InputError, match=r"label\.support.*expected one of label\.pearson"):
        train(tiny(*own, "train.metric_for_best_model=label.support"), tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "labels", "metric"),
    [
        ("multilabel", [["a"], ["a", "b"], [], ["b"]], "micro_f1"),
        ("regression", [0.5, 1.5, "-2", 3], "mse"),
    ],
)
def test_other_kinds_of_labels_and_pairs(kind, labels, metric, tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [
        {"text": f"wake me {i}", "other": f"at {i} o'clock", "label": labels[i % 4]}
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (f"data.train={file}", f"data.dev={file}", f"data.test={file}")
    own = ("data.name=file", "data.task=label", f"data.kind={kind}", "data.pair=other", *files)
    own += ("train.steps=1",)
    result = train(tiny(*own), tmp_path / "run")
    assert metric in result["eval"]["label"]
    assert result["eval"]["label"]["support"] == 12
    decoder = tiny(*own, "model.name=llama_smoke")
    with pytest.raises(InputError, match=f"of kind {kind}.*choose an encoder"):
        train(decoder, tmp_path / "decoder")


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_run_cut_from_a_run_is_opened_and_merged_as_it_was_trained(
    finished, tune, tmp_path, monkeypatch
):
    """Adapters find their base whole, and cut it again."""
    monkeypatch.setattr(transfer, "evenly_spaced", lambda count, kept: (count - 1,))
    config = tiny("model.name=", f"model.checkpoint={finished}", "model.layers=1", f"tune={tune}")
    result = train(config, tmp_path / "cut", resolve(finished))
    assert result["model"]["dimensions"]["num_layers"] == 1
    opened = open_run(tmp_path / "cut")
    assert evaluate(opened, tmp_path / "again")["eval"] == result["eval"]
    if tune == "lora":
        merged = merge(opened.source, tmp_path / "merged")
        expected = flatten(lora.multiply_out(opened.classifier.params))
        for path, leaf in flatten(load_params(merged, opened.classifier.model.abstract)).items():
            size = float(np.abs(expected[path]).max())
            np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-6 * size)
