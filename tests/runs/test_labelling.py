"""Labelling a file: formats, order, and what a kill leaves."""

import csv
import json

import pytest

from jaxclf import predict
from jaxclf.checkpoint.steps import read_step
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.records import Schema
from jaxclf.runs import labelling
from jaxclf.runs.training import train
from tests.runs.test_training import tiny

TEXTS = [f"wake me at {number} am tomorrow" for number in range(40)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(tiny("train.steps=1", "train.eval_steps=0"), workdir)
    return open_run(workdir)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text, "key": f"k{number}"} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def label(opened, path, output, **options):
    records = labelling.read_texts(path, Schema("text", id="key"))
    labelling.label_file(opened, records, output, batch_size=2, **options)


def test_the_input_is_never_the_output(texts):
    content = texts.read_text()
    link = texts.with_name("link.jsonl")
    link.symlink_to(texts)
    words = ["--checkpoint", "runs/none", "--input", str(texts), "--overwrite", "--output"]
    for output in (texts, link):
        with pytest.raises(InputError, match="is the input"):
            predict.main([*words, str(output)])
    assert texts.read_text() == content


def test_rows_come_in_the_input_order(opened, texts, tmp_path):
    output = tmp_path / "labels.jsonl"
    label(opened, texts, output)
    found = rows(output)
    assert [row["id"] for row in found] == [f"k{number}" for number in range(40)]
    assert {"predicted", "raw", "unparsed"} <= set(found[0])
    assert not list(tmp_path.glob("*.partial*"))
    with pytest.raises(InputError, match="--overwrite"):
        label(opened, texts, output)


def test_killed_half_way_resumes_to_the_same_rows(opened, texts, tmp_path, monkeypatch):
    label(opened, texts, tmp_path / "whole.jsonl")
    real, calls = opened.classifier.predict, []

    def killed(records, batch_size):
        calls.append(len(records))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(records, batch_size)

    output = tmp_path / "labels.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(opened.classifier, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            label(opened, texts, output)
    assert not output.exists()
    partial = tmp_path / "labels.jsonl.partial"
    assert len(rows(partial)) == 1 + 16
    with partial.open("a") as file:  # a row of which only half reached the disk
        file.write('{"id": "k16", "gol')

    calls.clear()
    monkeypatch.setattr(
        opened.classifier,
        "predict",
        lambda records, size: calls.append(len(records)) or real(records, size),
    )
    label(opened, texts, output)
    assert calls == [16, 8]
    assert rows(output) == rows(tmp_path / "whole.jsonl")


def test_partial_file_of_other_texts_is_refused(opened, texts, tmp_path):
    partial = tmp_path / "labels.jsonl.partial"
    partial.write_text('{"model": "x", "texts": "y"}\n')
    with pytest.raises(InputError, match="another model or other texts"):
        label(opened, texts, tmp_path / "labels.jsonl")
    assert partial.read_text() == '{"model": "x", "texts": "y"}\n'


def test_plain_lines_and_csv_are_read(opened, tmp_path):
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(TEXTS[:3]))
    found = labelling.read_texts(lines, Schema("text"))
    assert [record.text for record in found] == TEXTS[:3]
    table = tmp_path / "texts.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["utterance"], *([text] for text in TEXTS[:3])])
    found = labelling.read_texts(table, Schema("utterance"))
    assert [record.text for record in found] == TEXTS[:3]
    with pytest.raises(InputError, match="no text to label"):
        labelling.read_texts(_empty(tmp_path), Schema("text"))


def _empty(folder):
    path = folder / "empty.jsonl"
    path.touch()
    return path


def test_a_step_is_named_best_last_or_by_number():
    assert (read_step("best"), read_step("last"), read_step("12")) == ("best", "last", 12)
    with pytest.raises(InputError, match="--step newest"):
        read_step("newest")


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="no checkpoint here"):
        open_run(tmp_path)


def test_overrides_reach_an_opened_run(opened):
    run = opened.source.run_dir
    assert open_run(run, overrides=["eval.batch_size=3"]).config.eval.batch_size == 3
    assert loading.read(run / "config.json").eval.batch_size != 3
