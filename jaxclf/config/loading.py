"""A run's configuration: a Python file, a variant of it, and overrides on the command line.

    --config configs/llama3_8b_20ng.py:five_shot,task=20class --config.train.steps=100

Everything a user can mistype is checked here, and nothing heavy is imported: a wrong name ends
the command before JAX is loaded, data is read or a model is built.
"""

import argparse
import ast
import contextlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from jaxclf.config import defaults, identity, renames
from jaxclf.config.schema import SCHEMA, Group, leaves
from jaxclf.config.validation import validate
from jaxclf.core import files
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.suggest import nearest

_PACKAGE = Path(__file__).resolve().parents[1]
# The experiments that come with the package: inside it in a wheel, beside it in a checkout.
CONFIGS = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    Path("configs"),
)

# -- the command line


def add_arguments(parser: argparse.ArgumentParser, workdir: bool = True) -> None:
    """Add `--config` and `--workdir`, and the word on overrides to the help."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:VARIANT,...]",
        help="the experiment, such as configs/quickstart.py or configs/quickstart.py:smoke",
    )
    if workdir:
        parser.add_argument(
            "--workdir", required=True, metavar="DIR", help="folder that receives all results"
        )
    parser.epilog = (
        "Any field of the config is overridden by --config.GROUP.FIELD=VALUE, such as "
        "--config.train.steps=100. `python -m jaxclf.config.reference` lists the fields with their "
        "meaning."
    )


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the overrides come back as `overrides`, for `load` or `override`.

    `--config.a.b=value` and `--config.a.b value` are the same. Raises InputError for an option
    that does not exist; what else is wrong with the options is argparse's to say (exit code 2).
    """
    overrides, rest = [], []
    remaining = iter(arguments)
    for word in remaining:
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            overrides.append(f"{word}={_value_after(word, remaining)}")
    options = list(parser._option_string_actions)
    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in ("--", *options):
            # A mistyped --config.a.b is close to --config in its first part alone.
            head, dot, field = name.partition(".")
            near = nearest(head, options)
            hint = f". Did you mean '{near}{dot}{field}'?" if near else ""
            raise InputError(f"{name}: no such option{hint}")
    namespace = parser.parse_args(rest)
    namespace.overrides = overrides
    return namespace


def _value_after(option: str, words: Iterator[str]) -> str:
    value = next(words, None)
    if value is None or value.startswith("--"):
        raise InputError(f"{option}: no value given; write {option}=VALUE")
    return value


# -- the file


