"""A LoRA adapter of the peft library becomes an adapter directory of ours."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclf.adapters import lora
from jaxclf.checkpoint import model_dir, model_files, tree_store
from jaxclf.checkpoint.model_dir import AdapterInfo, ModelSource
from jaxclf.checkpoint.tree_store import Manifest
from jaxclf.classifiers import transfer
from jaxclf.convert import files, hf_import, mapping, peft
from jaxclf.convert.mapping import Family, Shape, Tensor
from jaxclf.convert.peft import PREFIX, SETTINGS, TASK_TYPES, WEIGHTS
from jaxclf.core import logs, tree
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import read_json, write_json
from jaxclf.models import registry
from jaxclf.models.heads import HeadConfig, HeadKind
from jaxclf.models.registry import ModelConfig


def convert(
    source: Path, destination: Path, base: str | None = None, *, overwrite: bool = False
) -> None:
    """Write `destination`, the adapters in float32, from the peft directory `source`.

    `base`: instead of the one that the settings name. Its dimensions go along, with the head that
    `source` holds. Raises InputError for settings that we cannot honour, ArtifactError for a
    corrupt or incomplete file, or one that does not fit the base.
    """
    settings = peft.read_settings(read_json(source / SETTINGS), source / SETTINGS)
    weights = files.Weights(source, file=WEIGHTS)
    checkpoint = base or _named_base(settings, source / SETTINGS)
    found = hf_import.resolve(checkpoint)
    if found.adapters is not None:
        raise InputError(f"{checkpoint} holds adapters itself; give the model below them")
    config, _ = model_dir.read_model(found.model_json)
    family = hf_import.FAMILIES[config.family]
    config = _with_head(config, family, settings, weights.shapes, source)

    abstract = registry.create(config).abstract
    shapes = {path: leaf.shape for path, leaf in tree.flatten(abstract).items()}
    model = mapping.expand(peft.table(family, config), shapes)
    if not any(name.startswith(PREFIX + family.prefix) for name in weights.shapes):
        model = peft.without(family.prefix, model)
    saved = {
        tensor.ours
        for tensor in model
        if PREFIX + tensor.name in weights.shapes
        or peft.is_saved(tensor, settings)
        or not _has(found.manifest, tensor.ours, shapes[tensor.ours])
    }
    peft.check_tied(config, saved, source)
    others = [tensor for tensor in model if tensor.ours not in saved]
    peft.refuse_parameters(model, settings, source / SETTINGS)
    places = peft.read_places(others, settings, weights.shapes)
    tensors = peft.layout(model, places, settings["use_dora"], saved)
    copies = _copies_of_base(others, weights, found)
    mapping.check(tensors, weights.shapes, copies, source, SETTINGS)
    if not places:
        raise ArtifactError(f"{source / WEIGHTS}: holds no factors of LoRA")
    depths = {
        tensor.ours.removesuffix("/kernel"): None if tensor.layer is None else tensor.layer + 1
        for tensor in filter(peft.is_kernel, model)  # the last layer counts
    }
    experts = {tensor.ours.removesuffix("/kernel") for tensor in filter(peft.is_experts, model)}
    spec = peft.make_spec(places, depths, experts, sorted(saved), settings)
    assert lora.places(abstract, spec) == places, "the spec chooses something else"

    with files.new_directory(destination, overwrite) as new:
        with tree_store.TreeWriter(new / "params", source / WEIGHTS) as writer:
            for path in dict.fromkeys(tensor.ours for tensor in tensors):
                parts = [tensor for tensor in tensors if tensor.ours == path]
                _write(writer, path, parts, weights)
        manifest = tree_store.manifest_to_json(writer.manifest)
        write_json(new / "manifest.json", manifest)
        model_dir.write_model(new / "model.json", config, "float32")
        origin = {"source": source.absolute().name, "labels": _labels(config, weights, found)}
        write_json(new / "conversion.json", origin)
        fingerprint = tree_store.fingerprint(found.manifest)
        info = AdapterInfo(spec, _reference(checkpoint), fingerprint)
        model_dir.write_adapters(new / "adapters.json", info)
        has_own = any((source / name).is_file() for name in hf_import.TOKENIZER_FILES)
        tokenizer = source if has_own else found.tokenizer_dir
        hf_import.copy_tokenizer(tokenizer, new / "tokenizer", logs.say)
        model_files.seal(new)


def _named_base(settings: Mapping[str, Any], source: object) -> str:
    name, revision = settings["base_model_name_or_path"], settings["revision"]
    if not isinstance(name, str) or not name:
        raise InputError(f"{source}: names no base; give it with --base")
    if revision not in (None, "", "main"):
        raise InputError(
            f"{source}: the base is revision {revision!r} of {name}; download that and give its "
            "directory with --base"
        )
    return name


def _reference(checkpoint: str) -> str:
    """A directory by its whole path: whoever reads it may stand elsewhere."""
    path = Path(checkpoint).expanduser()
    return str(path.absolute()) if path.is_dir() else checkpoint


def _with_head(
    config: ModelConfig,
    family: Family,
    settings: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    source: object,
) -> ModelConfig:
    """The base's dimensions with the head that the file holds, if any, in place of its own."""
    sizes: dict[HeadKind, int] = {}
    for kind, task_type in TASK_TYPES.items():
        with_head = dataclasses.replace(config, heads=(HeadConfig(kind, kind, 1),))
        ours = f"heads/{kind}/out/kernel"
        name = next(row.theirs for row in family.rows(with_head) if row.ours == ours)
        is_possible = settings["task_type"] in (task_type, None)
        if is_possible and (shape := shapes.get(PREFIX + name)):
            sizes[kind] = shape[0]
    if len(sizes) > 1:  # of one name: the base tells
        kinds = {head.kind for head in config.heads}
        sizes = {kind: size for kind, size in sizes.items() if kinds == {kind}}
        if not sizes:
            raise InputError(
                f"{source}: holds a head, and {SETTINGS} does not tell of which kind. Set its "
                f"task_type to {' or '.join(TASK_TYPES.values())}"
            )
    for kind, size in sizes.items():
        names = [head.name for head in config.heads if head.kind == kind]
        head = HeadConfig(names[0] if len(names) == 1 else kind, kind, size)
        return config.with_heads((head,))
    return config


