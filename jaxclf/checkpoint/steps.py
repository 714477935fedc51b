"""The steps that a run has saved, the best of them, and what is noted beside the arrays."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.tree_store import Manifest
from jaxclf.core import files
from jaxclf.core.errors import ArtifactError, InputError

Which = int | Literal["best", "last"]


def saved_steps(directory: Path) -> list[int]:
    """Complete steps: orbax renames a step's directory to its number when all is written."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def scores(directory: Path) -> dict[int, float | None]:
    # A step whose meta is gone was being deleted when the run was killed.
    return {
        step: read_meta(directory / str(step)).score
        for step in saved_steps(directory)
        if (directory / str(step) / "meta" / "meta.json").is_file()
    }


def best_step(scores: Mapping[int, float | None]) -> int | None:
    scored = [(score, step) for step, score in scores.items() if score is not None]
    return max(scored)[1] if scored else None


def choose_step(directory: Path, step: Which) -> int | None:
    steps = saved_steps(directory)
    if not steps:
        return None
    if step == "best":
        best = best_step(scores(directory))
        return steps[-1] if best is None else best
    if step == "last":
        return steps[-1]
    if step not in steps:
        raise ArtifactError(f"{directory}: no checkpoint of step {step}; there are {steps}")
    return step


def step_directory(directory: Path, step: Which) -> Path:
    chosen = choose_step(directory, step)
    if chosen is None:
        raise ArtifactError(f"{directory}: no complete checkpoint; the run saved none")
    return directory / str(chosen)


class Meta(NamedTuple):
    step: int
    score: float | None
    metrics: dict[str, float]
    iterator_state: Any
    manifest: dict[str, Manifest]


def read_meta(directory: Path) -> Meta:
    path = directory / "meta" / "meta.json"
    sealed = files.read_json(path)
    try:
        meta = sealed["content"]
        if sealed_meta(meta) != sealed:
            raise ValueError("its checksum differs")
        manifest = {
            item: tree_store.manifest_from_json(leaves, path)
            for item, leaves in meta["manifest"].items()
        }
        iterator_state = decode_iterator(meta["iterator_state"])
        return Meta(meta["step"], meta["score"], meta["metrics"], iterator_state, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: corrupt ({error})") from error


def sealed_meta(content: Any) -> dict[str, Any]:
    text = json.dumps(content, sort_keys=True)
    return {"content": content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_step(text: str) -> Which:
    """Read `best`, `last` or a step's number; raises InputError."""
    if text in ("best", "last"):
        return text
    if text.isdecimal():
        return int(text)
    raise InputError(f"--step {text}: expected best, last or the number of a step")


def encode_iterator(state: Any) -> dict[str, Any]:
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    return {"json": state}


def decode_iterator(state: dict[str, Any]) -> Any:
    return base64.b64decode(state["bytes"]) if "bytes" in state else state["json"]
