"""What a checkpoint's path names: a run's checkpoint or a converted model, and what it holds."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf.adapters import lora
from jaxclf.checkpoint import model_files, tree_store
from jaxclf.checkpoint.steps import Which, read_meta, step_directory
from jaxclf.checkpoint.tree_store import Manifest
from jaxclf.core import files, tree
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import write_json
from jaxclf.core.types import Params, Tree
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.distributed import sharding
from jaxclf.models.decoder_config import FAMILIES as DECODERS
from jaxclf.models.decoder_config import DecoderConfig
from jaxclf.models.encoder import FAMILIES as ENCODERS
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.heads import HeadConfig, HeadStyle
from jaxclf.models.layers import RopeScaling
from jaxclf.models.quantization import Quantise
from jaxclf.models.registry import ModelConfig
from jaxclf.models.t5 import T5Config

FAMILIES = (
    dict.fromkeys(("t5", "mt5", "umt5"), T5Config)
    | dict.fromkeys(ENCODERS, EncoderConfig)
    | dict.fromkeys(DECODERS, DecoderConfig)
)

_FROM_RUN = "run:"


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model's parts lie, whether a run saved it or a conversion wrote it."""

    params_dir: Path
    manifest: Manifest
    model_json: Path
    tokenizer_dir: Path
    run_dir: Path | None  # None: a converted model
    step: int | None
    adapters: "AdapterInfo | None" = None  # None: a whole model


@dataclasses.dataclass(frozen=True)
class AdapterInfo:
    """The content of adapters.json.

    `checkpoint`: what `model.checkpoint` named, which may be `relative`; empty: RUN/base.
    `fingerprint`: of that base.
    """

    spec: lora.Spec
    checkpoint: str
    fingerprint: str


def resolve(path: str | Path, step: Which = "best") -> ModelSource:
    """Find the model in a run directory, a step directory of one, or a model directory.

    `step` chooses within a run directory; "best" is the last where no checkpoint has a score.
    Raises ArtifactError where there is none.
    """
    path = Path(path).absolute()
    if (path / "params").is_dir() and (path / "manifest.json").is_file():
        source = path / "manifest.json"
        manifest = tree_store.manifest_from_json(files.read_json(source), source)
        return _source(path, path / "params", manifest, None, None)
    if (path / "params").is_dir() and (path / "meta").is_dir():
        directory, run_dir = path, path.parent.parent
    elif (path / "checkpoints").is_dir():
        directory, run_dir = step_directory(path / "checkpoints", step), path
    else:
        raise ArtifactError(
            f"{path}: no checkpoint here; expected a run directory (checkpoints/), a step of one "
            "(checkpoints/STEP) or a converted model (params/, manifest.json). A Hugging Face "
            "directory is converted by python -m jaxclf.convert.from_hf"
        )
    meta = read_meta(directory)
    return _source(run_dir, directory / "params", meta.manifest["params"], run_dir, meta.step)


def load_params(source: ModelSource | str | Path, abstract: Params, *, dtype: Any = None) -> Params:
    """Verified parameters in the structure of `abstract`, cast to its dtypes or to `dtype`.

    Each process reads the parts of its own devices. Raises ArtifactError listing what is missing,
    unexpected, of another shape, corrupt, NaN or infinite, InputError where there are adapters
    alone or the memory here cannot hold them.
    """
    if not isinstance(source, ModelSource):
        source = resolve(source)
    if source.adapters is not None:
        raise InputError(
            f"{source.model_json.parent} holds adapters, not a model; make one of it first with "
            "python -m jaxclf.convert.to_hf --merge"
        )
    if dtype is not None:
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract)
    abstract = sharding.abstract(abstract)
    sharding.check_memory(abstract)
    return tree_store.restore(source.params_dir, source.manifest, abstract, cast=True, finite=True)


def load_adapters(source: ModelSource, base: Params) -> lora.Adapters:
    """Verified adapters of a base like `base` (arrays, or their shapes alone).

    Raises ArtifactError where they are corrupt, not finite, or do not fit.
    """
    assert source.adapters is not None
    abstract = sharding.abstract(lora.abstract(base, source.adapters.spec))
    return tree_store.restore(source.params_dir, source.manifest, abstract, finite=True)


def check_base(info: AdapterInfo, base: ModelSource, adapters: object) -> None:
    """Raise ArtifactError where `base` is not the one that the adapters were trained on."""
    found = tree_store.fingerprint(base.manifest)
    if found != info.fingerprint:
        raise ArtifactError(
            f"{adapters}: the adapters were trained on a base with the fingerprint "
            f"{info.fingerprint[:16]} ({info.checkpoint or 'base/'}); the one given is "
            f"{found[:16]} ({base.model_json.parent}). Give the base that they belong to"
        )


