"""How a tree of arrays lies on disk: orbax's zarr3 layout, and a manifest of checksums.

    DIRECTORY/_METADATA                      orbax's list of the leaves
    DIRECTORY/layers.mlp.up.kernel/zarr.json one zarr array per leaf, named by its path
    DIRECTORY/layers.mlp.up.kernel/c/0/0/0   its chunks

The manifest is kept beside the directory, by whoever owns it. A leaf's path is its keys joined by
"/": `layers/mlp/up/kernel`, and in an optimizer state `opt_state/0/mu/layers/mlp/up/kernel`.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxclf.core.errors import ArtifactError
from jaxclf.core.finite import count_not_finite
from jaxclf.core.tree import flatten, nest
from jaxclf.distributed import processes

# Bytes of a leaf held at once while writing or verifying: far below the largest tensor of a model
# that matters, far above the cost of a file.
BLOCK_BYTES = 64 * 1024**2
_THREADS = 4  # leaves hashed at once
_NOT_FINITE = "weights that are NaN or infinite"
_DAMAGED = (
    "The training that wrote them diverged, or the cast of --dtype overflows: take an earlier "
    "checkpoint, or keep the dtype of the file."
)

Region = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One line of a manifest; `sha256` is over the C-order little-endian bytes.

    Of a leaf that lies cut over several processes there is one for each part instead: `parts` has
    the (start, stop) of every dimension with the part's own checksum.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    parts: tuple[tuple[Region, str], ...] = ()


Manifest = dict[str, Leaf]


def describe(tree: Any) -> Manifest:
    """The manifest of a tree in memory; waits for its arrays and copies them to the host.

    Several processes each describe the parts that they have, and all get the whole manifest.
    """
    leaves = _plain(tree)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(leaves, pool.map(_describe_leaf, leaves.values()), strict=True))
    digests = [bytes.fromhex(digest) for leaf in found.values() for _, digest in leaf.parts]
    if not digests:
        return found
    everywhere = processes.together(np.stack([np.frombuffer(one, np.uint8) for one in digests]))
    whole = iter(everywhere)
    return {
        path: dataclasses.replace(
            leaf, parts=tuple((region, next(whole).tobytes().hex()) for region, _ in leaf.parts)
        )
        for path, leaf in found.items()
    }


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    fields = {path: dataclasses.asdict(leaf) for path, leaf in manifest.items()}
    for leaf in fields.values():
        if not leaf["parts"]:
            del leaf["parts"]
    return fields


def manifest_from_json(data: Any, source: Path) -> Manifest:
    """Inverse of `manifest_to_json`; raises ArtifactError naming `source`."""
    try:
        return {
            path: Leaf(
                tuple(map(int, leaf["shape"])),
                str(leaf["dtype"]),
                str(leaf["sha256"]),
                tuple(
                    (tuple((int(start), int(stop)) for start, stop in region), str(digest))
                    for region, digest in leaf.get("parts", ())
                ),
            )
            for path, leaf in data.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{source}: not a manifest of leaves ({error!r})") from error


def fingerprint(manifest: Manifest) -> str:
    """A sha256 that two trees share if and only if every leaf is the same, bit for bit."""
    text = json.dumps(manifest_to_json(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# Saving -------------------------------------------------------------------------------------------


def handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's writer of the layout above."""
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)


def save_args(tree: Any) -> ocp.args.PyTreeSave:
    """What orbax writes for a tree: nested dicts of plain arrays, one chunk per layer."""
    leaves = _plain(tree)
    per_layer = {
        path: ocp.SaveArgs(shard_axes=(0,) if leaf.ndim == 3 else ())
        for path, leaf in leaves.items()
    }
    return ocp.args.PyTreeSave(nest(leaves), save_args=nest(per_layer))


