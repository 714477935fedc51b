"""Whatever labels texts: a run, an ensemble, or a classifier in Hugging Face's format."""

from collections.abc import Sequence
from pathlib import Path

from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers.opening import Opened
from jaxclf.convert import exported, hf_import, peft_import
from jaxclf.ensemble.opening import open_any


def open_source(
    source: str | Path, step: Which = "best", overrides: Sequence[str] = (), *, scores: bool = False
) -> Opened:
    """What a path, a hub id or `package:NAME/FOLDER` names, ready to label.

    `step`: of a run that kept several. `scores`: it will be scored on the data of its config, whose
    labels a classifier that we did not train is then read by. Raises InputError where there is
    none, ArtifactError where a part is missing or damaged, StorageError where the hub does not give
    it.
    """
    path = Path(source).expanduser()
    if is_run(path) or _is_nothing(path, str(source)):
        return open_any(path, step, overrides, hf_import.resolve, peft_import.convert)
    return exported.open_exported(str(source), overrides, scores=scores)


def is_run(path: Path) -> bool:
    """Whether it is a folder of ours: a run, a step of one, or a converted model."""
    ours = ("task.json", "checkpoints", "meta", "params")
    return path.is_dir() and any((path / name).exists() for name in ours)


def _is_nothing(path: Path, source: str) -> bool:
    """Whether it can only be a mistyped run: no classifier of the hub has such a name."""
    return not path.exists() and not source.startswith("package:") and source.count("/") != 1
