"""What MkDocs fills into the pages: every command's own help, so that no page can drift from it."""

import ast
import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- help of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return markdown.replace(MARK, all_help()) if MARK in markdown else markdown


def commands() -> list[str]:
    """Modules that are run with `python -m`: those of the package's root, then the converters."""
    package = ROOT / "jaxclf"
    paths = [*sorted(package.glob("*.py")), *sorted(package.glob("convert/*_*.py"))]
    return [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in paths
        if not path.name.startswith("_") and _runs(path)
    ]


def _runs(path: Path) -> bool:
    """Whether a module is a command: it ends with `if __name__ == "__main__":`."""
    body = ast.parse(path.read_text("utf-8")).body
    return any(isinstance(each, ast.If) and "__main__" in ast.dump(each.test) for each in body)


def all_help() -> str:
    """A section a command, with what `--help` prints."""
    found = commands()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        texts = threads.map(help_of, found)
    return "\n".join(
        f"## {name}\n\n```text\n{text.rstrip()}\n```\n"
        for name, text in zip(found, texts, strict=True)
    )


def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints, 100 columns wide."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"python -m {module} --help failed:\n{done.stderr}")
    return done.stdout
