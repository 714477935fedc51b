"""The command `jaxclf`: it finds the other commands, whose help costs no heavy import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxclf
from jaxclf import __main__ as cli
from jaxclf.core.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent
# What takes long to import; ml_collections, which reads configs, does not.
HEAVY = (
    *("jax", "numpy", "flax", "optax", "orbax", "grain", "transformers", "tokenizers"),
    *("sklearn", "scipy", "matplotlib", "pyarrow", "rich", "tensorboard", "openai"),
)
MODULES = sorted(cli.COMMANDS.values())
CONVERSIONS = [f"conversion.{path.stem}" for path in (REPOSITORY / "conversion").glob("[!_]*.py")]


def python(*arguments: str) -> subprocess.CompletedProcess:
    """A fresh interpreter in the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )


def heavy_after(code: str) -> str:
    """What `code` has imported of HEAVY, in the order above."""
    done = python(
        "-c",
        f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', *(name for name in {HEAVY} if name in sys.modules))",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("heavy:").strip()


def test_every_command_is_listed_with_its_summary(capsys):
    cli.main([])
    without = capsys.readouterr().out
    cli.main(["--help"])
    assert capsys.readouterr().out == without
    lines = [line.split(maxsplit=1) for line in without.splitlines()]
    assert ["train", "Train, evaluate and report a classifier."] in lines
    for name in cli.COMMANDS:
        assert f"\n  {name} " in without


def test_listing_the_commands_imports_nothing_heavy():
    assert heavy_after("from jaxclf.__main__ import main; main(['--help'])") == ""


@pytest.mark.parametrize("module", [*MODULES, *CONVERSIONS])
def test_help_imports_nothing_heavy(module):
    assert heavy_after(f"import {module} as command; command.main(['--help'])") == ""


def test_the_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxclf {jaxclf.__version__}\n"


def test_the_conversions_are_a_group(capsys):
    cli.main(["convert"])
    listed = capsys.readouterr().out
    for name in ("from-hf", "to-hf", "from-peft", "to-peft"):
        assert f"  convert {name} " in listed
    assert "  train " not in listed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tarin"], "jaxclf tarin: no such command. Did you mean 'jaxclf train'?"),
        (["convert", "form-hf"], "Did you mean 'jaxclf convert from-hf'?"),
        (["convert", "--overwrite"], "jaxclf convert --overwrite: no such command"),
        (["from-hf", "a", "b"], "Did you mean 'jaxclf convert from-hf'?"),
        (["--config", "a.py"], "jaxclf --config: no such command. Commands: "),
    ],
)
def test_a_command_that_does_not_exist(words, message):
    with pytest.raises(InputError) as caught:
        cli.main(words)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_calls_itself_what_the_user_called_it(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: jaxclf {name} ")
    assert f"\njaxclf {name} " in text  # an example
    assert f"python -m {cli.COMMANDS[name]}" not in text


@pytest.mark.parametrize(
    "words",
    [
        "jaxclf.train",
        "jaxclf train",
        "jaxclf.convert.from_hf",
        "jaxclf convert from-hf",
        "conversion.from_hf",
    ],
)
def test_so_it_does_where_python_runs_a_module(words):
    text = python("-m", *words.split(), "--help").stdout
    assert text.startswith(f"usage: python -m {words} ")
    assert f"\npython -m {words} " in text


def test_options_and_exit_codes_are_those_of_the_command():
    words = ("train", "--config", "configs/quikstart.py", "--workdir", "unused")
    done = python("-m", "jaxclf", *words)
    assert done.returncode == 2
    assert "Did you mean 'configs/quickstart.py'?" in done.stderr
    assert python("-m", f"jaxclf.{words[0]}", *words[1:]).stderr == done.stderr


@pytest.mark.parametrize("module", [name.rpartition(".")[2] for name in CONVERSIONS])
def test_conversion_holds_the_same_commands(module):
    thin = __import__(f"conversion.{module}", fromlist=["main"])
    own = __import__(f"jaxclf.convert.{module}", fromlist=["main"])
    assert thin.main is own.main