def _source(root: Path, params_dir: Path, manifest: Manifest, run_dir, step) -> ModelSource:
    model_json = root / "model.json"
    if not model_json.is_file():
        raise ArtifactError(f"{model_json}: missing; {root} is no complete model or run directory")
    model_files.check(root)
    adapters = root / "adapters.json"
    info = read_adapters(adapters) if adapters.is_file() else None
    return ModelSource(params_dir, manifest, model_json, root / "tokenizer", run_dir, step, info)


def write_model(path: Path, config: ModelConfig, dtype: str, quantised: str = "none") -> None:
    """Write model.json; arguments as of `model_text`."""
    files.write_text(path, model_text(config, dtype, quantised))


def model_text(config: ModelConfig, dtype: str, quantised: str = "none") -> str:
    """What model.json holds; `dtype`: of the stored parameters, `quantised`: kernels."""
    fields = {"family": config.family, **dataclasses.asdict(config)}
    return files.json_text(fields | {"dtype": dtype, "quantised": quantised})


def read_model(path: Path) -> tuple[ModelConfig, str]:
    """The dimensions and the dtype of the stored parameters; raises ArtifactError."""
    return model_of(files.read_json(path), path)


def model_of(fields: Any, path: object) -> tuple[ModelConfig, str]:
    """The same from what model.json holds; `path`: where it lies."""
    try:
        family, dtype = fields["family"], fields.pop("dtype")
        fields.pop("quantised", None)
        if family not in FAMILIES:
            raise ValueError(f"family {family!r} is not known; known: {', '.join(FAMILIES)}")
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = RopeScaling(**_tuples(fields["rope_scaling"]))
        if "heads" in fields:
            fields["heads"] = tuple(HeadConfig(**head) for head in fields["heads"])
            if "head" in fields:
                fields["head"] = HeadStyle(**fields["head"])
            elif family in ENCODERS:  # from before the attributes, which the family stood for
                fields = ENCODERS[family] | fields
        return FAMILIES[family](**_tuples(fields)), dtype
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: describes no model of this version ({error})") from error


def quantisation(source: ModelSource) -> str:
    """What the kernels of a stored model are: none, int8, int4 or nf4."""
    return files.read_json(source.model_json).get("quantised", "none")


def write_adapters(path: Path, info: AdapterInfo) -> None:
    files.write_text(path, adapters_text(info))


def adapters_text(info: AdapterInfo) -> str:
    """What adapters.json holds."""
    return files.json_text(dataclasses.asdict(info))


def read_adapters(path: Path) -> AdapterInfo:
    """Inverse of `write_adapters`; raises ArtifactError."""
    fields = files.read_json(path)
    try:
        spec = {name: files.tuples(value) for name, value in fields["spec"].items()}
        return AdapterInfo(lora.Spec(**spec), fields["checkpoint"], fields["fingerprint"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: describes no adapters of this version ({error!r})") from error


FindModel = Callable[[str, Quantise], ModelSource]


def find_model(checkpoint: str, quantise: Quantise = "none") -> ModelSource:
    """A run or model directory of ours; raises InputError where it is quantised otherwise.

    The commands pass `jaxclf.convert.hf_import.resolve` instead, which converts others on the way.
    """
    source = resolve(checkpoint)
    if (found := quantisation(source)) != quantise:
        raise InputError(
            f"model.quantize is {quantise!r}; the kernels of {checkpoint} are {found!r}. Set it to "
            "that, or give the checkpoint that it was converted from"
        )
    return source


def relative(directory: Path, run_dir: Path) -> str:
    """What names a directory from a run's own folder, so that both can be moved together."""
    return _FROM_RUN + os.path.relpath(directory, run_dir)


def located(checkpoint: str, run_dir: Path) -> str:
    """Where a checkpoint lies that a run names: inverse of `relative`, others as they are."""
    if not checkpoint.startswith(_FROM_RUN):
        return checkpoint
    return os.path.normpath(run_dir / checkpoint.removeprefix(_FROM_RUN))


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that dimensions have."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


def find_base(config: ConfigDict, run_dir: Path, find: FindModel) -> ModelSource:
    """The frozen base of a run of adapters: what the config names, or the run's own."""
    if config.model.checkpoint:
        return find(located(config.model.checkpoint, run_dir), config.model.quantize)
    return resolve(run_dir / "base")


def write_base(
    directory: Path,
    params: Tree,
    config: ModelConfig,
    dtype: str,
    quantised: str,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model directory, which appears whole and sealed or not at all.

    `params` may be adapters too; adapters.json is then the caller's.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tree_store.TreeWriter(partial / "params") as writer:
        for path, leaf in tree.flatten(params).items():
            writer.write(path, leaf.shape, leaf.dtype.name, [np.asarray(leaf)])
    manifest = tree_store.manifest_to_json(writer.manifest)
    write_json(partial / "manifest.json", manifest)
    write_model(partial / "model.json", config, dtype, quantised)
    if tokenizer is not None:
        tokenizer.save(partial / model_files.TOKENIZER)
    model_files.seal(partial)
    partial.rename(directory)
