"""What the commands' parsers have in common."""

import argparse
import sys


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `jaxclf NAME`, which calls itself whatever the user called it.

    `description`: the module's docstring; its examples read `jaxclf NAME …`.
    """
    prog = _called(name)
    return argparse.ArgumentParser(
        prog,
        description=(description or "").replace(f"jaxclf {name} ", f"{prog} "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _called(name: str) -> str:
    """`jaxclf train`, or `python -m jaxclf.train` where that is how the process was started."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.name.partition(".")[0] not in ("jaxclf", "conversion"):
        return f"jaxclf {name}"
    if spec.name == "jaxclf.__main__":
        return f"python -m jaxclf {name}"
    return f"python -m {spec.name}"