class TreeWriter:
    """Writes a tree leaf by leaf and block by block, so that no leaf need fit in memory.

    with TreeWriter(directory) as writer:
        writer.write("layers/mlp/up/kernel", (L, D, F), "bfloat16", (layer(i) for i in range(L)))
    writer.manifest  # of what was written

    `source`: where the values come from. Raises ArtifactError at the end where some of them are
    NaN or infinite: each answer of such a model would be one more NaN.
    """

    def __init__(self, directory: Path, source: object = ""):
        self.directory, self.source = directory, source or directory
        self.manifest: Manifest = {}
        self._not_finite: list[str] = []

    def __enter__(self) -> "TreeWriter":
        self.directory.mkdir(parents=True)
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._not_finite:
            raise ArtifactError(_list(f"{self.source}: {_NOT_FINITE}", self._not_finite, _DAMAGED))
        if kind is None:
            (self.directory / "_METADATA").write_text(json.dumps(_metadata(self.manifest)), "utf-8")

    def write(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: str,
        parts: Iterable[np.ndarray],
        names: Sequence[str] = (),
    ) -> None:
        """Write one leaf from its layers in order, or from itself as the only part.

        Parts are cast to `dtype`; they may be transposed views. `names`: what errors call each of
        them. Raises ValueError where they do not fill `shape`.
        """
        array, digest, written = None, hashlib.sha256(), 0
        for index, part in enumerate(parts):
            prefix = (index,) if part.ndim < len(shape) else ()
            if part.shape != shape[len(prefix) :]:
                raise ValueError(f"{path}: part {index} is {part.shape}, the leaf {shape}")
            rows = rows_per_block(part.shape, np.dtype(dtype).itemsize)
            if array is None:
                chunk = (1,) * len(prefix) + (rows, *part.shape[1:])
                array = self._create(path, shape, dtype, chunk)
            wrong = 0
            for start in range(0, part.shape[0], rows):
                block = contiguous(part[start : start + rows], dtype)
                digest.update(_bytes(block))
                wrong += count_not_finite(block)
                array[(*prefix, slice(start, start + len(block)))].write(block).result()
                written += block.size
            if wrong:
                name = names[index] if names else "/".join(map(str, (path, *prefix)))
                self._not_finite.append(f"{name}: {wrong:,} of {part.size:,} values")
        if written != np.prod(shape):
            raise ValueError(f"{path}: {written} of {np.prod(shape)} values were given")
        self.manifest[path] = Leaf(shape, dtype, digest.hexdigest())

    def _create(self, path: str, shape, dtype: str, chunk) -> tensorstore.TensorStore:
        spec = _spec(self.directory, path) | {
            "metadata": {
                "shape": shape,
                "data_type": dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                # Trained weights hardly compress.
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            },
            # A chunk of zeros must be a file: a missing one means that it was lost.
            "store_data_equal_to_fill_value": True,
        }
        return tensorstore.open(spec, create=True).result()


# Reading ------------------------------------------------------------------------------------------


def read(directory: Path, path: str, index: tuple[int, ...] | int | None = None) -> np.ndarray:
    """One leaf, or one layer (or part of it) of it, without verifying it."""
    array = tensorstore.open(_spec(directory, path), open=True).result()
    if index is not None:
        part = array[index]
        array = part.translate_to[(0,) * part.ndim]
    out = np.empty(array.shape, array.dtype.numpy_dtype)
    for block in _blocks(array):  # one at a time: reading all at once would hold the leaf twice
        out[block] = array[block].read().result()
    return out


def check_tree(directory: Path, manifest: Manifest, abstract: Any, *, cast: bool = False) -> None:
    """Compare what is stored with what is wanted, as `restore` does, without reading any leaf."""
    wanted = _plain_abstract(abstract)
    defects = [f"{path}: missing" for path in wanted if path not in manifest]
    defects += [f"{path}: unexpected" for path in manifest if path not in wanted]
    for path in wanted.keys() & manifest.keys():
        stored, leaf = manifest[path], wanted[path]
        if stored.shape != leaf.shape:
            defects.append(f"{path}: shape {stored.shape}, expected {leaf.shape}")
        both_float = jnp.issubdtype(stored.dtype, jnp.floating) and jnp.issubdtype(
            leaf.dtype, jnp.floating
        )
        if stored.dtype != leaf.dtype.name and not (cast and both_float):
            defects.append(f"{path}: dtype {stored.dtype}, expected {leaf.dtype.name}")
    if defects:
        remedy = "It belongs to another model or optimizer: check config.model and config.train."
        raise ArtifactError(_list(f"{directory}: does not fit", sorted(defects), remedy))


