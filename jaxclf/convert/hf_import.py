"""A Hugging Face checkpoint becomes a model directory of ours, leaf by leaf, layer by layer."""

import hashlib
import importlib.util
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclf.checkpoint import model_dir, model_files, tree_store
from jaxclf.checkpoint.model_dir import find_model
from jaxclf.convert import attributes, decoders, encoders, files, gguf, mapping, t5
from jaxclf.core import cache, locks, logs, tree
from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.core.files import read_json, write_json
from jaxclf.core.suggest import nearest_names
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.models import quantization, registry
from jaxclf.models.quantization import Quantise, QuantKernel
from jaxclf.models.registry import ModelConfig

FAMILIES = {**decoders.FAMILIES, **t5.FAMILIES, **encoders.FAMILIES}  # by model_type

AnyWeights = files.Weights | gguf.GgufWeights

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)

_LONGEST_CONVERSION = 3600.0  # seconds to wait for another process that converts the same
_LAYOUT = "7"  # of a model directory; another one makes old cache entries unused


def convert(
    source: Path,
    destination: Path,
    dtype: str = "keep",
    quantise: Quantise = "none",
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = print,
) -> None:
    """Write `destination` from the Hugging Face directory, or GGUF file, `source`.

    `dtype`: "keep", or what all parameters are cast to. `quantise`: "none", or the kind that
    kernels become, each layer by itself (see `kernels.quantiser`). Tensors of heads that we do not
    have are left behind; `conversion.json` lists them and the labels of the head that was taken.
    Memory peaks at the largest tensor of the source plus a few blocks. Raises InputError for a
    checkpoint that we cannot honour, ArtifactError for a corrupt or incomplete one.
    """
    is_gguf = source.suffix == ".gguf"
    described = source if is_gguf else source / "config.json"
    reader = gguf.open_file(source) if is_gguf else None
    theirs = gguf.read_config(reader, source) if is_gguf else read_json(described)
    family = _family(theirs, described)
    if is_gguf:
        config = family.read_config(theirs, described, ())
        weights: AnyWeights = gguf.GgufWeights(reader, family.rows(config), theirs)
    else:
        weights = files.Weights(source, family.ignored, family.renamed)
        config = family.read_config(theirs, described, weights.shapes)
    leaves = tree.flatten(registry.create(config).abstract)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    rows = family.rows(config)
    mapping.check_depths(rows, shapes, weights.shapes, described)
    tensors = mapping.expand(rows, shapes)
    copies = _tied_copies(weights, family.tied, tensors)
    patterns = [*family.unused, *(family.beside_head if _has_head(config) else ())]
    mapping.check(tensors, weights.shapes, [*patterns, *copies], source)
    used = {tensor.name for tensor in tensors}
    others = [name for name in weights.shapes if name not in used]
    unused = [name for name in others if mapping.matches(name, patterns)]
    if unused:
        progress(f"unused: {', '.join(unused)}")

    with files.new_directory(destination, overwrite) as new:
        with tree_store.TreeWriter(new / "params", source) as writer:
            for path, leaf in leaves.items():
                parts = [tensor for tensor in tensors if tensor.ours == path]
                stored = _one_dtype(weights, parts) if dtype == "keep" else dtype
                change = quantization.quantiser(path, quantise) if quantise != "none" else None
                if change is None:
                    writer.write(path, leaf.shape, stored, _read(weights, parts), _names(parts))
                else:
                    _write_quantised(writer, path, leaf, change, parts, weights)
                count = f"{len(writer.manifest)}/{len(leaves)}"
                progress(f"{count} {path} {stored}{list(leaf.shape)} from {parts[0].name}")
        manifest = tree_store.manifest_to_json(writer.manifest)
        write_json(new / "manifest.json", manifest)
        floats = [leaf for leaf in writer.manifest.values() if "int" not in leaf.dtype]
        largest = max(floats, key=lambda leaf: math.prod(leaf.shape))
        model_dir.write_model(new / "model.json", config, largest.dtype, quantise)
        labels = attributes.labels(theirs, described) if _has_head(config) else None
        origin = {"source": source.absolute().name, "unused": unused, "labels": labels}
        write_json(new / "conversion.json", origin)
        if is_gguf:
            gguf.write_tokenizer(reader, new / "tokenizer", source, progress)
        else:
            copy_tokenizer(source, new / "tokenizer", progress)
            files.copy_files(source, new, ["generation_config.json"])
        model_files.seal(new)


