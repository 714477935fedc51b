"""What a run saves and finds again, and what stands behind a checkpoint's path.

RUN/model.json, tokenizer/               the model's dimensions, its tokenizer
RUN/checkpoints/STEP/params/             parameters, see `storage`
RUN/checkpoints/STEP/state/              optimizer state, step, rng
RUN/checkpoints/STEP/meta/meta.json      data iterator, metrics, manifests

MODEL/model.json, tokenizer/             a converted model has the same at its root
MODEL/params/, manifest.json

Where `adapters.json` stands at the root, params/ holds adapters (see `lora`) and not a model; the
file tells their spec, and which base they belong to.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxclf.adapters import lora
from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.tree_store import Manifest
from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.core.types import Params, Tree
from jaxclf.distributed import sharding
from jaxclf.models import registry
from jaxclf.models.decoder import LlamaConfig
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.heads import HeadConfig
from jaxclf.models.layers import RopeScaling
from jaxclf.models.registry import ModelConfig
from jaxclf.models.t5 import T5Config

FAMILIES = {"llama": LlamaConfig, "t5": T5Config} | dict.fromkeys(
    ("bert", "roberta", "distilbert", "electra"), EncoderConfig
)

Which = int | Literal["best", "last"]


class Restored(NamedTuple):
    """A checkpoint in memory."""

    params: Tree
    state: Any
    iterator_state: Any
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one run: the last `keep` of them, and the best.

    The best has the highest `metrics[best_metric]`; of equals the latest; a checkpoint without
    that metric, or with NaN, is never the best. Saving goes on in the background: an error of it
    is raised by the next call of `save`, `wait` or `close`. One process at a time may hold this.
    """

    def __init__(self, workdir: str | Path, keep: int = 1, best_metric: str = "score"):
        if keep < 1:
            raise InputError(f"train.keep is {keep}; a run keeps at least 1 checkpoint")
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.best_metric = best_metric
        self._scores = _scores(self.directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(keep, self._scores),
            cleanup_tmp_directories=True,  # of a save that was killed
            save_root_metadata=False,
        )
        handlers = {
            "params": tree_store.handler(),
            "state": tree_store.handler(),
            "meta": ocp.JsonCheckpointHandler("meta.json"),
        }
        with _storage_errors(f"{self.directory}: cannot be opened"):
            self._manager = ocp.CheckpointManager(
                self.directory, item_handlers=handlers, options=options
            )

    def save(
        self,
        step: int,
        params: Tree,
        state: Any,
        iterator_state: Any,
        metrics: Mapping[str, float],
    ) -> None:
        """Save after `step` steps; the arrays may be donated as soon as this returns.

        `state`: any pytree of arrays, numbers and PRNG keys. `iterator_state`: bytes, or what
        JSON can hold. A step that is already saved is left as it is.
        """
        self.wait()
        if step in _steps(self.directory):
            return
        score = float(metrics.get(self.best_metric, math.nan))
        meta = {
            "step": step,
            "score": None if math.isnan(score) else score,
            "metrics": dict(metrics),
            "iterator_state": _encode_iterator(iterator_state),
            "manifest": {
                "params": tree_store.manifest_to_json(tree_store.describe(params)),
                "state": tree_store.manifest_to_json(tree_store.describe(state)),
            },
        }
        self._scores[step] = meta["score"]
        arguments = ocp.args.Composite(
            params=tree_store.save_args(params),
            state=tree_store.save_args(state),
            meta=ocp.args.JsonSave(_seal(meta)),
        )
        with _storage_errors(f"{self.directory / str(step)}: cannot be saved"):
            self._manager.save(step, args=arguments, force=True)

    def latest_step(self) -> int | None:
        return _choose(self.directory, "last")

    def best_step(self) -> int | None:
        return _choose(self.directory, "best")

    def restore(self, step: Which, abstract_params: Tree, abstract_state: Any) -> Restored:
        """Load bit for bit what was saved; raises ArtifactError naming each damaged leaf."""
        self.wait()
        directory = _step_directory(self.directory, step)
        meta = _read_meta(directory)
        params = tree_store.restore(directory / "params", meta.manifest["params"], abstract_params)
        state = tree_store.restore(directory / "state", meta.manifest["state"], abstract_state)
        return Restored(params, state, meta.iterator_state, meta.metrics)

    def restore_params(self, step: Which, abstract_params: Tree) -> Tree:
        """The parameters alone."""
        manifest = self.manifest(step)
        directory = _step_directory(self.directory, step)
        return tree_store.restore(directory / "params", manifest, abstract_params)

    def manifest(self, step: Which) -> Manifest:
        """That of the parameters of a step."""
        self.wait()
        return _read_meta(_step_directory(self.directory, step)).manifest["params"]

    def wait(self) -> None:
        """Return when the last save is on disk; raises StorageError if it failed."""
        with _storage_errors(f"{self.directory}: the last checkpoint was not saved"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _storage_errors(f"{self.directory}: the last checkpoint was not saved"):
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _LastAndBest:
    """Orbax's preservation policy: which steps stay."""

    keep: int
    scores: Mapping[int, float | None]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], _best({step: self.scores.get(step) for step in steps})}
        return [step in kept for step in steps]


