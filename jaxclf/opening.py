"""Whatever labels texts: a run, an ensemble, or a classifier in Hugging Face's format."""

from collections.abc import Sequence
from pathlib import Path

from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers.opening import Opened
from jaxclf.config import loading
from jaxclf.convert import exported, hf_import, peft_import
from jaxclf.decoding.recipe import Recipe
from jaxclf.ensemble.opening import open_any
from jaxclf.prompts.source import has_own_prompts
from jaxclf.runs.served_teacher import asks_server, own_prompts, served_teacher
from jaxclf.runs.teacher import Labeller, Teacher


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


def open_teacher(source: str, folder: Path) -> Teacher:
    """What `distil.teacher` names: anything that `open_source` opens, or a folder of
    `jaxclf.prompt` with an `api.model`, whose answers are kept in `folder`.

    Its probabilities are those of all labels, exact and as the model gives them. Raises what
    `open_source` does, and InputError where each text has examples of its own in its prompt, which
    are drawn from other texts than these.
    """
    path = Path(source).expanduser()
    if asks_server(path):
        return served_teacher(path, source, folder)

    def load() -> Labeller:
        opened = open_source(source, overrides=_EXACT)
        return Labeller(opened.classifier, opened.fingerprint, opened.config.eval.batch_size)

    if is_run(path):
        run_dir = path if (path / "task.json").is_file() else path.parent.parent
        recipe = Recipe.load(run_dir / "task.json")
        config = run_dir / "config.json"
        if config.is_file() and has_own_prompts(loading.read(config)):
            raise own_prompts(source)
        return Teacher(source, recipe.tasks, recipe.slot_format, load)
    opened = open_source(source, overrides=_EXACT)
    recipe = opened.classifier.recipe
    found = Labeller(opened.classifier, opened.fingerprint, opened.config.eval.batch_size)
    return Teacher(source, recipe.tasks, recipe.slot_format, lambda: found)


_EXACT = ("eval.decoding=score", "eval.score_bound=0.0", "eval.temperature=none")


def is_run(path: Path) -> bool:
    """Whether it is a folder of ours: a run, a step of one, or a converted model."""
    ours = ("task.json", "checkpoints", "meta", "params")
    return path.is_dir() and any((path / name).exists() for name in ours)


def _is_nothing(path: Path, source: str) -> bool:
    """Whether it can only be a mistyped run: no classifier of the hub has such a name."""
    return not path.exists() and not source.startswith("package:") and source.count("/") != 1