def _family(theirs: Any, described: Path) -> mapping.Family:
    """The family that a config.json names; raises InputError with what is nearest."""
    kind = theirs.get("model_type") if isinstance(theirs, dict) else None
    if str(kind) in FAMILIES:
        return FAMILIES[str(kind)]
    near = nearest_names(str(kind), FAMILIES, 3)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise InputError(
        f"{described}: model_type is {kind!r}, which is not read{hint}. Read are "
        f"{', '.join(FAMILIES)}. A decoder that differs from these in attributes alone is a row of "
        "jaxclf/convert/decoder_families.py: see docs/how-to/model-family.md"
    )


def copy_tokenizer(source: Path, destination: Path, progress: Callable[[str], None]) -> None:
    """Copy the tokenizer's files, if there are any, and read them where they then lie.

    Raises ArtifactError where they cannot be read; one that is of no use here is named.
    """
    files.copy_files(source, destination, TOKENIZER_FILES)
    if not destination.is_dir():
        return
    try:
        Tokenizer.load(destination)
    except InputError as error:
        progress(f"{source}: set tokenizer.path where this model is used: {error}")
    except ArtifactError as error:
        raise ArtifactError(
            f"{str(error).replace(str(destination), str(source))}. Copy its files again, or remove "
            "them and name another tokenizer with tokenizer.path"
        ) from error


def cached(
    source: str,
    dtype: str = "keep",
    quantise: Quantise = "none",
    *,
    progress: Callable[[str], None] = logs.say,
) -> Path:
    """The model directory of a Hugging Face directory or hub id, converted at the first call.

    It lies under $JAXCLF_CACHE or ~/.cache/jaxclf; files of another size or time, another `dtype`
    or another `quantise` make another entry.
    """
    directory = locate(source)
    entry = (
        cache.root()
        / "models"
        / f"{directory.name}-{_fingerprint(directory, dtype, quantise)[:16]}"
    )
    if not entry.is_dir():
        with locks.file(entry, patience=_LONGEST_CONVERSION):
            if not entry.is_dir():  # else another process has just made it
                progress(f"converting {directory} into {entry}")
                convert(directory, entry, dtype, quantise, progress=progress)
    return entry


def resolve(source: str, quantise: Quantise = "none") -> model_dir.ModelSource:
    """What `config.model.checkpoint` names: a run or model directory of ours, or Hugging Face's.

    `quantise`: what its kernels have to be; one of Hugging Face is converted to it.
    """
    path = Path(source).expanduser()
    if (path / "params").is_dir() or (path / "checkpoints").is_dir():
        return find_model(str(path), quantise)
    return model_dir.resolve(cached(source, quantise=quantise))


def locate(source: str) -> Path:
    """The local directory or GGUF file of `source`, downloaded where it is of the hub.

    `package:NAME/PATH` is one of an installed Python package, which is not imported; of the hub
    OWNER/NAME, or OWNER/NAME/FILE.gguf.
    """
    if source.startswith("package:"):
        return _locate_in_package(source)
    path = Path(source).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path.absolute()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w./-]+\.gguf)?", source):
        raise InputError(f"{source}: no such directory, and no hub id (OWNER/NAME)")
    import huggingface_hub

    owner, name, *file = source.split("/", 2)

    wanted = ["*.safetensors", "*.json", "*.jinja"]
    wanted += ["tokenizer.model", "spiece.model", "vocab.txt", "merges.txt"]
    try:
        if file:
            found = huggingface_hub.hf_hub_download(f"{owner}/{name}", file[0])
        else:
            found = huggingface_hub.snapshot_download(
                source, allow_patterns=wanted, ignore_patterns=["*/*"]
            )
    except Exception as error:  # the hub's own errors, the network's, a missing login
        raise StorageError(
            f"{source}: no such directory here, and not to be had from the hub ({error})"
        ) from error
    return Path(found)


