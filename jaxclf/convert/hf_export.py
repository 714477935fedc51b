"""A run or model directory of ours becomes a Hugging Face checkpoint."""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclf import report
from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.checkpoint.model_dir import ModelSource
from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers import transfer
from jaxclf.convert import attributes, exported, files, mapping
from jaxclf.convert import merge as merging
from jaxclf.convert.hf_import import FAMILIES, TOKENIZER_FILES
from jaxclf.core import tree
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import read_json, write_json
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.heads import HeadConfig
from jaxclf.models.registry import ModelConfig

# transformers' name for a kind of task: it chooses how its pipelines turn scores to probabilities.
_PROBLEMS = {
    "class": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}

_CARD = """---
library_name: {library}
---

A text classifier fine-tuned and exported by jaxclf.
"""


def run_card(
    source: ModelSource, changes: Sequence[str] = (), library: str = "transformers"
) -> str:
    """The model card of the run's report; a short one where there is none.

    `changes`: what merging changed, as `check_merged` puts it. `library`: see `report.model_card`.
    """
    card = _CARD.format(library=library)
    if source.run_dir is not None and (source.run_dir / report.REPORT).is_file():
        card = report.model_card(report.read(source.run_dir), library)
    return card + ("\n## Merged\n\n" if changes else "") + "".join(f"- {c}\n" for c in changes)


def export(
    source: str | Path,
    destination: Path,
    *,
    step: Which = "best",
    task: str | None = None,
    card: str | Callable[[ModelSource], str] = run_card,
    merge: bool = False,
    dtype: str = "keep",
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    progress: Callable[[str], None] = print,
) -> None:
    """Write `destination` from what `source` resolves to; parameters keep their dtype.

    A run of adapters is exported as one model where `merge` is set, cast to `dtype`.

    `task`: which head goes along; needed where a model has several, as one of transformers has
    one. `card`: the text of README.md, or a function that makes it. Memory peaks at the largest
    tensor plus a few blocks. Raises ArtifactError where the source is corrupt or incomplete.
    """
    found = model_dir.resolve(source, step)
    if found.adapters is not None and not merge:
        raise InputError(
            f"{source} holds adapters; --merge exports them and their base as one model, "
            "jaxclf.convert.to_peft the adapters alone"
        )
    with contextlib.ExitStack() as stack:
        if found.adapters is not None:
            destination.absolute().parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=destination.absolute().parent)
            found = merging.merge(found, Path(stack.enter_context(scratch)), dtype)
        _export(found, destination, task, card, max_shard_bytes, overwrite, progress)


def _export(
    found: ModelSource,
    destination: Path,
    task: str | None,
    card: str | Callable[[ModelSource], str],
    max_shard_bytes: int,
    overwrite: bool,
    progress: Callable[[str], None],
) -> None:
    config, _ = model_dir.read_model(found.model_json)
    if config.prefix:
        raise InputError(f"{found.model_json.parent}: transformers has no place for a prefix")
    if (kind := model_dir.quantisation(found)) != "none" and found.run_dir is None:
        raise InputError(f"{found.model_json.parent}: {kind} kernels; export what it came from")
    family = FAMILIES[config.family]
    abstract = registry.create(config).abstract
    tree_store.check_tree(found.params_dir, found.manifest, abstract, cast=True)
    tree_store.verify(found.params_dir, found.manifest, finite=True)

    config, head = with_one_head(config, task)
    labels, problem = labels_of(found, head) if head else ((), None)
    theirs = _token_ids(found)
    largest = max(found.manifest.values(), key=lambda leaf: math.prod(leaf.shape))
    written = family.write_config(config, labels) | {"dtype": largest.dtype}
    if problem:
        written["problem_type"] = problem
    if isinstance(config, EncoderConfig) and config.position_offset:
        _check_padding(theirs, written)
    theirs = written | {
        name: value for name, value in theirs.items() if value is not None or name not in written
    }
    leaves = tree.flatten(registry.create(config).abstract)
    tensors = mapping.expand(family.rows(config), {p: leaf.shape for p, leaf in leaves.items()})
    tensors.sort(key=lambda tensor: -1 if tensor.layer is None else tensor.layer)
    prefix = "" if head else family.prefix
    places: dict[str, list[mapping.Tensor]] = {}
    for tensor in tensors:
        places.setdefault(tensor.name.removeprefix(prefix), []).append(tensor)
    order = {name: number for number, name in enumerate(places, 1)}
    shapes = mapping.whole_shapes(tensors)

    def blocks(name: str) -> Iterator[np.ndarray]:
        progress(f"{order[name]}/{len(places)} {name}")
        parts = places[name]
        if len(parts[0].slices) > 1:
            yield from _side_by_side(found.params_dir, parts, shapes[parts[0].name])
            return
        for part in parts:
            yield from _blocks(found.params_dir, part)

    with files.new_directory(destination, overwrite) as new:
        described = {
            name: (shapes[parts[0].name], found.manifest[parts[0].ours].dtype)
            for name, parts in places.items()
        }
        files.write_weights(new, described, blocks, max_shard_bytes)
        text = json.dumps(theirs, indent=2, ensure_ascii=False)
        (new / "config.json").write_text(text + "\n", "utf-8")
        files.copy_files(found.tokenizer_dir, new, TOKENIZER_FILES)
        _limit_tokens(new, config, found)
        files.copy_files(found.model_json.parent, new, ["generation_config.json"])
        if found.run_dir is not None and (found.run_dir / "config.json").is_file():
            exported.write(new, found.run_dir, found.step, head)
        (new / "README.md").write_text(card if isinstance(card, str) else card(found), "utf-8")