def load(argument: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """The locked, validated config of `FILE.py[:VARIANT,...]` with the overrides applied.

    The file defines `get_config(argument: str = "") -> ConfigDict`. While it runs, the folder
    that holds the file's folder is importable, so that configs may import each other whatever
    the current folder is. `configs/NAME.py` is looked for in the current folder, then among
    those that come with the package. Raises InputError for anything wrong with the file or the
    overrides.
    """
    match = re.fullmatch(r"(.+?\.py)(?::(.*))?", argument, flags=re.DOTALL)
    if match is None:
        near = _similar_file(Path(f"{argument.partition(':')[0]}.py"))
        raise InputError(f"--config {argument}: expected FILE.py[:VARIANT,...]{near}")
    config = _run_file(match[1], match[2] or "")
    try:
        override(config, overrides)
        validate(config)
        return config.lock()
    except RecursionError as error:
        raise InputError(f"--config {argument}: a field is nested without end") from error


def _run_file(name: str, variant: str) -> ml_collections.ConfigDict:
    path = Path(name)
    if not path.is_file():
        path = _shipped(path)
    if not path.is_file():
        raise InputError(f"--config {name}: no such file{_similar_file(Path(name))}")
    source = path.read_bytes()
    # Not imported under a name: two configs of one process never share state, and no compiled
    # copy is left behind that could outlive an edit.
    namespace: dict[str, Any] = {"__file__": str(path), "__name__": "config"}
    with _importable(path.resolve().parent.parent):
        try:
            exec(compile(source, str(path), "exec"), namespace)
            get_config = namespace.get("get_config")
            if not callable(get_config):
                raise InputError(
                    f"{name}: defines no get_config(argument), which returns the config"
                )
            if variant and not inspect.signature(get_config).parameters:
                raise InputError(f"{name}:{variant}: this config has no variants")
            config = get_config(variant) if variant else get_config()
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever the user's file may raise, sys.exit's too
            raise InputError(f"{_line_in(str(path), error)}: {_message(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"{name}: get_config returned {type(config).__name__}; expected ml_collections."
            "ConfigDict. Start from default() of jaxclf.config.defaults"
        )
    return config


def _shipped(path: Path) -> Path:
    """The experiment of the package that `configs/NAME.py` names, or the path as it is."""
    return CONFIGS / path.name if path.parent == Path("configs") else path


@contextlib.contextmanager
def _importable(folder: Path) -> Generator[None]:
    before = [*sys.path]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _similar_file(path: Path) -> str:
    """Ends a sentence with the config that was probably meant, in this folder or one like it."""
    folder = path.parent
    if not folder.is_dir() and folder.parent.is_dir():
        folders = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
        folder = folder.parent / (nearest(folder.name, folders) or folder.name)
    configs = {
        candidate.name: candidate
        for candidate in (*folder.glob("configs/*.py"), *folder.glob("*.py"))
        if candidate.is_file() and "def get_config" in candidate.read_text("utf-8", "ignore")
    }
    if path.parent == Path("configs"):
        configs |= {file.name: path.parent / file.name for file in CONFIGS.glob("[!_]*.py")}
    near = nearest(path.name, configs)
    if near:
        return f". Did you mean '{configs[near]}'?"
    return f". Configs in '{folder}': {', '.join(sorted(configs)) or 'none'}"


def _line_in(path: str, error: BaseException) -> str:
    """`file:line` of the config file's own statement that failed."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def _message(error: BaseException) -> str:
    """One line; ml_collections wraps a KeyError and prints the whole config into it."""
    if renamed := _old_name(error):
        return renamed
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    inner: Any = error
    while isinstance(inner, KeyError | AttributeError) and inner.args:
        inner = inner.args[0]
    try:
        text = str(inner)
    except Exception:  # an exception of the user's own, which cannot say what it is
        text = ""
    text = re.sub(r' Other fields present: ".*"(?=\n|$)', "", text, flags=re.DOTALL)
    if isinstance(error, ImportError) and re.search(r"\bconfigs\b", text):
        text += ". Defaults and model families are in jaxclf.config: defaults, families"
    return kind + " ".join(text.split())


def _old_name(error: BaseException) -> str:
    """What to tell where a config's file used a field by the name that it had before, or nothing.

    ml_collections says which field it does not know, but not of which group: that is the object
    whose method failed.
    """
    if not isinstance(error, AttributeError | KeyError):
        return ""
    unknown = re.search(r"""['"](\w+)['"]""", str(error))
    if unknown is None:
        return ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, ml_collections.ConfigDict):
            for name, group in SCHEMA.items():
                if isinstance(group, Group) and {*owner} >= {*group.fields}:
                    return renames.answer(f"{name}.{unknown[1]}")
    return ""


# -- overrides


def changed(
    config: ml_collections.ConfigDict | str | Path,
    overrides: Mapping[str, Any] | Iterable[str] = (),
) -> ml_collections.ConfigDict:
    """A config, or that of a file (see `load`), with the overrides applied: locked and validated.

    `overrides`: as on the command line, or values by the names of their fields. The config given
    stays as it is. Raises InputError as `load` and `override` do.
    """
    lines = as_lines(overrides)
    if not isinstance(config, ml_collections.ConfigDict):
        return load(str(config), lines)
    copied = config.copy_and_resolve_references().unlock()
    override(copied, lines)
    validate(copied)
    return copied.lock()