# Finding ------------------------------------------------------------------------------------------


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

    `checkpoint`: what `model.checkpoint` named; empty: RUN/base. `fingerprint`: of that base.
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
        manifest = tree_store.manifest_from_json(tree_store.read_json(source), source)
        return _source(path, path / "params", manifest, None, None)
    if (path / "params").is_dir() and (path / "meta").is_dir():
        directory, run_dir = path, path.parent.parent
    elif (path / "checkpoints").is_dir():
        directory, run_dir = _step_directory(path / "checkpoints", step), path
    else:
        raise ArtifactError(
            f"{path}: no checkpoint here; expected a run directory (checkpoints/), a step of one "
            "(checkpoints/STEP) or a converted model (params/, manifest.json). A Hugging Face "
            "directory is converted by python -m jaxclf.convert.from_hf"
        )
    meta = _read_meta(directory)
    return _source(run_dir, directory / "params", meta.manifest["params"], run_dir, meta.step)


def load_params(source: ModelSource | str | Path, abstract: Params, *, dtype: Any = None) -> Params:
    """Verified parameters in the structure of `abstract`, cast to its dtypes or to `dtype`.

    Each process reads the parts of its own devices. Raises ArtifactError listing what is
    missing, unexpected, of another shape or corrupt, InputError where there are adapters alone.
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
    return tree_store.restore(source.params_dir, source.manifest, abstract, cast=True)


def load_adapters(source: ModelSource, base: Params) -> lora.Adapters:
    """Verified adapters of a base like `base` (arrays, or their shapes alone).

    Raises ArtifactError where they are corrupt or do not fit.
    """
    assert source.adapters is not None
    abstract = sharding.abstract(lora.abstract(base, source.adapters.spec))
    return tree_store.restore(source.params_dir, source.manifest, abstract)


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
    adapters = root / "adapters.json"
    info = read_adapters(adapters) if adapters.is_file() else None
    return ModelSource(params_dir, manifest, model_json, root / "tokenizer", run_dir, step, info)


def _steps(directory: Path) -> list[int]:
    """Complete steps: orbax renames a step's directory to its number when all is written."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def _scores(directory: Path) -> dict[int, float | None]:
    # A step whose meta is gone was being deleted when the run was killed.
    return {
        step: _read_meta(directory / str(step)).score
        for step in _steps(directory)
        if (directory / str(step) / "meta" / "meta.json").is_file()
    }


def _best(scores: Mapping[int, float | None]) -> int | None:
    scored = [(score, step) for step, score in scores.items() if score is not None]
    return max(scored)[1] if scored else None


def _choose(directory: Path, step: Which) -> int | None:
    steps = _steps(directory)
    if not steps:
        return None
    if step == "best":
        best = _best(_scores(directory))
        return steps[-1] if best is None else best
    if step == "last":
        return steps[-1]
    if step not in steps:
        raise ArtifactError(f"{directory}: no checkpoint of step {step}; there are {steps}")
    return step


