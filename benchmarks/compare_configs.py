"""Whether every config loads to the same run as before: `python benchmarks/compare_configs.py REV`.

Loads each file of configs/ in every combination of its variant's words, in the working tree and at
the git revision REV, with the code of that revision; fields that were renamed since are mapped.
Prints how many load to the same run, and what differs; exit code 1 if any does. A field that is
new since then has to have its default.
"""

import argparse
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
Runs = dict[str, dict[str, Any] | str]
"""`quickstart.py:smoke` → its fields by their whole names, or the error that loading ends in."""


def variants(possible: list[str]) -> Iterator[str]:
    """Every combination of the words of which one excludes another."""
    kinds: dict[str, list[str]] = {}
    for word in possible:
        kind, equals, _ = word.partition("=")
        if not equals:
            kind = next((kind for kind, words in _KINDS.items() if word in words), word)
        kinds.setdefault(kind, [""]).append(word)
    for words in itertools.product(*kinds.values()):
        yield ",".join(filter(None, words))


_KINDS = {
    "tune": ("lora", "qlora", "no_tuning"),
    "shots": ("zero_shot", "five_shot"),
    "template": ("with", "without"),
}


def load_all(root: Path) -> Runs:
    """All configs of the tree whose code this process imports."""
    try:
        from jaxclf.config.loading import load  # pyright: ignore
    except ImportError:  # before the packages
        from jaxclf.config import load  # pyright: ignore

    def leaves(fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in fields.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    def found(argument: str) -> dict[str, Any] | str:
        try:
            return dict(leaves(load(argument).to_dict()))
        except Exception as error:
            return str(error)

    runs: Runs = {}
    for path in sorted((root / "configs").glob("*.py")):
        if "def get_config" not in path.read_text("utf-8"):
            continue
        told = found(f"{path}:?")
        possible = re.search(r"possible: ([^.]*)", str(told))
        words = possible[1].split(", ") if possible else []
        for variant in variants(words):
            runs[f"{path.name}:{variant}"] = found(f"{path}:{variant}" if variant else str(path))
    return runs


def in_a_process(root: Path) -> Runs:
    """`load_all` of another tree, as JSON has it."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    script = (sys.executable, __file__, "--dump", str(root))
    done = subprocess.run(script, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def at_revision(revision: str) -> Runs:
    with tempfile.TemporaryDirectory() as folder:
        command = ("git", "archive", revision, "jaxclf", "configs")
        packed = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(folder, filter="data")
        return in_a_process(Path(folder))


def differences(before: Runs, now: Runs) -> dict[str, str]:
    """What became of each run that is not the same, in words."""
    from jaxclf.config.renames import RENAMED
    from jaxclf.config.schema import FIELDS

    defaults = json.loads(json.dumps({name: field.default for name, field in FIELDS.items()}))
    found = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name, "no such config"), now.get(name, "no such config")
        if isinstance(old, str) or isinstance(new, str):
            if type(old) is not type(new) or "no such config" in (old, new):
                found[name] = f"{old!r:.200} before, {new!r:.200} now"
            continue
        mapped = {RENAMED.get(field, field): value for field, value in old.items()}
        if len(mapped) != len(old):
            found[name] = "two fields have one name now"
            continue
        changed = [
            f"{field}: {mapped.get(field, 'absent')!r} before, {new.get(field, 'absent')!r} now"
            for field in sorted({*mapped, *new})
            # As JSON, 1 is not 1.0.
            if json.dumps(mapped.get(field, defaults.get(field)))
            != json.dumps(new.get(field, "absent"))
        ]
        if changed:
            found[name] = "; ".join(changed)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("revision", nargs="?", default="HEAD", help="default: HEAD")
    parser.add_argument("--dump", metavar="ROOT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dump:
        json.dump(load_all(Path(options.dump)), sys.stdout)
        return 0
    before, now = at_revision(options.revision), in_a_process(REPOSITORY)
    changed = differences(before, now)
    for name, words in changed.items():
        print(f"{name}: {words}")
    files = {name.partition(":")[0] for name in now}
    runs = sum(not isinstance(run, str) for run in now.values())
    print(
        f"{len(now)} variants of {len(files)} configs, of which {len(now) - runs} are refused: "
        f"{len({*before, *now}) - len(changed)} the same as at {options.revision}, "
        f"{len(changed)} not"
    )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