def _locate_in_package(source: str) -> Path:
    name, _, folder = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        raise InputError(
            f"{source}: no package {name!r} is installed here (package:NAME/FOLDER); "
            "pip install 'jaxclf[demo]' brings those that the examples use"
        )
    for root in spec.submodule_search_locations or ():
        path = Path(root) / folder
        if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
            return path
    raise InputError(f"{source}: the package {name} has no folder or GGUF file {folder!r}")


def _tied_copies(
    weights: AnyWeights, tied: Mapping[str, str], tensors: list[mapping.Tensor]
) -> list[str]:
    """Patterns of tensors that repeat another one; raises ArtifactError where they differ."""
    used = {tensor.name for tensor in tensors}
    copies = [name for name in tied if name in weights.shapes and name not in used]
    for name in copies:
        original = tied[name]
        if original in weights.shapes and weights[name].tobytes() != weights[original].tobytes():
            raise ArtifactError(
                f"{name} differs from {original}, though config.json says that they are tied; "
                "set tie_word_embeddings to false there if the weights are right"
            )
    return [re.escape(name) for name in copies]


def _has_head(config: ModelConfig) -> bool:
    return bool(config.heads)


def _one_dtype(weights: AnyWeights, parts: list[mapping.Tensor]) -> str:
    found = {weights.dtypes[part.name] for part in parts}
    if len(found) > 1:
        raise InputError(
            f"{parts[0].name} and its like in other layers have several dtypes "
            f"({', '.join(sorted(found))}); choose one with --dtype"
        )
    return found.pop()


def _read(weights: AnyWeights, parts: list[mapping.Tensor]) -> Iterator[np.ndarray]:
    for _ in range(parts[0].layer or 0):  # layers that have none
        yield np.ones_like(weights[parts[0].name][parts[0].slices])
    for of_layer in _layers(parts):
        read = [weights[part.name][part.slices] for part in of_layer]
        read = [
            each.T if part.transpose else each for each, part in zip(read, of_layer, strict=True)
        ]
        yield read[0] if of_layer[0].expert is None else np.stack(read)


def _layers(parts: list[mapping.Tensor]) -> Iterator[list[mapping.Tensor]]:
    """The parts of each layer: one, or one of each expert."""
    for _, group in itertools.groupby(parts, key=lambda part: part.layer):
        yield list(group)


def _names(parts: list[mapping.Tensor]) -> list[str]:
    return [of_layer[0].name for of_layer in _layers(parts)]


def _write_quantised(
    writer: tree_store.TreeWriter,
    path: str,
    leaf: jax.ShapeDtypeStruct,
    change: Callable[[jax.Array], QuantKernel],
    parts: list[mapping.Tensor],
    weights: AnyWeights,
) -> None:
    """Write a leaf's values and its scales, reading it twice so that one part is held at once."""
    abstract = tree.flatten(jax.eval_shape(change, leaf))
    quantised = jax.jit(change)
    for name, part in abstract.items():
        arrays = (tree.flatten(quantised(array))[name] for array in _read(weights, parts))
        arrays = map(np.asarray, arrays)
        writer.write(f"{path}/{name}", part.shape, part.dtype.name, arrays, _names(parts))


def _fingerprint(directory: Path, dtype: str, quantise: Quantise) -> str:
    digest = hashlib.sha256(f"{_LAYOUT} {dtype} {quantise} {directory}".encode())
    for path in [directory] if directory.is_file() else sorted(directory.iterdir()):
        if (
            path == directory
            or path.suffix == ".safetensors"
            or path.suffix == ".json"
            or path.name in TOKENIZER_FILES
        ):
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
