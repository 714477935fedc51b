"""What commands ask of the compiler, and what a user's own settings stand against."""

import os

import pytest

from jaxclf.core import compiler


@pytest.mark.parametrize("own", [None, "", "--xla_mine=true"])
def test_a_user_s_own_arguments_of_libtpu_stand(own, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", own or "")  # and undone after the test
    if own is None:
        monkeypatch.delenv("LIBTPU_INIT_ARGS")
    compiler.for_tpus()
    found = os.environ["LIBTPU_INIT_ARGS"]
    if own is None:
        assert "--xla_tpu_enable_async_collective_fusion=true" in found.split()
    else:
        assert found == own
