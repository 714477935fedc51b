"""Learning from a teacher: what its word is, where it is kept, and that a run survives a stop."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxclf import opening, prompt
from jaxclf import train as train_command
from jaxclf.checkpoint.model_dir import resolve
from jaxclf.checkpoint.tree_store import manifest_to_json
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import datasets
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.tasks import Record, Task, head_labels, words
from jaxclf.decoding.recipe import Recipe
from jaxclf.prompts import builder
from jaxclf.remote import stand_in
from jaxclf.runs import teacher
from jaxclf.runs.distillation import columns, soft_probabilities, soften
from jaxclf.runs.teacher import Answers, Teacher
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]
INTENT = Task("intent", "class", ("a", "b", "c"))
SLOTS = Task("slots", "slots", ("time",))
FLAGS = Task("flags", "multilabel", ("x", "y"))
SIZE = Task("size", "regression", ())


def tiny(*overrides: str):
    """Four steps of a tiny encoder on 24 built-in utterances, two tasks."""
    fields = ["data.name=builtin", "model.unroll=9", "train.steps=4", "train.save_steps=2"]
    fields += ["train.learning_rate=0.01", "train.schedule=constant", "train.max_length=32"]
    return loading.load(str(ROOT / "configs/minilm_massive.py:smoke"), [*fields, *overrides])


def student(source: object, *overrides: str):
    """A student on eight labelled texts and the sixteen others."""
    fields = (f"distil.teacher={source}", "distil.unlabelled=rest", "data.train_examples=8")
    return tiny(*fields, *overrides)


def learn(config, workdir):
    return train(config, workdir, None, opening.open_teacher)


def parameters(workdir) -> dict:
    return manifest_to_json(resolve(workdir, "last").manifest)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A teacher of both tasks."""
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    train(tiny(), workdir)
    return workdir


@pytest.fixture(scope="module")
def finished(taught) -> Path:
    workdir = taught.with_name("student")
    learn(student(taught), workdir)
    return workdir


# -- the teacher's word


