"""A workdir belongs to one run: what is refused, and what a failed command leaves."""

import json
import shutil
from pathlib import Path

import pytest

from jaxclf.checkpoint import model_files
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading, renames
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.tasks import Record
from jaxclf.report import read_predictions
from jaxclf.runs import claims
from jaxclf.runs.training import train
from tests.runs.test_training import tiny

CONFIG = Path(__file__).parents[2] / "configs/my_task.py"


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(labels: str = "ab", count: int = 12) -> list[dict]:
    return [
        {
            "text": f"word {number} of {labels[number % len(labels)]}",
            "topic": labels[number % len(labels)],
        }
        for number in range(count)
    ]


def mine(path: Path, *overrides: str):
    """A small encoder on a file of records."""
    files = [f"data.{split}={path}" for split in ("train", "dev", "test")]
    words = ["data.label=topic", "model.name=encoder_smoke", "train.steps=2", "train.max_length=16"]
    words += ["data.limit=0", "eval.decoding=free", "train.batch_size=4", "train.save_steps=1"]
    return loading.load(f"{CONFIG}:smoke", [*files, *words, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run, the records beside it."""
    folder = tmp_path_factory.mktemp("claims")
    train(mine(write(folder, rows())), folder / "run")
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["report.json", "adapters", "features", "combiners"])
def test_whatever_was_computed_makes_a_run(name, tmp_path):
    assert not claims.is_begun(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").touch()
    assert not claims.is_begun(tmp_path)
    (tmp_path / name).mkdir()
    assert claims.is_begun(tmp_path)


def test_a_saved_step_makes_a_run(tmp_path):
    (tmp_path / "checkpoints/3.partial").mkdir(parents=True)
    assert not claims.is_begun(tmp_path)
    (tmp_path / "checkpoints/3").mkdir()
    assert claims.is_begun(tmp_path)


def test_a_command_that_fails_on_its_data_leaves_nothing_behind(tmp_path):
    path = write(tmp_path, rows())
    with pytest.raises(InputError, match="topik"):
        train(mine(path, "data.label=topik"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(mine(path), tmp_path / "run")


def test_a_run_that_computed_nothing_may_be_begun_anew(tmp_path, monkeypatch):
    path = write(tmp_path, rows())
    with monkeypatch.context() as patch:
        patch.setattr("jaxclf.runs.training.init_state", _fails)
        with pytest.raises(RuntimeError, match="device"):
            train(mine(path), tmp_path / "run")
    assert (tmp_path / "run/config.json").is_file()
    write(tmp_path, rows("xyz"))
    train(mine(path, "seed=4", "train.max_length=24"), tmp_path / "run")
    recipe = open_run(tmp_path / "run").classifier.recipe
    assert recipe.tasks[0].labels == ("x", "y", "z")
    assert recipe.max_length == 24


def test_nothing_stays_in_the_way_of_the_next_where_a_claim_was_cut_short_twice(
    tmp_path, monkeypatch
):
    """Killed before its first checkpoint, and again between clearing and claiming the folder."""
    path = write(tmp_path, rows())
    for name in ("jaxclf.runs.training._Run.fit", "jaxclf.runs.claims.claim_for"):
        with monkeypatch.context() as patch:
            patch.setattr(name, _fails)
            with pytest.raises(RuntimeError, match="device"):
                train(mine(path), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
    train(mine(path), tmp_path / "run")


def _fails(*_):
    raise RuntimeError("no device")


@pytest.mark.parametrize(
    ("changed", "split"),
    [
        (rows("abc"), "train"),  # a class more
        (rows("ac"), "train"),  # a class renamed
        (rows()[1:], "train"),
        ([*rows(), rows()[0]], "train"),
        (rows()[::-1], "train"),
    ],
)
def test_a_run_stays_with_its_records(finished, run, changed, split):
    path = finished / "records.jsonl"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    try:
        write(finished, changed)
        with pytest.raises(InputError, match=rf"other records: those of .*{split}"):
            train(mine(path), run)
    finally:
        write(finished, rows())
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    train(mine(path), run)


def test_another_config_is_refused_and_a_free_field_taken(finished, run):
    path = finished / "records.jsonl"
    with pytest.raises(InputError, match=r"config \(train.max_grad_norm: 1.0 there, 0.5 now"):
        train(mine(path, "train.max_grad_norm=0.5"), run)
    train(mine(path, "eval.batch_size=3"), run)
    assert open_run(run).config.eval.batch_size == 3


def test_a_workdir_stays_its_runs_whatever_its_fields_were_called(run):
    path = run / "config.json"
    config = loading.read(path)
    fields = json.loads(path.read_text())
    for old, new in renames.RENAMED.items():
        group, _, name = old.partition(".")
        fields[group][name] = fields[group].pop(new.partition(".")[2])
    path.write_text(json.dumps(fields))
    (run / "seal.json").unlink()  # which is younger than those names
    claims.check(run, config)
    with pytest.raises(InputError, match="another"):
        claims.check(run, tiny())


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("task.json", '"a"', '"c"'),
        ("model.json", "1e-05", "1e-06"),
        ("config.json", '"normalize": "none"', '"normalize": "length"'),
        ("temperature.json", '"step": 2', '"step": 2 '),
        ("data.json", '"train"', '"tRain"'),
        ("tokenizer/tokenizer.json", '"word', '"wort'),
    ],
)
def test_no_file_that_labels_depend_on_changes_unseen(finished, run, name, old, new):
    path = run / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ArtifactError, match=f"{name}: altered"):
        open_run(run)
    with pytest.raises(ArtifactError, match=f"{name}: altered"):
        train(mine(finished / "records.jsonl"), run)


def test_a_run_goes_on_whose_model_was_written_by_an_older_version(finished, run):
    fields = json.loads((run / "model.json").read_text())
    assert fields.pop("prefix") == 0  # which that version did not know
    model_files.replace(run, {"model.json": json.dumps(fields)})
    train(mine(finished / "records.jsonl"), run)
    assert json.loads((run / "model.json").read_text())["prefix"] == 0


def test_a_folder_of_something_else_is_no_workdir(finished, tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params/manifest.json").write_text("{}")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json, params and no config\.json"):
        train(mine(finished / "records.jsonl"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "params"]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # Hugging Face's
    with pytest.raises(InputError, match=r"config\.json is of no run"):
        train(mine(finished / "records.jsonl"), tmp_path)
    assert (tmp_path / "model.json").is_file()
    assert (tmp_path / "config.json").is_file()


def test_an_empty_folder_of_ours_is_in_nobodys_way(finished, tmp_path):
    (tmp_path / "tensorboard").mkdir()  # a disk of its own, say
    claims.check(tmp_path, mine(finished / "records.jsonl"))


def test_the_best_checkpoint_answers_at_the_end(finished, tmp_path, monkeypatch):
    path = finished / "records.jsonl"
    words = ["train.steps=4", "train.eval_steps=2", "train.learning_rate=0.05", "train.keep=4"]
    monkeypatch.setattr(
        "jaxclf.runs.training._Run.evaluate_dev", lambda self, logger: {"score": -self.step}
    )
    report = train(mine(path, *words), tmp_path / "run")
    assert report["train"]["best_step"] == 2
    rows = read_predictions(tmp_path / "run/predictions.jsonl")
    opened = {step: open_run(tmp_path / "run", step) for step in ("best", "last")}
    temperatures = opened["best"].classifier.temperatures
    answers = {}
    for name, each in opened.items():
        classifier = each.classifier.with_params(each.classifier.params, None, temperatures)
        records = [Record(row.id, row.text, {}) for row in rows]
        answers[name] = [found.scores for found in classifier.predict(records, 4)]
    scores = [row.scores["label"] for row in rows]
    for found, best, last in zip(scores, answers["best"], answers["last"], strict=True):
        assert found == pytest.approx(best["label"], rel=1e-4)
        assert found != pytest.approx(last["label"], rel=1e-2)
