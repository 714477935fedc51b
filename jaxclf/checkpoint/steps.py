"""The steps that a run has saved, the best of them, and what is noted beside the arrays."""

import base64
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


def metas(directory: Path) -> "dict[int, Meta]":
    # A step whose meta is gone was being deleted when the run was killed.
    return {
        step: read_meta(directory / str(step))
        for step in saved_steps(directory)
        if meta_file(directory / str(step)).is_file()
    }


def scores(directory: Path) -> dict[int, float | None]:
    return {step: meta.score for step, meta in metas(directory).items()}


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
    """`scheduled`: whether the run saves this step even where nobody stops it."""

    step: int
    score: float | None
    metrics: dict[str, float]
    iterator_state: Any
    manifest: dict[str, Manifest]
    scheduled: bool


def meta_file(directory: Path) -> Path:
    return directory / "meta" / "meta.json"


def read_meta(directory: Path) -> Meta:
    path = meta_file(directory)
    meta = files.unsealed(path)
    try:
        manifest = {
            item: tree_store.manifest_from_json(leaves, path)
            for item, leaves in meta["manifest"].items()
        }
        iterator_state = decode_iterator(meta["iterator_state"])
        return Meta(
            meta["step"],
            meta["score"],
            meta["metrics"],
            iterator_state,
            manifest,
            meta.get("scheduled", True),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: corrupt ({error})") from error


def note_metrics(directory: Path, score: float | None, metrics: Mapping[str, float]) -> None:
    """Add to a saved step what its evaluation found; the file is the one that `save` writes."""
    path = meta_file(directory)
    content = files.unsealed(path) | {"score": score, "metrics": dict(metrics)}
    files.write_text(path, json.dumps(files.sealed(content)))


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