def verify(directory: Path, manifest: Manifest, *, finite: bool = False) -> None:
    """Read every leaf and compare it with the manifest; several processes share the leaves.

    Raises ArtifactError naming each leaf that cannot be read or differs by a single bit, or, where
    they have to be `finite`, holds NaN or infinity.
    """
    own = list(manifest.items())[jax.process_index() :: jax.process_count()]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda item: _defect(directory, *item), own))
    damaged = [defect for defect, _ in found if defect]
    not_finite = [defect for _, defect in found if defect and finite]
    if processes.together(np.array(len(damaged) + len(not_finite))) and not damaged + not_finite:
        damaged = ["another process found which leaves"]
    if damaged:
        raise ArtifactError(_list(f"{directory}: corrupt", damaged, "Restore it from a copy."))
    if not_finite:
        raise ArtifactError(_list(f"{directory}: {_NOT_FINITE}", not_finite, _DAMAGED))


def restore(
    directory: Path,
    manifest: Manifest,
    abstract: Any,
    *,
    sharding: Any = None,
    cast: bool = False,
    finite: bool = False,
) -> Any:
    """Verify the stored tree, then load it in the structure of `abstract`.

    `abstract`: any tree of arrays, ShapeDtypeStructs or typed PRNG keys. `sharding`: one for all,
    or a tree like `abstract`; None: that of the abstract leaf, else the first local device.
    `cast`: floating-point leaves may be stored in another floating-point dtype than asked for.
    `finite`: none may hold NaN or infinity. Raises ArtifactError listing leaves that are missing,
    unexpected, of another shape or dtype, or corrupt.
    """
    check_tree(directory, manifest, abstract, cast=cast)
    verify(directory, manifest, finite=finite)

    wanted = _plain_abstract(abstract)
    shardings = dict.fromkeys(wanted, sharding)
    if sharding is not None and not isinstance(sharding, jax.sharding.Sharding):
        shardings = flatten(sharding)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arguments = {
        path: ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=shardings[path] or leaf.sharding or first,
            global_shape=leaf.shape,
            dtype=leaf.dtype,
        )
        for path, leaf in wanted.items()
    }
    try:
        with ocp.Checkpointer(handler()) as checkpointer:
            restored = checkpointer.restore(
                directory.absolute(),
                args=ocp.args.PyTreeRestore(
                    nest(wanted),
                    restore_args=nest(arguments),
                    partial_restore=True,  # a manifest may name only a part; it was checked above
                ),
            )
    except (jax.errors.JaxRuntimeError, MemoryError):  # no room is no fault of the files
        raise
    except Exception as error:
        raise ArtifactError(f"{directory}: orbax cannot read it ({error})") from error
    restored = flatten(restored)
    # A leaf that orbax's own list of leaves has lost comes back as it was asked for.
    lost = [path for path in wanted if not isinstance(restored.get(path), jax.Array)]
    if lost:
        defects = [f"{path}: missing in orbax's list of leaves" for path in sorted(lost)]
        raise ArtifactError(_list(f"{directory}: corrupt", defects, "Restore it from a copy."))
    leaves = [_decode(restored[path], leaf) for path, leaf in flatten(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _defect(directory: Path, path: str, leaf: Leaf) -> tuple[str, str]:
    """What is damaged in a stored leaf, and what is not finite; "" where nothing is."""
    wrong = 0
    try:
        array = tensorstore.open(_spec(directory, path), open=True).result()
        if (array.shape, array.dtype.name) != (leaf.shape, leaf.dtype):
            return (
                f"{path}: stored as {array.dtype.name}{array.shape}, "
                f"the manifest says {leaf.dtype}{leaf.shape}"
            ), ""
        for region, expected in leaf.parts or (((), leaf.sha256),):
            part = array
            if region:
                place = tuple(slice(start, stop) for start, stop in region)
                part = array[place].translate_to[(0,) * array.ndim]
            digest = hashlib.sha256()
            for block in _blocks(part):
                values = part[block].read().result()
                digest.update(_bytes(values))
                wrong += count_not_finite(values)
            if digest.hexdigest() != expected:
                return f"{path}: its checksum differs", ""
    except Exception as error:  # tensorstore reports damage as any of several types
        return f"{path}: unreadable ({str(error)[:200]})", ""
    return "", f"{path}: {wrong:,} of {math.prod(leaf.shape):,} values" if wrong else ""


# Leaves -------------------------------------------------------------------------------------------


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(tree: Any) -> dict[str, Any]:
    """Leaves that orbax can store: PRNG keys as their data, numbers as JAX arrays."""

    def plain(path, leaf):
        if _is_key(leaf):
            return jax.random.key_data(leaf)
        array = jnp.asarray(leaf)
        if hasattr(leaf, "dtype") and array.dtype != leaf.dtype:
            raise TypeError(f"{path}: JAX would store {leaf.dtype} as {array.dtype}")
        return array

    return {path: plain(path, leaf) for path, leaf in flatten(tree).items()}


def _plain_abstract(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    def plain(leaf):
        sharding = getattr(leaf, "sharding", None)
        if _is_key(leaf):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        elif not hasattr(leaf, "dtype"):
            leaf = jnp.asarray(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return {path: plain(leaf) for path, leaf in flatten(tree).items()}


def _decode(array: jax.Array, leaf: Any) -> Any:
    """A restored array as the kind of leaf that was asked for."""
    if not _is_key(leaf):
        return array if hasattr(leaf, "dtype") else type(leaf)(array.item())
    implementation = []
    jax.eval_shape(lambda key: implementation.append(jax.random.key_impl(key)), leaf)
    return jax.random.wrap_key_data(array, impl=implementation[0])


def _describe_leaf(leaf: Any) -> Leaf:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        array = np.asarray(leaf)
        return Leaf(array.shape, array.dtype.name, _checksum(array))
    own = {
        _region(shard.index, leaf.shape): _checksum(np.asarray(shard.data))
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    }
    every = leaf.sharding.devices_indices_map(leaf.shape).values()
    regions = sorted({_region(index, leaf.shape) for index in every})
    parts = tuple((region, own.get(region, "00" * 32)) for region in regions)
    return Leaf(leaf.shape, leaf.dtype.name, "", parts)


def _region(index: tuple[slice, ...], shape: tuple[int, ...]) -> Region:
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(_bytes(np.ascontiguousarray(array))).hexdigest()


# Bytes --------------------------------------------------------------------------------------------


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def contiguous(view: np.ndarray, dtype: str) -> np.ndarray:
    """A C-order copy, in stripes: all at once, a transposed view is read against the cache."""
    out = np.empty(view.shape, dtype)
    for start in range(0, view.shape[-1], 128):
        stripe = (..., slice(start, start + 128))
        out[stripe] = view[stripe]
    return out


def rows_per_block(shape: tuple[int, ...], itemsize: int) -> int:
    row_bytes = itemsize * int(np.prod(shape[1:]))
    return min(shape[0], max(1, BLOCK_BYTES // row_bytes))


def _blocks(array: tensorstore.TensorStore) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cover an array in C order, each as small as whole chunks allow."""
    if array.ndim == 0:
        yield ()
        return
    chunk: Any = array.chunk_layout.read_chunk.shape
    depth = next((axis for axis, size in enumerate(chunk) if size > 1), len(chunk) - 1)
    length, step = array.shape[depth], chunk[depth]
    for prefix in np.ndindex(*array.shape[:depth]):
        for start in range(0, length, step):
            yield (*prefix, slice(start, min(start + step, length)))


def _spec(directory: Path, path: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(directory.absolute() / path.replace("/", "."))},
        "fill_missing_data_reads": False,
    }


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """Orbax's `_METADATA` for a tree of nested dicts; key type 2 is a dict's key."""
    leaves = {}
    for path in manifest:
        keys = path.split("/")
        leaves[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    return {
        "tree_metadata": leaves,
        "use_ocdbt": False,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _list(head: str, defects: list[str], remedy: str) -> str:
    shown = defects[:20] + ([f"and {len(defects) - 20} more"] if len(defects) > 20 else [])
    return "\n  ".join([f"{head}:", *shown]) + f"\n{remedy}"


_HARMLESS_WARNINGS = (
    "Skipping merge of OCDBT",  # at every save without OCDBT
    "Waiting for previous save to complete",  # where checkpoints follow each other quickly
    "Metadata file does not exist",  # of a checkpoint whose deletion was cut short
)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _HARMLESS_WARNINGS)


logging.getLogger("absl").addFilter(_is_wanted)