def _step_directory(directory: Path, step: Which) -> Path:
    chosen = _choose(directory, step)
    if chosen is None:
        raise ArtifactError(f"{directory}: no complete checkpoint; the run saved none")
    return directory / str(chosen)


def write_base(
    directory: Path, params: Tree, config: ModelConfig, dtype: str, quantised: str
) -> None:
    """Write a model directory, which appears whole or not at all, without a tokenizer.

    `params` may be adapters too; adapters.json is then the caller's.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tree_store.TreeWriter(partial / "params") as writer:
        for path, leaf in tree_store.flatten(params).items():
            writer.write(path, leaf.shape, leaf.dtype.name, [np.asarray(leaf)])
    manifest = tree_store.manifest_to_json(writer.manifest)
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    write_model(partial / "model.json", config, dtype, quantised)
    partial.rename(directory)


# Meta ---------------------------------------------------------------------------------------------


class _Meta(NamedTuple):
    step: int
    score: float | None
    metrics: dict[str, float]
    iterator_state: Any
    manifest: dict[str, Manifest]


def _read_meta(directory: Path) -> _Meta:
    path = directory / "meta" / "meta.json"
    sealed = tree_store.read_json(path)
    try:
        meta = sealed["content"]
        if _seal(meta) != sealed:
            raise ValueError("its checksum differs")
        manifest = {
            item: tree_store.manifest_from_json(leaves, path)
            for item, leaves in meta["manifest"].items()
        }
        iterator_state = _decode_iterator(meta["iterator_state"])
        return _Meta(meta["step"], meta["score"], meta["metrics"], iterator_state, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: corrupt ({error})") from error


def _seal(content: Any) -> dict[str, Any]:
    text = json.dumps(content, sort_keys=True)
    return {"content": content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _encode_iterator(state: Any) -> dict[str, Any]:
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    return {"json": state}


def _decode_iterator(state: dict[str, Any]) -> Any:
    return base64.b64decode(state["bytes"]) if "bytes" in state else state["json"]


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Orbax reports a full disk or a lost mount as any of several types."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(f"{what} ({type(error).__name__}: {error})") from error


# model.json ---------------------------------------------------------------------------------------


def write_model(path: Path, config: ModelConfig, dtype: str, quantised: str = "none") -> None:
    """Write model.json; `dtype`: of the stored parameters, `quantised`: what their kernels are."""
    fields = {"family": registry.family_of(config), **dataclasses.asdict(config)}
    fields |= {"dtype": dtype, "quantised": quantised}
    path.write_text(json.dumps(fields, indent=2) + "\n")


def read_model(path: Path) -> tuple[ModelConfig, str]:
    """The dimensions and the dtype of the stored parameters; raises ArtifactError."""
    fields = tree_store.read_json(path)
    try:
        family, dtype = fields["family"], fields.pop("dtype")
        fields.pop("quantised", None)
        if family not in FAMILIES:
            raise ValueError(f"family {family!r} is not known; known: {', '.join(FAMILIES)}")
        if family in ("llama", "t5"):
            del fields["family"]
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        if "heads" in fields:
            fields["heads"] = tuple(HeadConfig(**head) for head in fields["heads"])
        return FAMILIES[family](**fields), dtype
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: describes no model of this version ({error})") from error


def quantisation(source: ModelSource) -> str:
    """What the kernels of a stored model are: none, int8, int4 or nf4."""
    return tree_store.read_json(source.model_json).get("quantised", "none")


# adapters.json ------------------------------------------------------------------------------------


def write_adapters(path: Path, info: AdapterInfo) -> None:
    path.write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n")


def read_adapters(path: Path) -> AdapterInfo:
    """Inverse of `write_adapters`; raises ArtifactError."""
    fields = tree_store.read_json(path)
    try:
        spec = {name: _tuples(value) for name, value in fields["spec"].items()}
        return AdapterInfo(lora.Spec(**spec), fields["checkpoint"], fields["fingerprint"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: describes no adapters of this version ({error!r})") from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
