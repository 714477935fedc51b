"""Whether a folder holds the finished run of a config: whoever does many runs skips these."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.checkpoint.seal import REPORT, read
from jaxclf.config import identity, loading
from jaxclf.core.errors import ArtifactError


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """The report of a run that is complete and is of this config, else None: it has to go on.

    Raises ArtifactError where the report was altered or is damaged.
    """
    if not (folder / REPORT).is_file():
        return None
    found = read(folder)
    try:
        before = loading.from_json(found["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / REPORT}: not a report of ours") from error
    return None if identity.changes(before, config) else found
