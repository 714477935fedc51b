"""Reading and writing safetensors one tensor at a time, and directories that appear whole."""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes "bfloat16" a dtype that numpy knows
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxclf.convert import mxfp4
from jaxclf.core import locks
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import read_json

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {name: code for code, name in DTYPES.items()}

_BYTES = "uint8"
_MXFP4 = (mxfp4.BLOCKS, mxfp4.SCALES)
_NOT_READ = (
    "{path}: {name} is {code}; only "
    f"{', '.join(DTYPES)} and experts in MXFP4 are read. Convert the unquantised checkpoint."
)

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights:
    """The tensors of a Hugging Face directory; only headers are read until one is asked for.

    `ignored`: patterns of names to leave out. `renamed`: pattern and replacement, for names that
    are to be known as others. `file`: what the weights are called where they are one file. Raises
    InputError where the weights are pickled or quantised, ArtifactError where a file is missing or
    corrupt.
    """

    def __init__(
        self,
        directory: Path,
        ignored: Sequence[str] = (),
        renamed: Sequence[tuple[str, str]] = (),
        file: str = _SINGLE,
    ):
        self._places, self.shapes, self.dtypes = {}, {}, {}
        packed: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        for path in _weight_files(directory, file):
            try:
                # Reading, not mapping: mapped pages would count as this process's memory.
                opened = safe_open(path, framework="numpy", backend="pread")
                self.metadata |= opened.metadata() or {}
                for stored in opened.keys():  # noqa: SIM118 - it is no dict
                    if any(re.fullmatch(pattern, stored) for pattern in ignored):
                        continue
                    name = stored
                    for pattern, replacement in renamed:
                        name = re.sub(pattern, replacement, name)
                    self._add(path, opened, stored, name)
                    packed |= {name: path} if self.dtypes[name] == _BYTES else {}
            except SafetensorError as error:
                raise ArtifactError(f"{path}: corrupt ({error}). Copy it again.") from error
            except FileNotFoundError as error:
                raise ArtifactError(f"{path}: missing, though {_INDEX} lists it") from error
        self._unpack(packed)

    def _unpack(self, packed: Mapping[str, Path]) -> None:
        """Know tensors in MXFP4, which are those of bytes, by the ones that they stand for."""
        for name, path in packed.items():
            ending = next((each for each in _MXFP4 if name.endswith(each)), None)
            base = name.removesuffix(ending or "")
            if ending is None or any(base + each not in packed for each in _MXFP4):
                raise InputError(_NOT_READ.format(path=path, name=name, code="U8"))
            if ending == mxfp4.SCALES:
                blocks, scales = (self.shapes.pop(base + each) for each in _MXFP4)
                self.shapes[base] = mxfp4.shape(base, blocks, scales, path)
                for each in _MXFP4:
                    del self.dtypes[base + each]
                self.dtypes[base] = mxfp4.DTYPE

    def _add(self, path: Path, file, stored: str, name: str) -> None:
        if name in self.shapes:
            raise ArtifactError(f"{path}: {name} is there twice, or also in another file")
        view = file.get_slice(stored)
        code = view.get_dtype()
        if code not in DTYPES and code != "U8":
            raise InputError(_NOT_READ.format(path=path, name=name, code=code))
        self._places[name] = file, stored
        self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), DTYPES.get(code, _BYTES)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._places:
            return mxfp4.dequantise(*(self[name + ending] for ending in _MXFP4))
        file, stored = self._places[name]
        return file.get_tensor(stored)


