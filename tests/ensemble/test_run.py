"""Whole runs of the attention ensemble on small texts: what they make, keep, resume and refuse."""

import gzip
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclf
from jaxclf import report
from jaxclf.checkpoint.model_dir import resolve
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.config.defaults import default
from jaxclf.core import streams
from jaxclf.core.errors import ArtifactError, InputError, NonFiniteError, Preempted, StorageError
from jaxclf.data.tasks import Record
from jaxclf.distributed.preemption import Interrupts
from jaxclf.ensemble import features, fitting, modules, opening, run
from jaxclf.ensemble.attens import Combiner
from jaxclf.ensemble.fitting import Data
from jaxclf.ensemble.run import train_ensemble
from jaxclf.runs import training
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.labelling import label_file
from jaxclf.training.losses import Term

ROOT = Path(__file__).parents[2]
WORDS = "the a good bad film cat sat mat was is not very dull fine one two".split()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Small files of five data sets with the layout of the real ones."""
    folder, random = tmp_path_factory.mktemp("root"), np.random.default_rng(0)

    def text():
        return " ".join(random.choice(WORDS, random.integers(3, 9)))

    for name in ("cola", "sst2", "rte", "stsb"):
        rows = []
        for split, count in (("train", 12), ("dev", 7), ("test", 3)):
            for number in range(count):
                label = None if split == "test" else number % 2
                if name == "stsb" and label is not None:
                    label = round(5 * number / count, 2)
                texts = {"sentence": text()}
                if name in ("rte", "stsb"):
                    texts = {"sentence1": text(), "sentence2": text()}
                rows.append({"split": split, **texts, "label": label})
        write(folder / f"glue/{name}.jsonl.gz", rows)
    for split, count in (("train", 12), ("test", 7)):
        kinds = [("NUM", "NUM:date"), ("HUM", "HUM:ind"), ("LOC", "LOC:city")]
        rows = [
            {"label": kinds[n % 3][0], "fine_label": kinds[n % 3][1], "text": text()}
            for n in range(count)
        ]
        write(folder / f"trec/{split}.jsonl.gz", rows)
    return folder


def tiny(root, *overrides, name="attens_minilm.py:smoke"):
    return loading.load(
        str(ROOT / "configs" / name),
        [
            f"data.root={root}",
            "data.check_counts=false",
            "attens.modules=('glue/cola','glue/rte','glue/sst2')",
            "attens.learning_rate=0.01",
            "train.learning_rate=0.01",
            "train.steps=2",
            "train.max_length=32",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "rte"
    train_ensemble(tiny(root, "attens.sweep=(2,)"), workdir)
    return workdir


def report_of(workdir):
    return json.loads((workdir / "report.json").read_text())


def test_a_run_makes_adapters_features_combiners_and_a_report(finished):
    report = report_of(finished)
    facts = report["attens"]["rte"]
    assert set(facts["methods"]) == {"Model", "FFN", "FT_LoRA", "AttEns"}
    assert facts["methods"]["AttEns"] == report["eval"]["rte"]
    own = report_of(finished / "adapters/rte")
    assert facts["methods"]["FT_LoRA"] == own["eval"]["rte"]
    assert facts["modules"] == ["cola", "rte", "sst2"]
    assert set(facts["by_k"]) == {"2", "3"}
    weights = np.array(facts["attention"])
    assert weights.shape == (3, 3)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert report["eval_split"] == "dev"
    assert report["eval"]["rte"]["support"] == 7
    assert len((finished / "predictions.jsonl").read_text().splitlines()) == 7
    page = (finished / "report.html").read_text()
    for title in ("Methods", "Attention over modules", "Number of modules", "Learning curves"):
        assert f"<h2>{title}</h2>" in page
    for part in ("adapters/cola", "adapters/rte", "adapters/sst2"):
        assert (finished / part / "report.html").is_file()
    for split in ("train", "dev"):
        names = {path.name for path in (finished / "features/rte" / split).glob("*.npy")}
        assert names == {"base.npy", "cola.npy", "rte.npy", "sst2.npy"}


def test_the_same_command_makes_nothing_again(finished, root, monkeypatch):
    before = report_of(finished)

    def refuse(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(modules, "train", refuse)
    monkeypatch.setattr(fitting, "make_steps", lambda *_: refuse)
    monkeypatch.setattr(run.features, "make_pass", refuse)
    again = train_ensemble(tiny(root, "attens.sweep=(2,)"), finished)
    assert again["eval"] == before["eval"]
    assert again["attens"]["rte"]["attention"] == before["attens"]["rte"]["attention"]


def test_evaluate_and_predict_agree_with_the_run(finished, tmp_path):
    opened = opening.open_any(finished, "best")
    again = evaluate(opened, tmp_path / "again")
    assert again["eval"] == report_of(finished)["eval"]
    made = [report.read(folder)["provenance"] for folder in (finished, tmp_path / "again")]
    assert made[0]["checkpoint"] == made[1]["checkpoint"]
    assert made[0]["data"] == made[1]["data"]
    rows = [
        [json.loads(line) for line in (folder / "predictions.jsonl").open()]
        for folder in (finished, tmp_path / "again")
    ]
    for pair in zip(*rows, strict=True):
        assert pair[0]["predicted"] == pair[1]["predicted"]
        scores = [list(row["scores"]["rte"].values()) for row in pair]
        np.testing.assert_allclose(*scores, atol=1e-5)
    texts = [Record("1", "the cat sat", {}, "one cat"), Record("2", "dull film", {}, "a film")]
    label_file(opened, texts, tmp_path / "labels.jsonl", batch_size=2)
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").open()]
    assert [row["id"] for row in labels] == ["1", "2"]
    assert {row["predicted"]["rte"] for row in labels} <= {"entailment", "not_entailment"}
    in_python = jaxclf.load(finished).predict([(record.text, record.pair) for record in texts])
    assert in_python.tolist() == [row["predicted"]["rte"] for row in labels]


def test_an_unfinished_ensemble_labels_nothing(finished, tmp_path):
    for name in ("config.json", "task.json"):
        shutil.copy(finished / name, tmp_path / name)
    with pytest.raises(InputError, match="the ensemble is not finished; run the command"):
        opening.open_ensemble(tmp_path)


def test_another_config_is_refused(finished, root):
    with pytest.raises(InputError, match=r"holds a run with another config \(attens.over"):
        train_ensemble(tiny(root, "attens.sweep=(2,)", "attens.over=max"), finished)


def test_several_targets_share_modules_and_tasks_share_features(finished, root, tmp_path):
    config = tiny(
        root,
        f"attens.adapters={finished / 'adapters'}",
        f"model.checkpoint={finished / 'base'}",
        "model.name=",
        "attens.targets=('glue/stsb','trec')",
        "attens.baselines=false",
        "attens.combine=concat",
        "attens.norms=shared",
    )
    base = resolve(finished / "base")
    report = train_ensemble(config, tmp_path / "run", base)
    assert set(report["eval"]) == {"stsb", "coarse", "fine", "trec joint"}
    assert {"pearson", "spearman"} <= set(report["eval"]["stsb"])
    assert report["eval_split"] == "dev and test"
    assert {path.name for path in (tmp_path / "run/features").iterdir()} == {"stsb", "trec"}
    assert not (tmp_path / "run/adapters").exists()
    rows = [json.loads(x) for x in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [set(row["gold"]) for row in rows] == 7 * [{"stsb"}] + 7 * [{"coarse", "fine"}]


def test_adapters_of_another_base_are_refused(finished, root, tmp_path):
    config = tiny(root, f"attens.adapters={finished / 'adapters'}", "seed=1")
    with pytest.raises(ArtifactError, match=r"adapters were trained on a base with the finger"):
        train_ensemble(config, tmp_path)


def test_modules_that_are_not_combined_are_not_trained(finished, root, tmp_path, monkeypatch):
    """Of three with k=2: the target's own and the first other one."""
    asked = []

    def stop(config, folder, base):
        asked.append(folder.name)

    monkeypatch.setattr(modules, "train", stop)
    common = (f"model.checkpoint={finished / 'base'}", "model.name=", "attens.k=2")
    with pytest.raises(ArtifactError, match="no checkpoint here"):
        train_ensemble(tiny(root, *common), tmp_path, resolve(finished / "base"))
    assert asked == ["cola", "rte"]


