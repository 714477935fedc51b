"""The file of answers: what is left of it where nothing was asked."""

from jaxclf.remote.answer_log import Ledger


def test_a_file_that_was_only_looked_into_is_not_left(tmp_path):
    with Ledger(tmp_path / "run/answers.jsonl") as ledger:
        assert not [*ledger]
    assert not [*(tmp_path / "run").iterdir()]
