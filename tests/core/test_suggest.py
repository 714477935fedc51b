"""The names that a mistyped one is most like."""

import pytest

from jaxclf.core.suggest import did_you_mean, nearest, nearest_names

NAMES = ("cosine", "constant", "linear")


@pytest.mark.parametrize(
    ("name", "found"), [("cosin", "cosine"), ("linaer", "linear"), ("zebra", None), ("", None)]
)
def test_the_nearest_name(name, found):
    assert nearest(name, NAMES) == found
    assert did_you_mean(name, NAMES) == (f". Did you mean {found!r}?" if found else "")


def test_several_names_come_by_similarity_and_a_low_cutoff_takes_more():
    assert nearest_names("lama3", ("llama2", "llama3", "t5"), 2) == ["llama3", "llama2"]
    assert nearest("20NG", ("20ng", "massive"), cutoff=0.4) == "20ng"
    assert nearest("20NG", ("20ng", "massive")) is None
    assert nearest("x", iter(())) is None
