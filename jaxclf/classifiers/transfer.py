"""What a run takes over from the checkpoint it starts from, and what it starts anew.

The body of a model has to fit leaf by leaf. Heads (and BERT's pooler) are taken where the
checkpoint has them: by the task's name from a run of ours, by their kind from a converted model,
whose only head has no task's name. The others start at random and are named in log and report.
Of a base with more layers than the run's model, evenly spaced ones are taken (`model.layers`).

The rows of a head that is taken are brought into the order of the run's labels by their names. Of a
head without names (LABEL_0, LABEL_1 …) row i is that of label i, numbers in numeric order.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxclf.adapters.partition import is_stacked
from jaxclf.checkpoint.model_dir import ModelSource, load_params, read_model
from jaxclf.core import files, tree
from jaxclf.core.errors import InputError
from jaxclf.core.types import Array, Key, Params
from jaxclf.data.tasks import Task, head_labels
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.models.cutting import evenly_spaced
from jaxclf.models.registry import Model, ModelConfig
from jaxclf.models.t5 import T5Config

_REPLACEABLE = re.compile("(heads|pooler|layers(/.*)?/prefix)/.*")
# What a model with other outputs lacks; T5's decoder, where words alone are scored.
_LEFT = re.compile(f"{_REPLACEABLE.pattern}|unembed/.*|(layers/|distances/)?decoder(_norm)?/.*")


Leaf = TypeVar("Leaf", np.ndarray, jax.Array)


class Transfer(NamedTuple):
    """`taken`: leaf of the run → leaf of the checkpoint. `new`: leaves started at random.

    `unused`: tensors of the checkpoint that are left behind. `rows`: leaf of a head of the run →
    where its rows, the last axis, lie in the checkpoint's; only where that is another order.
    `layers`: which of the checkpoint's are taken; (): all. `notes`: what had to be assumed, a
    sentence each.
    """

    taken: Mapping[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    def is_cut(self, path: str) -> bool:
        """Whether the checkpoint's leaf holds layers that the run's model has not."""
        return bool(self.layers) and is_stacked(path)

    def ordered(self, path: str, leaf: Leaf) -> Leaf:
        """The checkpoint's leaf for `path` with its rows in the order of the run's labels."""
        return leaf[..., np.array(self.rows[path])] if path in self.rows else leaf


def plan(
    model: Model, base: ModelSource | None, heads: str, recipe: Recipe | None = None
) -> Transfer:
    """What `load` does, by names alone; all is random without a base, which is not listed.

    `heads`: "keep" those of the base (a recipe says which labels they must have), or start "new"
    ones. Raises InputError where a head is of another size or knows other labels than the recipe's
    task.
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
        if _LEFT.fullmatch(path) and ours not in wanted:
            continue
        taken[ours] = path
    _check_sizes(base, wanted, taken)
    new = tuple(path for path in wanted if _REPLACEABLE.fullmatch(path) and path not in taken)
    left = tuple(path for path in base.manifest if path not in taken.values())
    found = Transfer(taken, new, (*_unused_at_conversion(base), *left))
    found = _cut(found, base, model.config)
    if heads == "keep" and recipe is not None:
        found = _with_rows(found, base, names, recipe)
    return found


def load(model: Model, base: ModelSource | None, plan: Transfer, key: Key[Array, ""]) -> Params:
    """A run's first parameters; raises ArtifactError where the checkpoint's body does not fit."""
    if base is None:
        return sharding.born(model.init, key)
    wanted = tree.flatten(model.abstract)
    part = dataclasses.replace(
        base, manifest={path: base.manifest[path] for path in plan.taken.values()}
    )
    abstract = {
        plan.taken.get(path, path): _uncut(plan, path, leaf, base)
        for path, leaf in wanted.items()
        if path not in plan.new
    }
    loaded = tree.flatten(load_params(part, tree.nest(abstract)))
    # The compiler leaves out what the other parameters would have started from.
    random = sharding.born(lambda key: _select(model.init(key), plan.new), key)
    leaves = [
        random[path] if path in plan.new else _ordered(plan, path, loaded[plan.taken[path]])
        for path in wanted
    ]
    return jax.tree.unflatten(jax.tree.structure(model.abstract), leaves)


def _head_names(base: ModelSource, config: ModelConfig) -> dict[str, str]:
    """Head of the checkpoint → head of the run."""
    found, _ = read_model(base.model_json)
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
        if _REPLACEABLE.fullmatch(ours)
        and _of_a_layer(ours, base.manifest[path].shape) != _of_a_layer(ours, wanted[ours].shape)
    ]
    if wrong:
        raise InputError(
            f"{base.params_dir.parent}: the checkpoint's head has another size: {'; '.join(wrong)}."
            " Set model.heads=new to start a new head, or choose the data it was trained for"
        )