def _copies_of_base(
    model: Sequence[Tensor], weights: files.Weights, base: ModelSource
) -> list[str]:
    """Patterns of the base's own tensors, which peft adds where an unembedding has factors.

    Raises ArtifactError where they are not those of the base.
    """
    names = {f"{PREFIX}{peft.module_of(tensor)}.base_layer.weight": tensor for tensor in model}
    copies = [name for name in names if name in weights.shapes]
    for name in copies:
        own = tree_store.read(base.params_dir, names[name].ours, names[name].place or None)
        if not np.array_equal(weights[name], own.T):
            raise ArtifactError(
                f"{name} differs from that of {base.model_json.parent}: the adapter was trained on "
                "another base"
            )
    return list(map(re.escape, copies))


def _labels(config: ModelConfig, weights: files.Weights, base: ModelSource) -> list[str] | None:
    """What the head scores: as our export says, else as the base's head of the same size does."""
    if len(config.heads) != 1:
        return None
    (head,) = config.heads
    try:
        own = json.loads(weights.metadata.get(peft.LABELS, "[]"))
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        raise ArtifactError(f"{WEIGHTS}: its metadata names no {peft.LABELS}")
    labels = own or list(transfer.labels(base, head.name))
    if own and len(own) != head.size:
        raise ArtifactError(f"{WEIGHTS}: names {len(own)} labels for {head.size} scores")
    return labels if len(labels) == head.size else None


def _has(base: Manifest, path: str, shape: Shape) -> bool:
    return path in base and base[path].shape == shape


def _write(
    writer: tree_store.TreeWriter, path: str, parts: Sequence[Tensor], weights: files.Weights
) -> None:
    """Write one leaf from its layers, narrower ranks filled up with zeros."""
    arrays = [weights[part.name][part.slices].astype(np.float32) for part in parts]
    arrays = [a.T if part.transpose else a for a, part in zip(arrays, parts, strict=True)]
    widest = tuple(map(max, zip(*(array.shape for array in arrays), strict=True)))
    filled = [
        np.pad(array, [(0, size - own) for size, own in zip(widest, array.shape, strict=True)])
        for array in arrays
    ]
    names = [part.name for part in parts]
    if parts[0].expert is not None:
        count = 1 + max(part.expert or 0 for part in parts)
        firsts = range(0, len(parts), count)
        filled = [np.stack(filled[first : first + count]) for first in firsts]
        widest, names = (count, *widest), names[::count]
    shape = widest if parts[0].layer is None else (len(filled), *widest)
    writer.write(path, shape, "float32", filled, names)