def test_the_file_has_the_teachers_own_probabilities(taught, finished):
    config = student(taught)
    dataset = datasets.load(config.data, config.seed)
    assert len(dataset.left_out) == 16
    records = [*dataset.splits["train"], *dataset.left_out]
    (path,) = (finished / "teacher").iterdir()
    answers = teacher.read(path)
    opened = open_run(taught)
    expected = opened.classifier.predict(records, 32, tempered=False)
    names = answers.tasks[0].labels
    for row, record, one in zip(answers.rows, records, expected, strict=True):
        p = [one.scores["intent"][name] for name in names]
        np.testing.assert_allclose(row["intent"][0], p, rtol=0, atol=1e-5)
        assert len(row["slots"]) == len(words(record.text))
        chosen = [head_labels(answers.tasks[1], "names")[best] for best in row["slots"].argmax(1)]
        assert tuple(chosen) == one.predicted["slots"]
    report = json.loads((finished / "report.json").read_text())["distil"]
    assert (report["labelled"], report["unlabelled"]) == (8, 16)
    assert report["teachers"][0]["source"] == str(taught)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_temperature_divides_the_logits(temperature):
    logits = np.random.default_rng(0).normal(0, 3, (4, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    softened = np.exp(logits / temperature)
    softened /= softened.sum(1, keepdims=True)
    np.testing.assert_allclose(soft_probabilities(INTENT, p, temperature), softened, rtol=1e-9)
    flags = 1 / (1 + np.exp(-logits))
    expected = 1 / (1 + np.exp(-logits / temperature))
    np.testing.assert_allclose(soft_probabilities(FLAGS, flags, temperature), expected, rtol=1e-9)
    assert (soft_probabilities(SIZE, logits, temperature) == logits).all()
    sure = np.array([[0.0, 1.0, 0.0]])  # a label alone stays one
    assert (soft_probabilities(INTENT, sure, temperature) == sure).all()


def answers_of(tasks, *rows, source="t") -> Answers:
    arrays = [
        {n: None if p is None else np.array(p, np.float32) for n, p in row.items()} for row in rows
    ]
    return Answers(source, "", tasks, "names", arrays)


def softened(tasks, records, examples, *taught, weight=0.5):
    recipe = Recipe(tasks, None, "names", 16, 0)
    config = ConfigDict({"weight": weight, "temperature": 1.0})
    return soften(recipe, records, examples, taught, config)


def example(words, **targets) -> Encoded:
    found = {
        name: (np.array(places, np.int32), np.array(labels))
        for name, (places, labels) in targets.items()
    }
    ids = np.arange(5, dtype=np.int32)
    return Encoded("", ids, ids * 0, found, tuple(words), 0)


def test_words_labels_and_several_teachers_are_brought_together():
    """Word 1 has no place, word 2 the second teacher did not see; labels stand in other orders."""
    tasks = (INTENT, SLOTS)
    other = Task("intent", "class", ("c", "a", "b"))
    one = answers_of(
        tasks, {"intent": [[0.6, 0.3, 0.1]], "slots": [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]}
    )
    two = answers_of(
        (other, SLOTS), {"intent": [[0.1, 0.0, 0.9]], "slots": [[0.5, 0.5], [0.5, 0.5], [0, 0]]}
    )
    record = Record("1", "wake at five", {"intent": "c", "slots": ("O", "O", "B-time")})
    given = example((0, 2), intent=([0], [2]), slots=([1, 3], [0, 1]))
    (found,), silent = softened(tasks, [record], [given], one, two, weight=0.25)
    assert not silent
    soft, shares = found.soft["intent"]
    np.testing.assert_allclose(soft, [[0.3, 0.6, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(shares, [[0.75, 0.25]])
    soft, _ = found.soft["slots"]
    np.testing.assert_allclose(soft, [[0.7, 0.3], [0.2, 0.8]], rtol=1e-6)
    assert found.targets["intent"][1].tolist() == [2]


def test_an_unlabelled_text_has_the_teachers_word_alone():
    tasks = (INTENT, FLAGS, SIZE)
    rows = {"intent": [[0.2, 0.7, 0.1]], "flags": [[0.9, 0.2]], "size": [[2.5]]}
    places = {
        "intent": ([0], np.zeros(1, np.int32)),
        "flags": ([0], np.zeros((1, 2), np.float32)),
        "size": ([0], np.zeros(1, np.float32)),
    }
    (found,), _ = softened(
        tasks, [Record("1", "text", {})], [example((), **places)], answers_of(tasks, rows)
    )
    labels = {name: labels.tolist() for name, (_, labels) in found.targets.items()}
    assert labels == {"intent": [1], "flags": [[1, 0]], "size": [2.5]}
    for _, shares in found.soft.values():
        assert shares.tolist() == [[0, 0.5]]


def test_where_nobody_says_anything_there_is_no_target_and_that_is_counted():
    silent = answers_of((INTENT,), {"intent": None}, {"intent": None})
    records = [Record("1", "text", {"intent": "b"}), Record("2", "text", {})]
    examples = [example((), intent=([0], [1])), example((), intent=([0], [0]))]
    found, count = softened((INTENT,), records, examples, silent)
    assert count == {"intent": 2}
    assert found[0].soft["intent"][1].tolist() == [[0.5, 0]]
    assert found[0].soft["intent"][0].shape == (1, 3)
    assert found[1].targets["intent"][0].shape == (0,)


def test_other_labels_and_tasks_are_refused_by_name():
    given = answers_of((INTENT, SLOTS), source="runs/big")
    fewer = Task("intent", "class", ("a", "b", "d"))
    with pytest.raises(InputError, match="runs/big has other labels of task intent: c in the t"):
        columns(fewer, "names", given)
    with pytest.raises(InputError, match="; d in this run alone"):
        columns(fewer, "names", given)
    with pytest.raises(InputError, match="B-time, I-time, O in this run alone"):
        columns(SLOTS, "bio", given)
    with pytest.raises(InputError, match="answers intent .class., slots .slots.; this run lea"):
        columns(SIZE, "names", given)
    alone = answers_of((dataclasses.replace(INTENT, name="label"),))
    assert columns(INTENT, "names", alone) == ("label", [0, 1, 2])  # the only ones of both


# -- stops


def test_a_run_goes_on_without_its_teacher_as_if_it_had_not_stopped(taught, finished, tmp_path):
    moved = tmp_path / "teacher"
    shutil.copytree(taught, moved)
    learn(student(moved, "train.steps=2"), tmp_path / "student")
    shutil.rmtree(moved)
    learn(student(moved), tmp_path / "student")
    assert parameters(tmp_path / "student") == parameters(finished)
    for file in (tmp_path / "student/teacher").iterdir():
        file.unlink()
    with pytest.raises(ArtifactError, match=r"jsonl: missing.*begin anew"):
        learn(student(moved, "train.steps=6"), tmp_path / "student")


@pytest.mark.parametrize("left", [0.1, 0.6, 0.99])
def test_a_kill_while_the_teacher_labels_changes_nothing(
    taught, finished, left, tmp_path, monkeypatch
):
    monkeypatch.setattr(teacher, "_CHUNK_BATCHES", 1)
    (whole,) = (finished / "teacher").iterdir()
    records = distillation_records(taught)
    asked = []
    real = opening.open_source

    def counted(*given, **options):
        opened = real(*given, **options)
        predict = opened.classifier.predict
        monkeypatch.setattr(
            opened.classifier,
            "predict",
            lambda texts, *more, **rest: asked.append(len(texts)) or predict(texts, *more, **rest),
        )
        return opened

    monkeypatch.setattr(opening, "open_source", counted)
    path = tmp_path / "answers.jsonl"
    teacher.label(opening.open_teacher(str(taught), tmp_path), records, path)
    complete = path.read_bytes()
    assert len(asked) == 3  # of eight texts
    path.write_bytes(complete[: int(left * len(complete))])
    asked.clear()
    teacher.label(opening.open_teacher(str(taught), tmp_path), records, path)
    assert path.read_bytes() == complete
    assert sum(asked) < 24 or left == 0.1
    assert len(complete.splitlines()) == len(whole.read_bytes().splitlines())


def distillation_records(source):
    config = student(source)
    dataset = datasets.load(config.data, config.seed)
    return [*dataset.splits["train"], *dataset.left_out]


def test_answers_in_a_shared_folder_are_computed_once(taught, tmp_path, monkeypatch):
    shared = f"distil.folder={tmp_path / 'shared'}"
    learn(student(taught, shared), tmp_path / "one")
    monkeypatch.setattr(teacher, "_row", lambda *given: pytest.fail("asked again"))
    learn(student(taught, shared), tmp_path / "two")
    assert parameters(tmp_path / "one") == parameters(tmp_path / "two")
    assert not (tmp_path / "two/teacher").exists()
    (path,) = (tmp_path / "shared").glob("*.jsonl")
    text = path.read_text()
    path.write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(ArtifactError, match=r"jsonl:1: altered since it was written"):
        learn(student(taught, shared), tmp_path / "three")
    assert not (tmp_path / "three/checkpoints").exists()


def test_another_teacher_of_the_same_name_is_told(taught, tmp_path):
    source = tmp_path / "teacher"
    shutil.copytree(taught, source)
    shared = f"distil.folder={tmp_path / 'shared'}"
    learn(student(source, shared), tmp_path / "one")
    shutil.rmtree(source)
    train(tiny("seed=1", "data.limit=24"), source)
    with pytest.raises(InputError, match="answers of another teacher"):
        learn(student(source, shared), tmp_path / "two")


# -- teachers of other kinds


def test_a_decoder_teaches_by_the_probability_of_each_label(tmp_path):
    """Slots, which it writes, by its labels."""
    fields = ["data.limit=8", "train.steps=2", "train.eval_steps=0", "eval.max_new_tokens=8"]
    config = loading.load(str(ROOT / "configs/quickstart.py:smoke"), fields)
    assert config.eval.decoding == "free"
    train(config, tmp_path / "decoder")
    config = tiny(f"distil.teacher={tmp_path / 'decoder'}", "data.limit=8", "train.steps=2")
    result = learn(config, tmp_path / "student")
    (path,) = (tmp_path / "student/teacher").iterdir()
    for row in teacher.read(path).rows:
        assert row["intent"].sum() == pytest.approx(1, abs=1e-5)
        assert row["intent"].min() > 0
        assert ((row["slots"] == 0) | (row["slots"] == 1)).all()
        assert (row["slots"].sum(axis=1) == 1).all()
    assert result["distil"]["without_answer"] == {}


def test_a_server_teaches_by_its_answers_and_their_log_probabilities(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pytest.importorskip("openai")
    with stand_in.started(0) as url:
        for count in (0, 20):
            folder, workdir = tmp_path / f"prompt-{count}", tmp_path / f"student-{count}"
            words_ = ["--config", str(ROOT / "configs/gpt4_massive.py:task=intent,smoke")]
            words_ += [f"--config.api.base_url={url}", "--config.data.name=builtin"]
            words_ += [f"--config.api.top_logprobs={count}", "--config.data.limit=8"]
            prompt.main([*words_, "--workdir", str(folder)])
            config = tiny("data.task=intent", f"distil.teacher={folder}", "data.limit=8")
            learn(config, workdir)
            (path,) = (file for file in (workdir / "teacher").iterdir() if len(file.stem) == 16)
            assert (workdir / "teacher/answers.jsonl").is_file()
            highest = [row["intent"].max() for row in teacher.read(path).rows]
            assert (min(highest) == 1) == (count == 0)
            assert all(row["intent"].sum() == pytest.approx(1) for row in teacher.read(path).rows)


def test_several_teachers_by_the_command(taught, finished, tmp_path):
    """The mean of one with itself is itself."""
    config = student(f"{taught},{taught}")
    train_command.run(config, tmp_path / "student")
    assert parameters(tmp_path / "student") == parameters(finished)


# -- what cannot be


def test_what_has_no_place_for_a_teacher_is_refused(taught, tmp_path):
    def refused(config, message):
        with pytest.raises(InputError, match=message):
            learn(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    decoder = [f"distil.teacher={taught}"]
    writes = loading.load(str(ROOT / "configs/quickstart.py:smoke"), decoder)
    refused(writes, "writes its labels. Set model.output='head'")
    refused(
        tiny(f"distil.teacher={taught}", "distil.unlabelled=rest"), "no training record is left"
    )
    texts = tmp_path / "texts.csv"
    refused(student(taught, f"distil.unlabelled={texts}"), "texts.csv")
    refused(student(taught, "prompt.slots=bio"), "other labels of task slots: Other, artist_name")
    with pytest.raises(ArtifactError, match="none: no checkpoint here"):
        learn(student(tmp_path / "none"), tmp_path / "run")
    with pytest.raises(InputError, match="distil.teacher is empty"):
        tiny("distil.unlabelled=rest")
    with pytest.raises(InputError, match="single commas between"):
        tiny("distil.teacher=a,,b")


def test_texts_of_a_file_are_learned_from(taught, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"wake me at {n}"}) + "\n" for n in range(5)))
    config = tiny(f"distil.teacher={taught}", f"distil.unlabelled={file}", "train.steps=2")
    assert learn(config, tmp_path / "run")["distil"]["unlabelled"] == 5
    file.write_text(file.read_text().replace("wake", "call"))
    config = tiny(f"distil.teacher={taught}", f"distil.unlabelled={file}", "train.steps=4")
    with pytest.raises(InputError, match="on other records: those of unlabelled/train"):
        learn(config, tmp_path / "run")


def test_pairs_of_texts_are_no_questions_for_prompts():
    asked = builder.build(
        loading.load(str(ROOT / "configs/quickstart.py")).prompt, "Text", [INTENT]
    )
    recipe = Recipe((INTENT,), asked, "names", 64, 8)
    given = Teacher("runs/big", recipe, lambda: pytest.fail("loaded"))
    given.check([Record("1", "text", {})])
    with pytest.raises(InputError, match="pairs, which the prompts of distil.teacher runs/big"):
        given.check([Record("1", "text", {}, pair="another")])