def as_lines(overrides: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """`{"train.steps": 9}` → `["train.steps=9"]`; what is in lines already, as it is."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return list(overrides)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in overrides.items()}
    return [f"{name}={value}" for name, value in values.items()]


def override(config: ml_collections.ConfigDict, overrides: Iterable[str]) -> None:
    """Set fields in place from `a.b=value` (or `--config.a.b=value`), by the field's own type.

    Raises InputError for an unknown field or a value of another type.
    """
    for text in overrides:
        name, _, value = text.removeprefix("--config.").partition("=")
        *groups, last = name.split(".")
        group: Any = config
        for part in groups:
            group = group.get(part)
            if not isinstance(group, ml_collections.ConfigDict):
                raise InputError(_unknown_field(config, name))
        if last not in group:
            raise InputError(_unknown_field(config, name))
        if isinstance(group[last], ml_collections.ConfigDict):
            raise InputError(
                f"--config.{name} is a group of fields; set one of: "
                f"{', '.join(f'{name}.{field}' for field in sorted(group[last]))}"
            )
        kind = group.get_type(last)
        if kind not in _READERS:
            raise InputError(f"--config.{name}: a {kind.__name__} cannot be set from here")
        expected, reader = _READERS[kind]
        try:
            group[last] = reader(value)
        except Exception:  # a reader fails as it likes; the answer is the same
            raise InputError(
                f"--config.{name}={value}: expected {expected}, such as {group[last]}"
            ) from None


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]


def _read_tuple(text: str) -> tuple[Any, ...]:
    value = ast.literal_eval(text)
    if not isinstance(value, tuple):
        raise ValueError
    return value


_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", _read_bool),
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("text", str),
    tuple: ("a tuple", _read_tuple),
}


def _unknown_field(config: ml_collections.ConfigDict, name: str) -> str:
    """The message for a field that does not exist: its new name, the nearest, or its group's."""
    if renamed := renames.answer(name):
        return f"--config.{name}: {renamed}"
    fields = [field for field, _ in leaves(config)]
    group, _, last = name.rpartition(".")
    inside = [field for field in fields if field.startswith(f"{group}.")]
    if inside:
        # Paths of one group resemble each other by the group alone, so the ends are compared.
        end = nearest(last, [field.removeprefix(f"{group}.") for field in inside])
        elsewhere = (field for field in fields if field.endswith(f".{last}"))
        near = f"{group}.{end}" if end else next(elsewhere, None)
    else:
        near = nearest(name, fields)
    hint = f"Did you mean '--config.{near}'?" if near else ""
    return f"--config.{name}: no such field. {hint or 'Fields: ' + ', '.join(inside or fields)}"


# -- config.json


def write(config: ml_collections.ConfigDict, path: str | Path) -> None:
    """Write the config as JSON, in one step: no reader ever sees half a file."""
    files.write_text(path, to_text(config))


def to_text(config: ml_collections.ConfigDict) -> str:
    """What `write` writes."""
    return files.json_text(config.to_dict(), sort_keys=True)


def read(path: str | Path) -> ml_collections.ConfigDict:
    """The config that `write` wrote, equal and locked.

    Raises InputError if there is none, ArtifactError if the file is damaged.
    """
    try:
        return from_json(json.loads(Path(path).read_bytes()))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file. Expected the folder of a run that training has started"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a config: {error}") from error


def read_trained(path: str | Path, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """The config of a trained run under an evaluation's overrides: whole, validated and locked.

    Fields that the run is older than have their defaults. Raises InputError for what cannot be
    changed after training, besides what `read` and `changed` raise.
    """
    stored, before = read(path), defaults.default().unlock()
    try:
        for name, value in stored.items():
            if isinstance(value, ml_collections.ConfigDict) and name in before:
                before[name].unlock().update(value)
            else:
                before[name] = value
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not a config: {_message(error)}") from error
    now = changed(before, overrides)
    identity.check_evaluation(before, now)
    return now


def from_json(fields: Any) -> ml_collections.ConfigDict:
    """The locked config of fields as JSON has them, by the names that they have today.

    Raises ValueError if they are none.
    """
    if not isinstance(fields, dict):
        raise ValueError("expected an object of fields")
    return ml_collections.ConfigDict(files.tuples(renames.current(fields))).lock()
