"""What commands ask of the compiler, and what a user's own settings stand against."""

import os
from pathlib import Path

import pytest

import jaxclf
from jaxclf import curve, evaluate, predict, prompt, reproduce, train
from jaxclf.config import loading
from jaxclf.core import compiler
from jaxclf.tables import definitions
from jaxclf.tables.runs import TableRun

CONFIG = str(Path(__file__).parents[2] / "configs/llama3_8b_massive.py:smoke")


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


def _table_run(folder: Path) -> TableRun:
    return TableRun(definitions.find("zhao3", smoke=True).runs[0], 0, folder)


class AskedError(Exception):
    """The compiler was asked."""


@pytest.mark.parametrize(
    "command",
    [
        lambda folder: train.run(CONFIG, folder),
        lambda folder: train.main(["--config", CONFIG, "--workdir", str(folder)]),
        lambda folder: prompt.main(["--config", f"{CONFIG},no_tuning", "--workdir", str(folder)]),
        lambda folder: curve.main(["--config", CONFIG, "--workdir", str(folder)]),
        lambda folder: evaluate.run("nowhere", folder),
        lambda folder: predict.main(
            [f"--checkpoint={folder}", f"--input={__file__}.txt", f"--output={folder / 'out'}"]
        ),
        lambda folder: jaxclf.load("nowhere"),
        lambda folder: reproduce.execute(_table_run(folder), loading.load(CONFIG)),
    ],
    ids=["train", "train's command", "prompt", "curve", "evaluate", "predict", "load", "reproduce"],
)
def test_every_command_that_computes_asks_the_compiler_first(command, monkeypatch, tmp_path):
    """Where it did not, all would be computed the same, only later."""

    def asked():
        raise AskedError

    monkeypatch.setattr(compiler, "configure", asked)
    monkeypatch.setattr("jaxclf.runs.labelling.read_texts", lambda *_, **__: [])
    with pytest.raises(AskedError):
        command(tmp_path)
    assert not [*tmp_path.glob("*.json")]