def _weight_files(directory: Path, single: str) -> list[Path]:
    for name in (single, _INDEX):
        _check_link(directory / name)
    if (directory / single).is_file():
        return [directory / single]
    if (directory / _INDEX).is_file():
        try:
            names = set(read_json(directory / _INDEX)["weight_map"].values())
        except (AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{directory / _INDEX}: holds no weight_map of names") from error
        if not all(isinstance(name, str) for name in names):
            raise ArtifactError(f"{directory / _INDEX}: its weight_map names what are no files")
        if strange := [n for n in names if Path(n).name != n or not n.endswith(".safetensors")]:
            raise InputError(f"{directory / _INDEX}: not a safetensors file here: {strange}")
        return [directory / name for name in sorted(names)]
    pickled = [path.name for kind in ("bin", "pt", "pth") for path in directory.glob(f"*.{kind}")]
    if pickled:
        raise InputError(
            f"{directory}: {', '.join(sorted(pickled))}: pickled weights can run code when opened "
            "and are not read. Where you trust them, load them with what wrote them and "
            "save_pretrained(DIRECTORY), which writes safetensors."
        )
    raise InputError(f"{directory}: holds neither {single} nor {_INDEX}")


def write_weights(
    directory: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    blocks: Callable[[str], Iterable[np.ndarray]],
    max_shard_bytes: int,
) -> None:
    """Write model.safetensors, or shards and their index, without ever holding a whole tensor.

    `tensors`: name → shape and dtype, in the order to write. `blocks(name)` yields the tensor's
    rows in contiguous blocks.
    """
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, (shape, dtype) in tensors.items():
        size = _size(shape, dtype)
        if shards[-1] and size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size

    files = [_SINGLE]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        places = zip(files, shards, strict=True)
        index = {
            "metadata": {"total_size": sum(_size(*tensor) for tensor in tensors.values())},
            "weight_map": {name: file for file, names in places for name in names},
        }
        (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    for file, names in zip(files, shards, strict=True):
        _write_file(directory / file, {name: tensors[name] for name in names}, blocks)


def _write_file(path: Path, tensors: Mapping, blocks: Callable) -> None:
    """One file: the header's length (8 bytes), the header (JSON), the tensors without a gap.

    Source: the format section of safetensors' README.
    """
    # Wider types first, so that every tensor starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: -np.dtype(tensors[name][1]).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        shape, dtype = tensors[name]
        start, end = end, end + _size(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in blocks(name):
                file.write(block.reshape(-1).view(np.uint8).data)
        assert file.tell() == 8 + len(text) + end, f"{path}: blocks do not fill the tensors"


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


@contextlib.contextmanager
def new_directory(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `destination` at the end or vanishes at an error.

    Raises InputError where the destination holds something and `overwrite` is not set, or where
    another process is writing it.
    """
    with locks.file(destination):
        _clear_away(destination)
        if (
            not overwrite
            and destination.exists()
            and (not destination.is_dir() or any(destination.iterdir()))
        ):
            raise InputError(f"{destination}: exists already; give another or --overwrite")
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            new, old = work / "new", work / "old"
            new.mkdir()
            yield new
            if destination.exists():
                destination.rename(old)
            new.rename(destination)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _clear_away(destination: Path) -> None:
    """Remove what killed processes left of a directory; what one had put aside comes back."""
    names = re.compile(rf"\.{re.escape(destination.name)}\.\w{{8}}")
    for left in destination.parent.iterdir():
        if not names.fullmatch(left.name) or not left.is_dir():
            continue
        if {each.name for each in left.iterdir()} <= {"new", "old"}:
            if (left / "old").is_dir() and not destination.exists():
                (left / "old").rename(destination)
            shutil.rmtree(left, ignore_errors=True)


def copy_files(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that are there, with what links point to.

    Raises ArtifactError for a link to nothing, an empty file, or JSON that is no object.
    """
    for name in names:
        path = source / name
        _check_link(path)
        if not path.exists():
            continue
        if not path.is_file() or not path.stat().st_size:
            raise ArtifactError(f"{path}: empty, or no file. Copy it again")
        if path.suffix == ".json" and not isinstance(read_json(path), dict):
            raise ArtifactError(f"{path}: no JSON object. Copy it again")
        destination.mkdir(exist_ok=True)
        shutil.copyfile(path, destination / name)


def _check_link(path: Path) -> None:
    """Raise ArtifactError for a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise ArtifactError(
            f"{path}: a link to {os.readlink(path)}, which is not there. Copy what it points to, "
            "or download it again"
        )
