"""The seal of the files that labels depend on: what changes is found, whatever is killed when."""

import json
import os
from pathlib import Path

import pytest

from jaxclf.checkpoint import model_files
from jaxclf.core import files
from jaxclf.core.errors import ArtifactError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("config.json", "task.json", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"name": "{name}"}}')
    (tmp_path / "metrics.jsonl").write_text("no label depends on it")
    model_files.seal(tmp_path)
    return tmp_path


def test_nothing_is_told_of_what_is_as_it_was(folder):
    model_files.check(folder)
    (folder / "metrics.jsonl").write_text("altered")
    (folder / "report.json").write_text("{}")
    model_files.check(folder)


def alter(path: Path) -> None:
    path.write_text(path.read_text().replace("name", "nane"))


def add(path: Path) -> None:
    path.with_name("added_tokens.json").write_text("{}")


@pytest.mark.parametrize("name", ["config.json", "task.json", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (alter, "altered"),
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(b""), "altered"),
    ],
)
def test_each_file_that_changed_is_named(folder, name, change, told):
    change(folder / name)
    with pytest.raises(ArtifactError, match=f"{name}: {told}"):
        model_files.check(folder)


def test_a_file_that_was_added_is_named(folder):
    (folder / "temperature.json").write_text("{}")
    add(folder / "tokenizer/tokenizer.json")
    with pytest.raises(ArtifactError) as told:
        model_files.check(folder)
    assert "temperature.json: added" in str(told.value)
    assert "tokenizer/added_tokens.json: added" in str(told.value)


def test_every_flipped_bit_of_the_seal_itself_is_told(folder):
    path = folder / model_files.FILE
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        if json.loads(whole) == _json(flipped):  # space that means nothing
            continue
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError, match="seal"):
            model_files.check(folder)


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_folder_of_an_older_version_is_taken_as_it_is(folder, capsys):
    (folder / model_files.FILE).unlink()
    model_files.check(folder)
    assert "not sealed" in capsys.readouterr().out
    model_files.replace(folder, {"temperature.json": "{}"})
    assert not model_files.is_sealed(folder)


def test_killed_at_any_moment_of_a_replacement_the_folder_is_well(folder, monkeypatch):
    real, seen = os.replace, []
    contents = {"config.json": "new", "temperature.json": "first"}
    for last in range(5):
        before = (folder / "config.json").read_text()

        def replace(source, target, last=last, count=[0]):  # noqa: B006 - one for each round
            if count[0] == last:
                raise KeyboardInterrupt
            count[0] += 1
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", replace)
            try:
                model_files.replace(folder, contents)
            except KeyboardInterrupt:
                seen.append(last)
        model_files.check(folder)
        assert (folder / "config.json").read_text() in (before, "new")
    assert seen == [0, 1, 2, 3]
    assert (folder / "config.json").read_text() == "new"
    alter(folder / "task.json")
    with pytest.raises(ArtifactError, match="task"):
        model_files.check(folder)