def test_data_of_a_later_module_that_are_not_there_are_told_before_anything_is_trained(
    finished, root, tmp_path, monkeypatch
):
    monkeypatch.setattr(modules, "train", pytest.fail)
    workdir, base = tmp_path / "run", resolve(finished / "base")
    named = "attens.modules=('glue/cola','glue/rte','glue/mrpc')"
    common = (f"model.checkpoint={finished / 'base'}", "model.name=", named)
    with pytest.raises(InputError, match="mrpc"):
        train_ensemble(tiny(root, *common), workdir, base)
    assert not workdir.exists()


def test_a_disk_without_room_is_told_before(finished, root, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage)
    adapters = f"attens.adapters={finished / 'adapters'}"
    common = (adapters, f"model.checkpoint={finished / 'base'}", "model.name=")
    with pytest.raises(StorageError, match=r"features of rte train: 12 texts, .* of 0.0 free"):
        train_ensemble(tiny(root, *common), tmp_path, resolve(finished / "base"))


@pytest.mark.slow
def test_adapters_of_peft_are_taken_as_they_are(finished, root, tmp_path):
    pytest.importorskip("peft")
    from jaxclf.convert import peft_export, peft_import

    given = tmp_path / "given"
    for name in ("cola", "rte", "sst2"):
        peft_export.export(finished / "adapters" / name, given / name)
    config = tiny(
        root,
        f"attens.adapters={given}",
        f"model.checkpoint={finished / 'base'}",
        "model.name=",
    )
    base = resolve(finished / "base")
    report = train_ensemble(config, tmp_path / "run", base, peft_import.convert)
    for name in ("cola", "rte", "sst2"):
        ours, theirs = (
            np.load(folder / f"features/rte/dev/{name}.npy")
            for folder in (finished, tmp_path / "run")
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert "FT_LoRA" not in report["attens"]["rte"]["methods"]


@pytest.mark.slow
def test_a_decoder_as_base(root, tmp_path):
    config = tiny(
        root,
        "model.name=llama_smoke",
        "data.name=glue/sst2",
        "attens.modules=('glue/cola','glue/sst2')",
        "attens.tokens=last",
        "train.max_length=256",
        "eval.max_new_tokens=4",
    )
    report = train_ensemble(config, tmp_path)
    assert list(report["attens"]["sst2"]["methods"]) == ["Model", "FFN", "FT_LoRA", "AttEns"]
    assert report["eval"]["sst2"]["support"] == 7


@pytest.mark.slow
def test_modules_of_a_decoder_that_are_tuned_with_heads(root, tmp_path):
    """They read bare texts, and pairs, as their combination does; each adapter makes a difference.

    A text's vector is that of its last token, whatever stands after it in a batch.
    """
    config = tiny(
        root,
        "model.name=llama_smoke",
        "model.output=head",
        "attens.modules=('glue/cola','glue/rte')",
        "attens.tokens=last",
    )
    report = train_ensemble(config, tmp_path)
    facts = report["attens"]["rte"]
    assert list(facts["methods"]) == ["Model", "FFN", "FT_LoRA", "AttEns"]
    own = report_of(tmp_path / "adapters/rte")
    assert own["model"]["output"] == "head"
    assert facts["methods"]["FT_LoRA"] == own["eval"]["rte"]
    vectors = {
        name: np.load(tmp_path / f"features/rte/dev/{name}.npy") for name in ("base", "cola", "rte")
    }
    for name, other in (("base", "cola"), ("cola", "rte"), ("rte", "base")):
        assert np.abs(vectors[name] - vectors[other]).max() > 1e-4

    opened = opening.open_any(tmp_path, "best")
    assert evaluate(opened, tmp_path / "again")["eval"] == report["eval"]
    pair = Record("0", "the cat", {}, "a mat was fine")
    many = [pair, Record("1", " ".join(WORDS), {}, " ".join(WORDS))]
    alone, among = (opened.classifier.predict(each, 2)[0].scores for each in ([pair], many))
    assert alone["rte"] == pytest.approx(among["rte"], abs=1e-6)
    # A module's vector is what the head of its own run read.
    single = open_run(tmp_path / "adapters/rte").classifier
    records = modules.load_data(config, "glue/rte").splits["dev"]
    found = single.predict(records, 4, tempered=False)
    scores = vectors["rte"] @ np.asarray(single.params["heads"]["rte"]["out"]["kernel"])
    expected = np.array([[*(each.scores or {})["rte"].values()] for each in found])
    np.testing.assert_allclose(jax.nn.softmax(scores), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attens.heads=5"], "attens.heads is 5; expected a divisor .* 32"),
        (["attens.padding=9000"], "attens.padding lets texts have 9,000 tokens; .* positions for"),
        (["train.max_length=9000"], "train.max_length lets texts have 9,000 tokens"),
        (["attens.k=4"], "asks for 4 modules; attens.modules names 3"),
        (["attens.sweep=(9,)"], "asks for 9 modules"),
        (["attens.modules=('glue/rte','glue/rte')"], "names a module twice"),
        (["data.name=builtin"], "task slots is of kind slots"),
        (["attens.targets=('glue/xyz',)"], "data.name is 'glue/xyz'"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(overrides, message, finished, root, tmp_path):
    common = (f"model.checkpoint={finished / 'base'}", "model.name=")
    base = resolve(finished / "base")
    with pytest.raises(InputError, match=message):
        train_ensemble(tiny(root, *common, *overrides), tmp_path, base)


def test_a_whole_model_is_no_module(finished, root, tmp_path):
    shutil.copytree(finished / "adapters", tmp_path / "adapters")
    shutil.rmtree(tmp_path / "adapters/cola")
    shutil.copytree(finished / "base", tmp_path / "adapters/cola")
    (tmp_path / "adapters/cola/report.json").write_text("{}")
    config = tiny(
        root,
        f"attens.adapters={tmp_path / 'adapters'}",
        f"model.checkpoint={finished / 'base'}",
        "model.name=",
    )
    base = resolve(finished / "base")
    with pytest.raises(InputError, match="cola holds a whole model; attens.adapters expects"):
        train_ensemble(config, tmp_path / "run", base)


# Training on features -----------------------------------------------------------------------------

COMBINER = Combiner(16, 3)


def some_data(count=21):
    random = np.random.default_rng(0)
    vectors = [random.normal(size=(count, 16)).astype(np.float32) for _ in range(4)]
    return Data(vectors, np.argmax(vectors[1][:, :3] + vectors[2][:, :3], axis=1).astype(np.int32))


def settings(**fields):
    config = default()
    with config.unlocked():
        config.attens.update({"epochs": 6, "batch_size": 4, "learning_rate": 0.01} | fields)
    return config


def fit(directory, config, interrupts=None, data=None):
    head = fitting.combiner_head(COMBINER)
    interrupts = interrupts or Interrupts()
    data = data or some_data()
    return fitting.fit(head, Term(), data, config, 3, directory, interrupts)


def test_training_lowers_the_loss_and_tells_each_epoch(tmp_path):
    fit(tmp_path, settings(epochs=30))
    losses = [json.loads(x)["train/loss"] for x in (tmp_path / "metrics.jsonl").open()]
    assert len(losses) == 30
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("chunk", "epochs"),
    [
        (64, "1 2 3"),
        (4, "0.6667 1 1.667 2 2.667 3"),
        (1, "0.1667 0.3333 0.5 0.6667 0.8333 1"),
    ],
)
def test_a_run_that_was_stopped_ends_as_an_unbroken_one(tmp_path, monkeypatch, chunk, epochs):
    """After every `chunk` of the six steps of an epoch, or after the epoch."""
    monkeypatch.setattr(fitting, "_CHUNK", chunk)
    config = settings(epochs=3)
    whole = fit(tmp_path / "whole/one", config)
    interrupts = Interrupts()
    interrupts.requested = True
    for epoch in epochs.split():
        with pytest.raises(Preempted, match=f"saved epoch {epoch} of 3 of one"):
            fit(tmp_path / "cut/one", config, interrupts)
    again = fit(tmp_path / "cut/one", config)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    for name in ("metrics.jsonl", "checkpoints/18/meta/meta.json"):
        texts = [(tmp_path / folder / "one" / name).read_text() for folder in ("cut", "whole")]
        assert texts[0] == texts[1]


def test_a_combiner_of_another_order_of_texts_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_VERSION", 1)
        fit(tmp_path, settings())
    with pytest.raises(ArtifactError, match="saved by a version of jaxclf with another order"):
        fit(tmp_path, settings())


def test_combiners_of_one_seed_start_apart(tmp_path):
    head = fitting.combiner_head(COMBINER)
    starts = [fitting.random_start(head, 0, name) for name in ("rte-2", "rte-3")]
    assert not np.array_equal(*(start["base"]["kernel"] for start in starts))


def files(folder: Path) -> dict[str, str]:
    """What every file says of itself where it has no times in it, by path."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "report.json":
            report = json.loads(path.read_text())
            kept[name] = json.dumps([report["eval"], report.get("attens"), report["model"]])
        elif path.is_file() and (path.suffix in (".jsonl", ".npy") or path.name == "meta.json"):
            kept[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return kept


TWO = ("attens.modules=('glue/cola','glue/rte')", "attens.epochs=2", "train.steps=3")


@pytest.fixture(scope="module")
def moved(root, tmp_path_factory) -> Path:
    """An ensemble that was stopped in a module, its features and its combiner, and moved between.

    It then stands where its parts never were.
    """
    config = tiny(root, *TWO)
    folder = tmp_path_factory.mktemp("moved") / "0"
    for number, patched in enumerate(
        [(training._Run, "count"), (features, "_hash"), (fitting, "make_steps"), None]
    ):
        with pytest.MonkeyPatch.context() as patch:
            if patched is None:
                train_ensemble(config, folder)
                return folder
            real = getattr(*patched)

            def stopping(*arguments, real=real):
                os.kill(os.getpid(), signal.SIGTERM)
                return real(*arguments)

            patch.setattr(*patched, stopping)
            with pytest.raises(Preempted):
                train_ensemble(config, folder)
        folder = folder.rename(folder.with_name(str(number + 1)))
    raise AssertionError


@pytest.mark.slow
def test_an_ensemble_that_was_stopped_and_moved_ends_as_an_unbroken_one(moved, root, tmp_path):
    config = tiny(root, *TWO)
    train_ensemble(config, tmp_path)
    assert files(moved) == files(tmp_path)


@pytest.mark.slow
def test_a_moved_ensemble_answers_and_so_do_its_modules(moved, tmp_path):
    before = report_of(moved)["eval"]
    folder = shutil.copytree(moved, tmp_path / "elsewhere")
    gone = moved.rename(moved.with_name("gone"))
    try:
        for path in folder.rglob("*.json"):
            assert str(moved.parent) not in path.read_text(), path
        assert evaluate(opening.open_any(folder, "best"), tmp_path / "all")["eval"] == before
        own = evaluate(opening.open_any(folder / "adapters/rte", "best"), tmp_path / "one")
        assert own["eval"] == report_of(folder / "adapters/rte")["eval"]
    finally:
        gone.rename(moved)


def test_features_that_are_not_finite_stop_it(tmp_path):
    data = some_data()
    data.vectors[2][5, 3] = np.nan
    with pytest.raises(NonFiniteError, match="epoch 1: loss nan"):
        fit(tmp_path, settings(), data=data)


def test_every_text_counts_once_an_epoch_and_fillers_never(tmp_path):
    """21 texts in steps of 4: the last step has one text and three fillers."""
    head, data = fitting.combiner_head(COMBINER), some_data()
    config = settings(epochs=1, learning_rate=0.0)
    params = fit(tmp_path, config)
    scores = fitting.apply(lambda rows: head.scores(params, rows), data, 8)
    order = streams.generator(3, "order", tmp_path.name, 0).permutation(len(data))
    losses = np.asarray(
        fitting.place_losses(
            Term(), jnp.asarray(scores[order][:, None]), data.labels[order][:, None]
        )
    )[:, 0]
    wanted = np.mean([losses[start : start + 4].mean() for start in range(0, 21, 4)])
    told = json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"]
    np.testing.assert_allclose(told, wanted, atol=1e-6)


def test_each_epoch_has_an_order_of_its_own(tmp_path, monkeypatch):
    asked = []
    rows = Data.rows

    def spy(data, indices):
        asked.append(indices[: len(data)].tolist())
        return rows(data, indices)

    monkeypatch.setattr(Data, "rows", spy)
    fit(tmp_path, settings(epochs=3))
    assert all(sorted(order) == list(range(21)) for order in asked)
    assert len({tuple(order) for order in asked}) == 3
