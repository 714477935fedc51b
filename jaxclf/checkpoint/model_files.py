"""The files beside the arrays that decide an answer, under one seal.

FOLDER/seal.json has the SHA-256 of config.json, task.json, model.json, adapters.json, the
tokenizer's files and others that labels depend on, in the folder of a run or of a converted model.
The arrays have manifests of their own (`tree_store`). A changed, lost or added file is found before
anything is read from it. That guards against accidents and quiet edits, not against a forger.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from jaxclf.core import files, logs
from jaxclf.core.errors import ArtifactError

FILE = "seal.json"
TOKENIZER = "tokenizer"
DATA = "data.json"  # the fingerprints of a run's records, by split
_NAMES = (
    "config.json",
    DATA,
    "task.json",
    "model.json",
    "adapters.json",
    "temperature.json",
    "manifest.json",
    "conversion.json",
)

Digests = Mapping[str, list[str]]
"""By the path below the folder; several where a file is being replaced, "" where it may be absent.
"""


def seal(folder: Path) -> None:
    """Seal what is there now, in place of any seal before."""
    _write(folder, {name: [digest] for name, digest in _found(folder).items()})


def replace(folder: Path, contents: Mapping[str, str]) -> None:
    """Write files of a sealed folder anew, each whole, so that it is well sealed at every moment.

    A process that is killed meanwhile leaves any of the files as they were or as they should be.
    """
    before = _read(folder) if is_sealed(folder) else {}
    after = {name: [files.digest_of(text)] for name, text in contents.items()}
    if before:
        _write(folder, {**before, **{n: [*before.get(n, [""]), *after[n]] for n in after}})
    for name, text in contents.items():
        files.write_text(folder / name, text)
    if before:
        _write(folder, {**before, **after})


def is_sealed(folder: Path) -> bool:
    return (folder / FILE).is_file()


def check(folder: Path) -> None:
    """Raise ArtifactError naming each file that is not as it was sealed.

    A folder of an older version has no seal: it is taken as it is, which is said.
    """
    if not is_sealed(folder):
        logs.say(f"{folder} is not sealed, as those of older versions: it is taken as it is")
        return
    expected, found = _read(folder), _found(folder)
    altered = [
        f"{name}: {'missing' if name not in found else 'altered' if name in expected else 'added'}"
        for name in sorted({*expected, *found})
        if found.get(name, "") not in expected.get(name, [])
    ]
    if altered:
        raise ArtifactError(
            "\n  ".join([f"{folder}: not as it was written:", *altered])
            + "\nRestore them from a copy. Fields of a config are changed by --config.FIELD=value, "
            "not in the file"
        )


def _found(folder: Path) -> dict[str, str]:
    """The digests of the files that are there, by their path below the folder."""
    paths = [folder / name for name in _NAMES]
    with contextlib.suppress(OSError):
        paths += sorted((folder / TOKENIZER).rglob("*"))
    return {
        path.relative_to(folder).as_posix(): files.sha256(path.read_bytes())
        for path in paths
        if path.is_file()
    }


def _write(folder: Path, digests: Digests) -> None:
    files.write_json(folder / FILE, files.sealed(dict(digests)))


def _read(folder: Path) -> dict[str, list[str]]:
    content = files.unsealed(folder / FILE)
    return {str(name): list(map(str, each)) for name, each in content.items()}
