"""Fine-tune language models into text classifiers on JAX.

`jaxclf train …` is the same as `python -m jaxclf.train …`: each command is a module with a parser
of its own, and this file only finds it.
"""

import importlib
from collections.abc import Iterable
from typing import Any, NoReturn

import jaxclf
from jaxclf.core import errors
from jaxclf.core.errors import InputError
from jaxclf.core.suggest import nearest

# In the order in which one needs them. None imports anything heavy before its options are read.
COMMANDS = {
    "inspect": "jaxclf.inspect",
    "train": "jaxclf.train",
    "evaluate": "jaxclf.evaluate",
    "predict": "jaxclf.predict",
    "prompt": "jaxclf.prompt",
    "compare": "jaxclf.compare",
    "curve": "jaxclf.curve",
    "soup": "jaxclf.soup",
    "plan": "jaxclf.plan",
    "reproduce": "jaxclf.reproduce",
    "convert from-hf": "jaxclf.convert.from_hf",
    "convert to-hf": "jaxclf.convert.to_hf",
    "convert from-peft": "jaxclf.convert.from_peft",
    "convert to-peft": "jaxclf.convert.to_peft",
}


def main(arguments: list[str]) -> None:
    """Run the command line; raises InputError for a command that does not exist."""
    first, second = [*arguments, "", ""][:2]
    group = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if first in COMMANDS:
        _module(first).main(arguments[1:])
    elif f"{first} {second}" in COMMANDS:
        _module(f"{first} {second}").main(arguments[2:])
    elif first in ("", "-h", "--help"):
        print(_help(COMMANDS))
    elif first == "--version":
        print(f"jaxclf {jaxclf.__version__}")
    elif group and second in ("", "-h", "--help"):
        print(_help(group))
    else:
        name = f"{first} {second}" if group else first
        near = nearest(name, group or COMMANDS)
        hint = f"Did you mean 'jaxclf {near}'?" if near else f"Commands: {', '.join(COMMANDS)}"
        raise InputError(f"jaxclf {name}: no such command. {hint}")


def _module(command: str) -> Any:
    return importlib.import_module(COMMANDS[command])


def _help(names: Iterable[str]) -> str:
    summaries = {name: (_module(name).__doc__ or "").partition("\n")[0] for name in names}
    width = max(map(len, summaries))
    lines = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(
        [
            "usage: jaxclf COMMAND [OPTIONS]",
            "       jaxclf COMMAND --help",
            "       jaxclf --version",
            "",
            (__doc__ or "").partition("\n")[0],
            "",
            *lines,
        ]
    )


def run() -> NoReturn:
    """The entry point of the command `jaxclf`."""
    errors.run(main)


if __name__ == "__main__":
    run()
