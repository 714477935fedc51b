"""Files that are whole: whoever reads one finds the old content or all of the new."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from jaxclf.core.errors import ArtifactError


def write_text(path: str | Path, text: str) -> str:
    """Write UTF-8 to a side name, sync it to disk and put it in place; returns its SHA-256.

    A lone surrogate, which UTF-8 has no form for, becomes its escape: in JSON the same text.
    """
    path, content = Path(path), _encoded(text)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return sha256(content)


def write_json(path: str | Path, value: Any, *, sort_keys: bool = False) -> str:
    """Write as `write_text` does; raises TypeError for what JSON has no form for."""
    return write_text(path, json_text(value, sort_keys=sort_keys))


def json_text(value: Any, *, sort_keys: bool = False) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=sort_keys) + "\n"


def read_json(path: str | Path) -> Any:
    """Raises ArtifactError where the file is missing or no JSON; other OSErrors pass."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ArtifactError(f"{path}: no regular file")
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: missing") from error
    except RecursionError as error:
        raise ArtifactError(f"{path}: nested too deeply to be one of ours") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from error


def sealed(content: Any) -> dict[str, Any]:
    """What JSON holds, with a checksum beside it."""
    return {"content": content, "sha256": sha256(json.dumps(content, sort_keys=True).encode())}


def unsealed(path: str | Path) -> Any:
    """The content of a file of `sealed`; raises ArtifactError where it is not as it was written."""
    found = read_json(path)
    if not isinstance(found, dict) or found != sealed(found.get("content")):
        raise ArtifactError(f"{path}: corrupt (its checksum differs). Restore it from a copy")
    return found["content"]


def tuples(value: Any) -> Any:
    """What JSON holds, with a tuple for every list: configs and specs hold no lists."""
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def digest_of(text: str) -> str:
    """The SHA-256 of the file that `write_text` makes of a text."""
    return sha256(_encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
