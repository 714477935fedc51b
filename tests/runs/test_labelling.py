"""Labelling a file: formats, order, and what a kill leaves."""

import csv
import json

import pytest

from jaxclf import predict
from jaxclf.checkpoint.steps import read_step
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import datasets
from jaxclf.data.records import Schema
from jaxclf.runs import evaluation, labelling
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


def test_a_text_is_asked_after_the_examples_that_evaluate_gives_it(tmp_path, monkeypatch):
    fields = ["prompt.shots=2", "prompt.choose=similar", "train.steps=1", "train.eval_steps=0"]
    train(tiny(*fields, "train.pack=false", "train.max_length=256"), tmp_path / "run")
    opened = open_run(tmp_path / "run")
    asked, real = [], type(opened.classifier).tokens

    def noted(self, records, prompt=None):
        found = real(self, records, prompt)
        prefixes = [self.tokenizer.decode(tokens.prefix) for tokens in found]
        asked.append(dict(zip([record.text for record in records], prefixes, strict=True)))
        return found

    monkeypatch.setattr(type(opened.classifier), "tokens", noted)
    evaluation.evaluate(opened, tmp_path / "evaluated", "test")
    of_evaluation = {text: prefix for batch in asked for text, prefix in batch.items()}
    asked.clear()
    records = datasets.load(opened.config.data).splits["test"]
    labelling.label_file(opened, records, tmp_path / "labels.jsonl", batch_size=8)
    assert {text: prefix for batch in asked for text, prefix in batch.items()} == of_evaluation
    assert len(set(of_evaluation.values())) > 1


def test_killed_half_way_resumes_to_the_same_rows(opened, texts, tmp_path, monkeypatch):
    label(opened, texts, tmp_path / "whole.jsonl")
    real, calls = opened.classifier.predict, []

    def killed(records, batch_size, **options):
        calls.append(len(records))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(records, batch_size, **options)

    output = tmp_path / "labels.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(opened.classifier, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            label(opened, texts, output)
    assert not output.exists()
    partial = tmp_path / "labels.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + 16
    with partial.open("a") as file:  # a row of which only half reached the disk
        file.write('{"id": "k16", "gol')

    calls.clear()
    monkeypatch.setattr(
        opened.classifier,
        "predict",
        lambda records, *rest, **options: (
            calls.append(len(records)) or real(records, *rest, **options)
        ),
    )
    label(opened, texts, output)
    assert calls == [16, 8]
    assert rows(output) == rows(tmp_path / "whole.jsonl")


@pytest.fixture
def partial(opened, texts, tmp_path, monkeypatch):
    """What a command that was killed after its first rows leaves."""
    real, calls = opened.classifier.predict, []

    def killed(records, batch_size, **options):
        calls.append(records)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(records, batch_size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(opened.classifier, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            label(opened, texts, tmp_path / "labels.jsonl")
    return tmp_path / "labels.jsonl.partial"


def test_partial_file_of_other_texts_or_another_way_of_reading_is_refused(
    opened, texts, partial, tmp_path
):
    content = partial.read_bytes()
    other = open_run(opened.source.run_dir, overrides=["eval.fallback=nearest"])
    with pytest.raises(InputError, match="another classifier or other texts"):
        label(other, texts, tmp_path / "labels.jsonl")
    texts.write_text(texts.read_text().replace("am tomorrow", "am today"))
    with pytest.raises(InputError, match="another classifier or other texts"):
        label(opened, texts, tmp_path / "labels.jsonl")
    assert partial.read_bytes() == content


def test_every_altered_line_of_a_partial_file_is_told(opened, texts, partial, tmp_path):
    lines = partial.read_text().splitlines(keepends=True)
    swapped = [*lines[:2], lines[3], lines[2], *lines[4:]]
    altered = [lines[5][:40] + "?" + lines[5][41:]]
    for number, content in (
        (3, swapped),
        (6, [*lines[:5], *altered, *lines[6:]]),
        (1, ["x" + lines[0], *lines[1:]]),
        (2, lines[:1] + lines[2:]),
    ):
        partial.write_text("".join(content))
        with pytest.raises(ArtifactError, match=rf"labels\.jsonl\.partial:{number}: altered"):
            label(opened, texts, tmp_path / "labels.jsonl")


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
    read = open_run(run, overrides=["eval.fallback=nearest", "eval.first_line=true"])
    assert read.classifier.recipe.fallback == "nearest"
    assert read.classifier.recipe.first_line
    shorter = open_run(run, overrides=["eval.max_new_tokens=5"]).classifier
    assert shorter.recipe.max_new_tokens == 5
    assert loading.read(run / "config.json").eval.batch_size != 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("eval.batch_size=0", r"eval\.batch_size is 0; expected"),
        ("eval.max_new_tokens=0", r"eval\.max_new_tokens is 0, which takes"),
        ("prompt.template=choice", r"stays: prompt\.template is 'plain'"),
        ("train.max_length=9", r"stays: train\.max_length is"),
        ("seed=3", "stays: seed is 0"),
        ("seed=-5", "seed is -5"),
        ("tune=lora", "stays: tune is 'full'"),
        ("model.dtype=int8", r"model\.dtype is 'int8'"),
    ],
)
def test_overrides_that_mean_nothing_after_training_are_refused(opened, override, told):
    with pytest.raises(InputError, match=told):
        open_run(opened.source.run_dir, overrides=[override])
