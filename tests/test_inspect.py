"""`jaxclf inspect`: what a person sees of files before anything is trained."""

import pytest

from jaxclf import inspect
from jaxclf.core.errors import InputError
from tests.data.test_sources import ROWS, delimited, write

TRAIN = [*ROWS, ROWS[0], ("WHERE is  Burma ? 0", "loc")]


@pytest.mark.parametrize("as_folder", [False, True])
def test_columns_classes_lengths_duplicates_and_leaks(tmp_path, capsys, as_folder):
    rows = [(text, label, "") for text, label in TRAIN]
    train = write(tmp_path / "train.csv", delimited(rows, ";", ("body", "kind", "")), "utf-16")
    test = write(
        tmp_path / "test.csv", delimited([*ROWS[:2], ("Why ?", "new")], ";", ("body", "kind"))
    )
    files = [str(tmp_path)] if as_folder else [str(train), "--test", str(test)]
    inspect.main([*files, "--config.data.label=kind"])
    said = capsys.readouterr().out
    for line in (
        "  'kind'  str, 4 different; 'LOC'",
        "records: 20 train, 3 test",
        "5 classes (task label); records of train, test",
        "  'LOC'           7          1   35.0%",
        "words a text of train: half up to ",
        "2 of 20 texts of train repeat one of it",
        "2 of 3 texts of test are in train, too: a leak",
        "encoding utf-16 (byte order mark), separator ';', text 'body' (data.text)",
        "classes that differ by case, spaces or accents alone: 'LOC', 'loc'",
        "1 of 3 records of test have a label that train lacks",
    ):
        assert line in said


def test_columns_are_shown_where_labels_cannot_be_told(tmp_path, capsys):
    path = write(tmp_path / "a.csv", "id,text\n1,what is it\n2,who is it\n")
    with pytest.raises(InputError, match=r"Set data\.label"):
        inspect.main([str(path)])
    assert "  'text'  str, 2 different; 'what is it'" in capsys.readouterr().out


def test_tokens_are_counted_by_the_tokenizer_that_is_named(tmp_path, capsys):
    from jaxclf.data.tokenizer import Tokenizer

    Tokenizer.train([text for text, _ in ROWS], 300).save(tmp_path / "tokenizer")
    path = write(tmp_path / "a.csv", delimited())
    inspect.main([str(path), "--tokenizer", str(tmp_path / "tokenizer")])
    assert f"tokens ({tmp_path}/tokenizer) a text of train: half up to " in capsys.readouterr().out
    with pytest.raises(InputError, match="no tokenizer at"):
        inspect.main([str(path), "--tokenizer", str(tmp_path / "none")])
