"""Command lines of the pages: which ones a block of shell runs, and would they be accepted.

A block runs in a real bash whose PATH holds only stand-ins that note how they were called. So
quotes, loops and variables mean what they mean to a reader, and an unknown program fails.
"""

import argparse
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from jaxclf.config import defaults, loading, validation
from jaxclf.planning import hardware, plans
from jaxclf.tables import definitions
from tests.docs.pages import ROOT

LAUNCHERS = sorted(f"launch/{path.name}" for path in ROOT.glob("launch/*.sh"))
# Programs that are not ours: their options are their own.
FOREIGN = ("docker", "gcloud", "git", "kubectl", "pre-commit")
OURS = ("python", "pip", "jaxclf", "mkdocs")

Command = list[str]


class _Parsed(BaseException):
    """A parser accepted its arguments; nothing after it is to run."""

    def __init__(self, options: argparse.Namespace):
        self.options = options


def called(script: str, folder: Path) -> list[Command]:
    """The commands that a block of shell runs, each with its words; `folder` is empty before."""
    calls = folder / "calls"
    note = f'printf "%s\\0" "$name" "$@" >>{calls}; printf "\\036" >>{calls}\n'
    for name in (*FOREIGN, *OURS, *LAUNCHERS):
        path = folder / name if name in LAUNCHERS else folder / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\nname={name}\n{note}")
        path.chmod(0o755)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    done = subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=folder,
        env={"PATH": str(folder / "programs"), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    assert calls.exists(), f"{script}\nruns nothing that is known here"
    return [call.split("\0")[:-1] for call in calls.read_text("utf-8").split("\036")[:-1]]


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless the command would be accepted; nothing of it is run."""
    program, *words = command
    if program == "python":
        _check_python(words, monkeypatch)
    elif program == "jaxclf":
        _check_module(f"jaxclf.{words[0]}", words[1:])
    elif program == "pip":
        _check_pip(words)
    elif program == "mkdocs":
        assert words[0] in ("build", "serve")
        assert set(words[1:]) <= {"--strict"}
    elif program in LAUNCHERS:
        _check_launcher(program, words)
    for word in words:
        if re.match(r"(jaxclf|configs|benchmarks|launch|tests|docs)/[\w./-]+$", word):
            folder = ROOT / word
            # A picture that a command is about to draw needs its folder alone.
            assert folder.exists() or (command[-2] == "--plot" and folder.parent.is_dir()), word


def _check_python(words: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "-m":
        module, *rest = words[1:]
        if module in ("venv", "pytest"):
            return  # Python's own and pytest's; paths among the words are checked by the caller
        _check_module(module, rest)
    else:
        path = Path(words[0])
        assert path.parent == Path("benchmarks"), words
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        script = importlib.import_module(path.stem)
        if path.stem == "imports":  # which has no options
            assert not words[1:]
            return
        with mock.patch.object(sys, "argv", words):
            _options(lambda _: script.main(), words[1:])


def _check_module(module: str, words: Command) -> None:
    """A command of ours: its own parser, then its config, loaded and validated."""
    found = importlib.import_module(module)
    if not hasattr(found, "main"):  # a package that is a command
        found = importlib.import_module(f"{module}.__main__")
    options = _options(found.main, words)
    overrides = [word for word in words if word.startswith("--config.")]
    assert all("=" in word for word in overrides), words
    if "config" in options:
        loading.load(options.config, overrides)
    else:
        config = defaults.default()
        loading.override(config, overrides)
        validation.validate(config)
    if module == "jaxclf.plan" and options.topology != "auto":
        topology = hardware.topology(options.topology, options.slices)
        assert not options.mesh or plans.read_mesh(options.mesh, topology)
    if module == "jaxclf.reproduce":
        definitions.find(options.table).select(options.rows, options.columns)


def _options(main: Callable[[Command], None], words: Command) -> argparse.Namespace:
    """What the command's own parser makes of the words; it ends there."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self, *arguments):
        raise _Parsed(parse_args(self, *arguments))

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse):
        try:
            main(words)
        except _Parsed as parsed:
            return parsed.options
        except SystemExit as error:
            raise AssertionError(f"refused: {words}") from error
    raise AssertionError(f"{words}: ran without parsing its arguments")


def _check_pip(words: Command) -> None:
    assert words[0] == "install", words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for word in words[1:]:
        if word.startswith("."):
            named = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", word)
            assert named, word
            assert set((named[1] or "").split(",")) - {""} <= set(extras), word
        else:
            assert re.fullmatch(r"-e|-q|[\w-]+", word), word


def _check_launcher(script: str, words: Command) -> None:
    """A dry run of the script itself, then the training that it would start."""
    at = words.index("--") if "--" in words else len(words)
    done = subprocess.run(
        ["bash", str(ROOT / script), *words[:at], "--dry-run", *words[at:]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    config = words[words.index("--config") + 1]
    loading.load(config, [word for word in words[at:] if word.startswith("--config.")])