def _of_a_layer(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A leaf's shape without the number of layers, which is the body's affair."""
    return shape[1:] if is_stacked(path) else shape


def _ordered(plan: Transfer, path: str, leaf: jax.Array) -> jax.Array:
    """`plan.ordered` of the layers that are taken, computed where the leaf lies."""
    if plan.is_cut(path):
        places = np.array(plan.layers)
        return jax.jit(lambda leaf: leaf[places], out_shardings=leaf.sharding)(leaf)
    if path not in plan.rows:
        return leaf
    return jax.jit(lambda leaf: plan.ordered(path, leaf), out_shardings=leaf.sharding)(leaf)


def _cut(found: Transfer, base: ModelSource, config: ModelConfig) -> Transfer:
    """The transfer with the layers that a model of fewer takes."""
    theirs, _ = read_model(base.model_json)
    if isinstance(theirs, T5Config) or isinstance(config, T5Config):
        return found
    one = getattr(theirs, "same_layer", False)  # which is run through as often as wanted
    if one or theirs.num_layers <= config.num_layers:
        return found
    layers = evenly_spaced(theirs.num_layers, config.num_layers)
    note = (
        f"of the checkpoint's {theirs.num_layers} layers, counted from 0, these are taken: "
        f"{', '.join(map(str, layers))}"
    )
    return found._replace(layers=layers, notes=(*found.notes, note))


def _uncut(plan: Transfer, path: str, leaf: Any, base: ModelSource) -> Any:
    """The shape of the checkpoint's leaf for one of the run."""
    stored = base.manifest.get(plan.taken.get(path, path))
    if stored is None or not plan.is_cut(path):
        return leaf
    return jax.ShapeDtypeStruct((stored.shape[0], *leaf.shape[1:]), leaf.dtype)


def _with_rows(
    found: Transfer, base: ModelSource, names: Mapping[str, str], recipe: Recipe
) -> Transfer:
    """The transfer with the order of the rows of each head; raises InputError where none is."""
    rows, notes = {}, []
    for theirs, ours in names.items():
        task = next(task for task in recipe.tasks if task.name == ours)
        wanted = head_labels(task, recipe.slot_format)
        known = labels(base, theirs)
        by_number = _by_number(known) if known else list(range(len(wanted)))
        if set(known) == set(wanted) and len(known) == len(wanted):
            order = tuple(map(known.index, wanted))
        elif by_number is not None and len(by_number) == len(wanted):
            in_order = head_labels(_in_numeric_order(task), recipe.slot_format)
            order = tuple(by_number[in_order.index(label)] for label in wanted)
            if sorted(_numbers(task.labels)) != list(range(len(task.labels))):
                notes.append(
                    f"the checkpoint's head {theirs} has no names: its scores are taken for "
                    f"{_shown(in_order)}, in this order. Set model.heads=new if they are others"
                )
        elif wanted:
            raise InputError(
                f"{base.params_dir.parent}: the checkpoint's head {theirs} scores {_shown(known)}; "
                f"{_fault(known, wanted, ours)}. Give data and checkpoint (id2label in its "
                "config.json) the same names, or set model.heads=new to start a new head"
            )
        else:
            continue  # a number
        if order != tuple(range(len(order))):
            leaves = (f"heads/{ours}/out/{name}" for name in ("kernel", "bias"))
            rows |= {path: order for path in leaves if path in found.taken}
    return found._replace(rows=rows, notes=(*found.notes, *notes))


def _fault(known: Sequence[str], wanted: Sequence[str], task: str) -> str:
    outside = [label for label in wanted if label not in known]
    if not outside:
        return f"task {task} has {len(wanted)} of them"
    said = f"{outside[0]!r} of task {task} is outside its labels"
    near = [name for name in known if name.strip().casefold() == outside[0].strip().casefold()]
    return said + (f" ({near[0]!r} is another name)" if near else "")


def _shown(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _by_number(known: Sequence[str]) -> list[int] | None:
    """Number → row of a head whose scores are called LABEL_0, LABEL_1 …; None of another."""
    rows = {name: row for row, name in enumerate(known)}
    found = [rows.get(f"LABEL_{number}") for number in range(len(known))]
    return [row for row in found if row is not None] if None not in found else None


def _numbers(names: Sequence[str]) -> list[float]:
    """The numbers that names are, or end in after the same words ("class 2"); empty if others."""
    for form in (r"()(-?\d+(?:\.\d+)?)", r"(.*?)(\d+)"):
        found = [re.fullmatch(form, name, re.ASCII | re.DOTALL) for name in names]
        numbers = [float(match[2]) for match in found if match]
        is_alike = len({match[1] for match in found if match}) == 1
        if is_alike and len(set(numbers)) == len(names):
            return numbers
    return []


def _in_numeric_order(task: Task) -> Task:
    """The task with labels that are numbers in their order, which as text is 0, 1, 10, 11, 2."""
    numbers = _numbers(task.labels)
    if not numbers:
        return task
    ordered = sorted(zip(numbers, task.labels, strict=True))
    return dataclasses.replace(task, labels=tuple(label for _, label in ordered))


def labels(base: ModelSource, head: str) -> tuple[str, ...]:
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
