"""Files that are whole: whoever reads one finds the old content or all of the new."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxclf.core.errors import ArtifactError


def write_text(path: str | Path, text: str) -> str:
    """Write UTF-8 to a side name, sync it to disk and put it in place; returns its SHA-256.

    A lone surrogate, which UTF-8 has no form for, becomes its escape: in JSON the same text.
    """
    path, content = Path(path), text.encode("utf-8", "backslashreplace")
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return sha256(content)


def write_json(path: str | Path, value: Any, *, sort_keys: bool = False) -> str:
    """Write as `write_text` does; raises TypeError for what JSON has no form for."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=sort_keys)
    return write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Raises ArtifactError where the file is missing or no JSON; other OSErrors pass."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: missing") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from error


def tuples(value: Any) -> Any:
    """What JSON holds, with a tuple for every list: configs and specs hold no lists."""
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
