"""A workdir belongs to one run: whose it is, and what a run writes there before its first step.

    check   the config alone, before anything else is read
    claim   all that a run is besides its parameters, when all was found good:
            config.json, data.json, task.json, model.json, tokenizer/; splits.json, the ids
            of splits that were drawn

A folder where nothing was computed yet, whose command failed or was killed, is not a run: the next
command takes it whatever its config.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxclf.checkpoint import model_files
from jaxclf.checkpoint.model_dir import model_of, model_text, read_model
from jaxclf.checkpoint.model_files import DATA
from jaxclf.checkpoint.steps import saved_steps
from jaxclf.config import identity, loading
from jaxclf.core import files
from jaxclf.core.errors import InputError
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import processes
from jaxclf.runs.setup import Setup

CONFIG, TASK, MODEL, SPLITS = "config.json", "task.json", "model.json", "splits.json"
_RESULTS = ("report.json", "adapters", "features", "combiners")
_OF_AN_ATTEMPT = (CONFIG, DATA, TASK, MODEL, SPLITS, "adapters.json", model_files.FILE)
_FOLDERS_OF_AN_ATTEMPT = (
    *(model_files.TOKENIZER, "tokenizer.partial", "base", "base.partial"),
    *("checkpoints", "tensorboard"),  # of no step
)


def check(workdir: Path, config: ConfigDict) -> None:
    """Raise InputError where `workdir` is another run's, or no folder for one.

    What a command left that computed nothing is removed.
    """
    if not (workdir / CONFIG).exists():
        ours = (*_OF_AN_ATTEMPT, *_FOLDERS_OF_AN_ATTEMPT, *_RESULTS, "params")
        if found := [name for name in ours if _holds_something(workdir / name)]:
            raise InputError(
                f"{workdir} holds {', '.join(found)} and no {CONFIG}: it is no run. Choose another "
                "--workdir"
            )
        return
    if not is_begun(workdir):
        if processes.is_first():
            _clear(workdir)
        return
    model_files.check(workdir)
    changes = identity.changes_of_steps(loading.read(workdir / CONFIG), config)
    if changes:
        listed = [
            f"{name}: {before!r} there, {now!r} now" for name, (before, now) in changes.items()
        ]
        raise InputError(
            f"{workdir} holds a run with another config ({'; '.join(listed)}). Choose another "
            "--workdir, or the same config to resume it"
        )


def mark(workdir: Path, config: ConfigDict) -> None:
    """Write config.json ahead of a claim, so that what is written meanwhile is known as ours."""
    if not is_begun(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        loading.write(config, workdir / CONFIG)


def is_begun(workdir: Path) -> bool:
    """Whether there is something that was computed, which another run must not touch."""
    return bool(saved_steps(workdir / "checkpoints")) or any(
        (workdir / name).exists() for name in _RESULTS
    )


def _clear(workdir: Path) -> None:
    """Remove what the first command of a run writes; the config is the last to go."""
    if not {"data", "model", "train"} <= {*loading.read(workdir / CONFIG)}:
        raise InputError(f"{workdir / CONFIG} is of no run; choose another --workdir")
    for name in _FOLDERS_OF_AN_ATTEMPT:
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in reversed(_OF_AN_ATTEMPT):
        (workdir / name).unlink(missing_ok=True)


def claim_for(workdir: Path, config: ConfigDict, setup: Setup) -> None:
    """Make `workdir` that of a run which was set up so; raises InputError as `claim` does."""
    fields = config.model
    model = model_text(setup.model.config, fields.param_dtype, fields.quantize)
    fingerprints = setup.data_fingerprints
    claim(workdir, config, fingerprints, setup.recipe, model, setup.tokenizer)
    drawn = {split: setup.dataset.splits[split] for split in setup.dataset.drawn}
    if drawn and processes.is_first():
        ids = {split: [record.id for record in records] for split, records in drawn.items()}
        files.write_text(workdir / SPLITS, files.json_text(ids))


def claim(
    workdir: Path,
    config: ConfigDict,
    data: Mapping[str, str],
    recipe: Recipe,
    model: str = "",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Make `workdir` this run's, or check that it is; the first process writes.

    data: fingerprints by split. model: the text of model.json; "": there is none. Raises
    InputError where the run there learns from other records, has other labels or another model.
    """
    begun = is_begun(workdir)
    if begun:
        _check_data(workdir, data)
        _check_same(workdir, recipe, model)
    contents = {
        CONFIG: loading.to_text(config),
        DATA: files.json_text(dict(data)),
        TASK: recipe.to_text(),
    }
    if model:
        contents[MODEL] = model
    if not processes.is_first():
        return
    if begun:
        changed = {name: text for name, text in contents.items() if not _is(workdir / name, text)}
        if changed:
            model_files.replace(workdir, changed)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        files.write_text(workdir / name, text)
    own = workdir / model_files.TOKENIZER
    if tokenizer is not None and not own.is_dir():
        partial = own.with_name("tokenizer.partial")
        tokenizer.save(partial)
        partial.rename(own)
    model_files.seal(workdir)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _is(path: Path, text: str) -> bool:
    return path.is_file() and files.sha256(path.read_bytes()) == files.digest_of(text)


def _is_model(path: Path, text: str) -> bool:
    """Whether model.json, which an older version may have written, says the same as the text."""
    return read_model(path) == model_of(json.loads(text), path)


def _check_data(workdir: Path, data: Mapping[str, str]) -> None:
    if not (workdir / DATA).is_file():  # of an older version
        return
    before = files.read_json(workdir / DATA)
    changed = [
        split
        for split in sorted({*before, *data})
        if split.rpartition("/")[2] in ("train", "dev") and before.get(split) != data.get(split)
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run on other records: those of {' and '.join(changed)} are not as "
            "they were when it began. Choose another --workdir, or bring the records back to "
            "resume it"
        )


def _check_same(workdir: Path, recipe: Recipe, model: str) -> None:
    """Raise InputError where labels, prompt or model are not those that the run began with."""
    if (workdir / TASK).is_file():
        before = Recipe.load(workdir / TASK)
        if before.learned != recipe.learned:
            raise InputError(
                f"{workdir} holds a run with other labels or another prompt: {TASK} there is not "
                "what this data and config give. Choose another --workdir"
            )
    if model and (workdir / MODEL).is_file() and not _is_model(workdir / MODEL, model):
        raise InputError(
            f"{workdir} holds a run of another model: {MODEL} there is not what this config and "
            "checkpoint give. Choose another --workdir"
        )
