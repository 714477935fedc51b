"""What a run takes over from the checkpoint it starts from, and what it starts anew.

The body of a model has to fit leaf by leaf. Heads (and BERT's pooler) are taken where the
checkpoint has them: by the task's name from a run of ours, by their kind from a converted model,
whose only head has no task's name. The others start at random and are named in log and report.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxclf.checkpoint.model_dir import ModelSource, load_params, read_model
from jaxclf.core import files, tree
from jaxclf.core.errors import InputError
from jaxclf.core.types import Array, Key, Params
from jaxclf.data.tasks import head_labels
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.registry import Model, ModelConfig

_REPLACEABLE = re.compile("(heads|pooler|layers(/.*)?/prefix)/.*")


class Transfer(NamedTuple):
    """`taken`: leaf of the run → leaf of the checkpoint. `new`: leaves started at random.

    `unused`: tensors of the checkpoint that are left behind.
    """

    taken: dict[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...]


def plan(
    model: Model, base: ModelSource | None, heads: str, recipe: Recipe | None = None
) -> Transfer:
    """What `load` does, by names alone; all is random without a base, which is not listed.

    `heads`: "keep" those of the base (a recipe says which labels they must have), or start "new"
    ones. Raises InputError where a head is of
    another size or knows other labels than the recipe's task.
    """
    if base is None:
        return Transfer({}, (), ())
    if base.adapters is not None:
        raise InputError(
            f"{base.model_json.parent} holds adapters, which are no base to start from. Make a "
            "model of them first with python -m jaxclf.convert.to_hf --merge"
        )
    wanted = tree.flatten(model.abstract)
    names = _head_names(base, model.config)
    taken = {}
    for path in base.manifest:
        ours = _renamed(path, names)
        if path.startswith("heads/") and (heads == "new" or ours not in wanted):
            continue
        if _REPLACEABLE.fullmatch(path) and ours not in wanted:
            continue
        taken[ours] = path
    _check_sizes(base, wanted, taken)
    if heads == "keep" and recipe is not None:
        _check_labels(base, names, recipe)
    new = tuple(path for path in wanted if _REPLACEABLE.fullmatch(path) and path not in taken)
    left = tuple(path for path in base.manifest if path not in taken.values())
    return Transfer(taken, new, (*_unused_at_conversion(base), *left))


def load(model: Model, base: ModelSource | None, plan: Transfer, key: Key[Array, ""]) -> Params:
    """A run's first parameters; raises ArtifactError where the checkpoint's body does not fit."""
    if base is None:
        return sharding.born(model.init, key)
    wanted = tree.flatten(model.abstract)
    part = dataclasses.replace(
        base, manifest={path: base.manifest[path] for path in plan.taken.values()}
    )
    abstract = {
        plan.taken.get(path, path): leaf for path, leaf in wanted.items() if path not in plan.new
    }
    loaded = tree.flatten(load_params(part, tree.nest(abstract)))
    # The compiler leaves out what the other parameters would have started from.
    random = sharding.born(lambda key: _select(model.init(key), plan.new), key)
    leaves = [random[path] if path in plan.new else loaded[plan.taken[path]] for path in wanted]
    return jax.tree.unflatten(jax.tree.structure(model.abstract), leaves)


def _head_names(base: ModelSource, config: ModelConfig) -> dict[str, str]:
    """Head of the checkpoint → head of the run; a decoder has none."""
    found, _ = read_model(base.model_json)
    if not isinstance(found, EncoderConfig) or not isinstance(config, EncoderConfig):
        return {}
    ours = {head.name: head.kind for head in config.heads}
    names = {head.name: head.name for head in found.heads if head.name in ours}
    for head in found.heads:
        same_kind = [name for name, kind in ours.items() if kind == head.kind]
        if not names and len(found.heads) == len(same_kind) == 1:
            names[head.name] = same_kind[0]
    return names


def _renamed(path: str, names: Mapping[str, str]) -> str:
    head, name, *rest = path.split("/")
    if head == "heads" and name in names:
        return "/".join((head, names[name], *rest))
    return path


def _check_sizes(base: ModelSource, wanted: Mapping[str, Any], taken: Mapping[str, str]) -> None:
    wrong = [
        f"{path} {base.manifest[path].shape}, the run needs {wanted[ours].shape}"
        for ours, path in taken.items()
        if _REPLACEABLE.fullmatch(ours) and base.manifest[path].shape != wanted[ours].shape
    ]
    if wrong:
        raise InputError(
            f"{base.params_dir.parent}: the checkpoint's head has another size: {'; '.join(wrong)}."
            " Set model.heads=new to start a new head, or choose the data it was trained for"
        )


def _check_labels(base: ModelSource, names: Mapping[str, str], recipe: Recipe) -> None:
    tasks = {task.name: head_labels(task, recipe.slot_format) for task in recipe.tasks}
    for theirs, ours in names.items():
        known = _labels(base, theirs)
        if not known or all(re.fullmatch(r"LABEL_\d+", label) for label in known):
            continue  # a head without names
        if outside := [label for label in tasks[ours] if label not in known]:
            fault = f"{outside[0]!r} of task {ours} is outside its labels"
        elif known != tasks[ours]:
            fault = f"task {ours} has them in another order"
        else:
            continue
        raise InputError(
            f"{base.params_dir.parent}: the checkpoint's head {theirs} scores "
            f"{', '.join(known[:8])}{' …' if len(known) > 8 else ''}; {fault}. Set "
            "model.heads=new to start a new head"
        )


def _labels(base: ModelSource, head: str) -> tuple[str, ...]:
    """What a head of the checkpoint scores; empty where nothing tells."""
    if base.run_dir is not None:
        recipe = Recipe.load(base.run_dir / "task.json")
        tasks = {task.name: head_labels(task, recipe.slot_format) for task in recipe.tasks}
        return tasks.get(head, ())
    return tuple(_conversion(base).get("labels") or ())


def _select(params: Params, paths: tuple[str, ...]) -> dict[str, Array]:
    leaves = tree.flatten(params)
    return {path: leaves[path] for path in paths}


def _unused_at_conversion(base: ModelSource) -> tuple[str, ...]:
    return tuple(_conversion(base).get("unused", ()))


def _conversion(base: ModelSource) -> dict[str, Any]:
    path = base.model_json.parent / "conversion.json"
    return files.read_json(path) if path.is_file() else {}