def with_one_head(config: ModelConfig, task: str | None) -> tuple[ModelConfig, HeadConfig | None]:
    """The model that is left with the head of `task` alone, and that head."""
    if not config.heads:
        if task is not None:
            raise InputError(f"--task {task}: the model has no heads")
        return config, None
    chosen = [head for head in config.heads if task in (None, head.name)]
    if len(chosen) != 1:
        names = ", ".join(head.name for head in config.heads)
        raise InputError(
            f"--task is {task!r}; a model of transformers has one head, this one has {names}. "
            "Name one of them"
        )
    return config.with_heads(tuple(chosen)), chosen[0]


def labels_of(source: ModelSource, head: HeadConfig) -> tuple[Sequence[str], str | None]:
    """What a head's scores stand for, and transformers' name for the kind of task.

    A class that is the only one has none: transformers takes one score for a number or, without a
    name, for a label of its own. Raises ArtifactError where there are more labels than scores, or
    fewer.
    """
    problem = None
    if source.run_dir is not None:
        recipe = Recipe.load(source.run_dir / "task.json")
        kinds = {task.name: task.kind for task in recipe.tasks}
        problem = _PROBLEMS.get(kinds.get(head.name, ""))
        if head.size == 1 and problem == _PROBLEMS["class"]:
            problem = None
    labels = transfer.labels(source, head.name) or attributes.default_labels(head.size)
    if len(labels) != head.size:
        raise ArtifactError(
            f"{source.model_json.parent}: head {head.name} has {head.size} scores and "
            f"{len(labels)} labels; they do not belong together"
        )
    return labels, problem


def _limit_tokens(directory: Path, config: ModelConfig, source: ModelSource) -> None:
    """Write into an exported tokenizer how many tokens the model reads.

    Of a run with heads as many as in the run, where a pipeline of transformers would otherwise cut
    texts elsewhere; of others those that it has positions for, if it has no limit yet.
    """
    path = directory / "tokenizer_config.json"
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return
    fields = read_json(path) if path.is_file() else {}
    limit = getattr(config, "max_position", None)
    if config.heads and source.run_dir is not None:
        limit = Recipe.load(source.run_dir / "task.json").max_length
    elif (own := fields.get("model_max_length")) and attributes.is_size(own):
        return
    if limit is not None:
        write_json(path, fields | {"model_max_length": limit})


def _check_padding(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """RoBERTa of transformers tells positions by the padding id."""
    found, needed = tokenizer["pad_token_id"], model.get("pad_token_id")
    if None not in (found, needed) and found != needed:
        raise InputError(
            f"the tokenizer pads with id {found}; in transformers the model's first position "
            f"makes that {needed}, and it would count positions wrongly. Give the tokenizer that "
            "padding id"
        )


def _blocks(params_dir: Path, tensor: mapping.Tensor) -> Iterator[np.ndarray]:
    """The rows of a Hugging Face tensor; transposing all at once would hold it twice."""
    part = tree_store.read(params_dir, tensor.ours, tensor.place or None)
    part = part.T if tensor.transpose else part
    rows = tree_store.rows_per_block(part.shape, part.itemsize)
    for start in range(0, len(part), rows):
        yield tree_store.contiguous(part[start : start + rows], part.dtype.name)


def _side_by_side(
    params_dir: Path, parts: Sequence[mapping.Tensor], shape: mapping.Shape
) -> Iterator[np.ndarray]:
    """The same where each row has something of every part: one after the other."""
    for row in range(shape[0]):
        read = [tree_store.read(params_dir, part.ours, (*part.place, row)) for part in parts]
        whole = np.empty(shape[1:], read[0].dtype)
        for part, array in zip(parts, read, strict=True):
            whole[part.slices[1:]] = array
        yield whole


def _token_ids(source: ModelSource) -> dict[str, Any]:
    """The special ids that transformers' generate looks for in config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = source.model_json.parent / "generation_config.json"
    if generation.is_file():
        theirs = read_json(generation)
        return {name: theirs.get(name) for name in names}
    if source.tokenizer_dir.is_dir():
        from jaxclf.data.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(source.tokenizer_dir)
        ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return dict(zip(names, ids, strict=True))
    return dict.fromkeys(names)


def check_merged(source: str, step: Which, dtype: str, limit: int) -> list[str]:
    """What merging changes, in words; a run whose data are not at hand is not checked."""
    found = model_dir.resolve(source, step)
    if found.run_dir is None or found.adapters is None:
        return []
    try:
        flips = merging.count_flips(found.run_dir, step, dtype, limit)
    except (InputError, OSError) as error:
        return [f"not compared with the unmerged model: {error}"]
    return [
        f"task {task}: merging ({dtype}) changes {changed} of {count} answers"
        for task, (changed, count) in flips.items()
    ]
