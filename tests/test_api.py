"""Labels in Python: what `jaxclf.load` takes, what it gives, and on how many devices."""

import contextlib
import dataclasses
import doctest
import importlib
import inspect
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxclf
from jaxclf import api, predict
from jaxclf.checkpoint import model_files
from jaxclf.config import loading
from jaxclf.convert import hf_export
from jaxclf.core import logs
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.predictions import Prediction
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.runs.training import train
from tests.runs import test_encoder_run, test_training

COMMANDS = ("train", "evaluate")
TEXTS = ["wake me at five am", "is it going to rain tomorrow", "play some jazz"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A run of an encoder with two tasks, intent and slots."""
    workdir = tmp_path_factory.mktemp("runs") / "encoder"
    train(test_encoder_run.tiny("train.steps=2"), workdir)
    return workdir


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """A run of a decoder with the same tasks."""
    workdir = tmp_path_factory.mktemp("runs") / "decoder"
    fields = ("train.steps=2", "train.eval_steps=0", "train.save_steps=0", "eval.limit=8")
    train(test_training.tiny(*fields), workdir)
    return workdir


# Names --------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys; sys.path.insert(0, '.'); before = {*sys.modules}; import jaxclf; dir(jaxclf); "
        "print(*{name.partition('.')[0] for name in {*sys.modules} - before} "
        "- sys.stdlib_module_names, *(name for name in sys.modules if 'jaxclf.' in name))"
    )
    root = Path(jaxclf.__path__[0]).parent
    command = [sys.executable, "-I", "-c", program]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "jaxclf\n"


def test_every_public_name_is_there():
    assert {*jaxclf.__all__} <= {*dir(jaxclf)}
    assert all(callable(getattr(jaxclf, name)) for name in jaxclf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxclf.trian  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_function_too(name):
    module = importlib.import_module(f"jaxclf.{name}")
    assert getattr(jaxclf, name) is module
    assert callable(module.main)
    assert inspect.signature(module) == inspect.signature(module.run)


# A run --------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_command(encoder, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = [f"--checkpoint={encoder}", f"--input={texts}", f"--output={tmp_path / 'labels.jsonl'}"]
    predict.main(words)
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").open()]
    clf = jaxclf.load(encoder)
    found, proba = clf.predict(TEXTS), clf.predict_proba(TEXTS)
    assert found["intent"].tolist() == [row["predicted"]["intent"] for row in rows]
    assert [[tag for _, tag in each] for each in found["slots"]] == [
        row["predicted"]["slots"] for row in rows
    ]
    names = clf.classes_["intent"]
    assert list(proba) == ["intent"]  # slots have none
    for row, values in zip(rows, proba["intent"], strict=True):
        assert dict(zip(names, values, strict=True)) == row["scores"]["intent"]


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        (("time",), ["time", "Other", "Other"]),
        (("time", "Other", "date", "place"), ["time", "Other", "date"]),
        ((), ["Other"] * 3),
    ],
)
def test_each_word_has_a_tag_however_many_the_model_wrote(decoder, monkeypatch, written, tags):
    clf = jaxclf.load(decoder)

    def predict(records, batch_size, **options):
        predicted = {"intent": None, "slots": written}
        return [Prediction(each.id, each.text, {}, predicted) for each in records]

    monkeypatch.setattr(clf.opened.classifier, "predict", predict)
    assert clf.predict("wake me early")["slots"] == [
        *zip(["wake", "me", "early"], tags, strict=True)
    ]


def test_a_word_without_a_bio_tag_is_outside(decoder, monkeypatch):
    clf = jaxclf.load(decoder)
    classifier = clf.opened.classifier
    classifier.recipe = dataclasses.replace(classifier.recipe, slot_format="bio")
    found = Prediction("a", "wake me", {}, {"intent": None, "slots": ("B-time",)})
    monkeypatch.setattr(classifier, "predict", lambda *_, **__: [found])
    assert clf.predict("wake me")["slots"] == [("wake", "B-time"), ("me", "O")]


def test_a_text_alone_gives_its_label(encoder):
    clf = jaxclf.load(str(encoder))
    alone, first = clf.predict(TEXTS[0]), clf.predict(TEXTS)
    assert alone == {"intent": first["intent"][0], "slots": first["slots"][0]}
    assert [word for word, _ in alone["slots"]] == TEXTS[0].split()
    assert clf.predict_proba(TEXTS[0])["intent"].shape == clf.classes_["intent"].shape
    assert clf.predict([])["intent"].shape == (0,)
    assert clf.predict_proba([])["intent"].shape == (0, len(clf.classes_["intent"]))
    assert [task.name for task in clf.tasks] == ["intent", "slots"]
    assert repr(clf).startswith("<LoadedClassifier of intent (class, ")


def test_batch_size_and_progress_change_no_label(encoder, capsys):
    clf = jaxclf.load(encoder / "checkpoints" / "2")
    expected = clf.predict(np.array(TEXTS))
    assert capsys.readouterr().out == ""
    found = clf.predict(iter(TEXTS), batch_size=1, progress=True)
    assert found["intent"].tolist() == expected["intent"].tolist()
    with pytest.raises(InputError, match="batch_size is -1"):
        clf.predict(TEXTS, batch_size=-1)


def test_progress_is_shown_where_it_is_asked_for(encoder, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def count(what, total):
        shown.append((what, total))
        yield lambda done: None

    monkeypatch.setattr(logs, "count", count)
    clf = jaxclf.load(encoder)
    for method in (clf.predict, clf.predict_proba, clf.predictions):
        method(TEXTS)
        assert shown == []
        method(TEXTS, progress=True)
        assert shown == [("labelling", 3)]
        shown.clear()


def test_texts_at_once_are_the_runs_unless_said(encoder, monkeypatch):
    clf = jaxclf.load(encoder, overrides={"eval.batch_size": 5})
    sizes = []

    def predict(records, batch_size, **options):
        sizes.append(batch_size)
        scores = {"intent": dict.fromkeys(clf.tasks[0].labels, 0.5)}
        labels = {"intent": None, "slots": None}
        return [Prediction(each.id, each.text, {}, labels, scores=scores) for each in records]

    monkeypatch.setattr(clf.opened.classifier, "predict", predict)
    for method in (clf.predict, clf.predict_proba, clf.predictions):
        method(TEXTS)
        method(TEXTS, batch_size=1)
    assert sizes == [5, 1] * 3


def test_texts_that_cannot_be_labelled_are_named():
    with pytest.raises(InputError) as caught:
        api.read_texts(["fine", float("nan"), "", ("a", "pair"), "\0"])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["text 1", "text 2", "text 4"]
    pair = api.read_texts([("a", "pair")])[0]
    assert (pair.text, pair.pair) == ("a", "pair")


def test_a_decoder_writes_labels_or_scores_them(decoder):
    clf = jaxclf.load(decoder)
    with pytest.raises(InputError, match=r'overrides={"eval.decoding": "score"}'):
        clf.predict_proba(TEXTS)
    with pytest.raises(InputError, match="pairs"):
        clf.predict([("a", "b")])
    clf = jaxclf.load(decoder, overrides={"eval.decoding": "score"})
    np.testing.assert_allclose(clf.predict_proba(TEXTS[:1])["intent"].sum(axis=1), 1, atol=1e-5)
    assert [word for word, _ in clf.predict(TEXTS[0])["slots"]] == TEXTS[0].split()


def test_what_is_no_classifier_is_told(encoder, tmp_path):
    with pytest.raises(InputError, match="no such directory, and no hub id"):
        jaxclf.load("runs/not here")
    with pytest.raises(InputError, match="holds no classifier"):
        jaxclf.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapters alone"):
        jaxclf.load(tmp_path)
    with pytest.raises(ArtifactError, match="no checkpoint of step 7"):
        jaxclf.load(encoder, step=7)
    with pytest.raises(InputError, match=r"Did you mean '--config.eval.batch_size'"):
        jaxclf.load(encoder, overrides={"eval.batch_sise": 2})


def test_one_device_and_eight_give_the_same(encoder, forks, tmp_path):
    """Also of a run that was trained on a mesh of other devices than are here."""
    run = tmp_path / "run"
    shutil.copytree(encoder, run)
    config = loading.read(run / "config.json")
    with config.unlocked():
        config.mesh.fsdp = 4
    model_files.replace(run, {"config.json": loading.to_text(config)})
    program = (
        "import jax, jaxclf, numpy as np; assert jax.device_count() == 8\n"
        f"clf = jaxclf.load({str(run)!r})\n"
        f"np.savez({str(tmp_path / 'eight.npz')!r}, **clf.predict_proba({TEXTS!r}))\n"
        f"print(clf.predict({TEXTS!r})['slots'])"
    )
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    eight = forks.start(program, tmp_path / "log", XLA_FLAGS=flags)
    clf = jaxclf.load(run)
    proba, slots = clf.predict_proba(TEXTS)["intent"], clf.predict(TEXTS)["slots"]
    assert eight.wait(600) == 0, eight.log.read_text()[-4000:]
    np.testing.assert_allclose(np.load(tmp_path / "eight.npz")["intent"], proba, rtol=1e-4)
    assert eight.log.read_text().splitlines()[-1] == str(slots)


@pytest.mark.slow
def test_the_examples_of_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_module, evaluate_module = (importlib.import_module(f"jaxclf.{n}") for n in COMMANDS)
    classifier = api.LoadedClassifier
    documented = [
        *(train_module.run, evaluate_module.run, api.load, classifier, classifier.predict),
        *(classifier.predict_proba, classifier.predictions, jaxclf.TextClassifier),
        *(jaxclf.TextClassifier.fit, jaxclf.TextClassifier.predict, jaxclf.TextClassifier.save),
        jaxclf.TextClassifier.load,
    ]
    finder = doctest.DocTestFinder(recurse=False)
    for each in documented:
        (example,) = finder.find(each, each.__qualname__, globs={"jaxclf": jaxclf}, module=False)
        assert example.examples, f"{each.__qualname__} has no example"
        shown = io.StringIO()
        with logs.quiet():
            result = doctest.DocTestRunner().run(example, out=shown.write)
        assert not result.failed, shown.getvalue()


# Hugging Face's format ----------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path / "cache"))


def export(run: Path, destination: Path, **options) -> Path:
    hf_export.export(run, destination, progress=lambda _: None, **options)
    return destination


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("task", ["intent", "slots"])
def test_an_exported_head_labels_as_the_run_does(encoder, tmp_path, task):
    clf = jaxclf.load(export(encoder, tmp_path / "hf", task=task))
    run = jaxclf.load(encoder)
    (found,) = clf.tasks
    assert found in run.tasks
    if task == "intent":
        assert clf.predict(TEXTS).tolist() == run.predict(TEXTS)["intent"].tolist()
        assert clf.opened.classifier.temperatures == run.opened.classifier.temperatures != {}
        expected = run.predict_proba(TEXTS)["intent"]
        np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, rtol=1e-5)
    else:
        assert clf.predict(TEXTS) == run.predict(TEXTS)["slots"]
        with pytest.raises(InputError, match="probabilities are of classes"):
            clf.predict_proba(TEXTS)


@pytest.mark.usefixtures("own_cache")
def test_an_exported_decoder_keeps_prompt_and_labels(decoder, tmp_path):
    exported = export(decoder, tmp_path / "hf")
    overrides = {"eval.decoding": "score"}
    found = jaxclf.load(exported, overrides=overrides).predict_proba(TEXTS)["intent"]
    expected = jaxclf.load(decoder, overrides=overrides).predict_proba(TEXTS)["intent"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    own = exported / "jaxclf.json"
    whole = own.read_text("utf-8")
    own.write_text(whole.replace("play_music", "pley_music", 1), "utf-8")
    with pytest.raises(ArtifactError, match=r"jaxclf\.json: corrupt"):
        jaxclf.load(exported)
    (exported / "jaxclf.json").unlink()
    with pytest.raises(InputError, match="nothing there says which labels"):
        jaxclf.load(exported)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, ["no", "yes", "maybe"]),
        ("multi_label_classification", ["sun", "rain"]),
        (None, ["LABEL_0"]),
        ("tokens", ["O", "B-time", "I-time", "B-place", "I-place"]),
        ("tokens", ["I-place", "B-time", "B-place", "O", "I-time"]),
    ],
    ids=["classes", "several", "number", "slots", "slots in another order"],
)
def test_a_classifier_of_transformers_gives_its_own_scores(tmp_path, problem, labels):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.train(TEXTS * 3, 300)
    tokenizer.save(tmp_path / "theirs")
    config = transformers.DistilBertConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        hidden_dim=24,
        n_layers=2,
        n_heads=2,
        pad_token_id=2,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        problem_type=None if problem == "tokens" else problem,
    )
    kind = "Token" if problem == "tokens" else "Sequence"
    torch.manual_seed(0)
    theirs = getattr(transformers, f"DistilBertFor{kind}Classification")(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        rows = [theirs(**reader(text, return_tensors="pt")).logits[0] for text in TEXTS]
    clf = jaxclf.load(tmp_path / "theirs")
    if problem == "tokens":
        (task,) = clf.tasks
        assert set(task.labels) == {"time", "place"}
        first = reader(TEXTS[0], return_offsets_mapping=True)["offset_mapping"]
        tags = [labels[index] for index in rows[0].argmax(dim=-1)]
        starts = [
            number
            for number, (start, end) in enumerate(first)
            if end > start and (start == 0 or TEXTS[0][start] == " ")
        ]
        expected = [tags[start] for start in starts]
        assert clf.predict(TEXTS[0]) == list(zip(TEXTS[0].split(), expected, strict=True))
        return
    logits = torch.stack(rows).numpy()
    if len(labels) == 1:
        np.testing.assert_allclose(clf.predict(TEXTS), logits[:, 0], atol=1e-5)
        assert clf.classes_.tolist() == []
        return
    assert clf.classes_.tolist() == labels
    expected = torch.stack(rows).sigmoid() if problem else torch.stack(rows).softmax(dim=-1)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected.numpy(), atol=1e-5)
    if problem:
        chosen = [tuple(n for n, p in zip(labels, row, strict=True) if p > 0.5) for row in expected]
        assert clf.predict(TEXTS).tolist() == chosen
    else:
        assert clf.predict(TEXTS).tolist() == [labels[n] for n in logits.argmax(axis=-1)]


# Runs and their reports ---------------------------------------------------------------------------


def test_training_and_evaluation_give_reports(tmp_path):
    smoke = str(test_training.ROOT / "configs/minilm_massive.py:smoke")
    fields = {"data.name": "builtin", "train.steps": 1, "train.max_length": 32}
    found = jaxclf.train(smoke, tmp_path / "run", fields)
    assert found["train"]["steps"] == 1
    assert found["config"]["train"]["max_length"] == 32
    assert found.folder == tmp_path / "run"
    assert repr(found).startswith(f"<Report of {tmp_path / 'run'}, test: intent accuracy ")
    shown = found._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "&lt;!doctype html&gt;" in shown.lower()

    again = jaxclf.evaluate(tmp_path / "run", tmp_path / "again")
    assert again["eval"] == found["eval"]
    assert (tmp_path / "again" / "report.html").is_file()
    before = sorted(tmp_path.rglob("*"))
    of_dev = jaxclf.evaluate(tmp_path / "run", split="dev")
    assert of_dev["eval_split"] == "dev"
    assert of_dev.page.lower().startswith("<!doctype html>")
    assert sorted(tmp_path.rglob("*")) == before

    config = loading.load(smoke)
    with pytest.raises(InputError, match=r"Did you mean '--config.train.steps'"):
        jaxclf.train(config, tmp_path / "other", {"train.stepps": 1})
    assert not (tmp_path / "other").exists()
    assert config == loading.load(smoke)  # what was given stays as it is
