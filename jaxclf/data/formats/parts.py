"""What a path stands for: one file, or the parts of a folder or an archive.

train.csv.gz                         one part
train.zip                            its members
corpus/part-0.csv, corpus/part-1.csv both, one after the other
corpus/label=spam/0.parquet          its rows, each with `label` spam
corpus/spam/1.txt                    a record, with `label` spam
"""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from jaxclf.core.errors import InputError
from jaxclf.data.formats.rows import show

COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
ARCHIVE = ".zip"
FOLDER_LABEL = "label"  # the column that names of folders fill
# Files that lie beside data and are none.
_ASIDE = ("readme", "license", "licence", "dataset_info", "state.json", "_", ".", "~$", "thumbs.db")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val"), "dev"),
    **dict.fromkeys(("test", "testing", "heldout"), "test"),
}


@dataclass(frozen=True)
class Part:
    """One file of a source.

    where: as errors name it. name: of the file, without the ending of a compression. stored: its
    bytes on disk. fields: what the names of the folders around it say, a column each.
    is_document: the file is one record.
    """

    where: str
    name: str
    stored: int
    opening: Callable[[], io.BufferedIOBase]
    is_compressed: bool = False
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    is_document: bool = False

    @property
    def ending(self) -> str:
        """`.csv`."""
        return PurePosixPath(self.name).suffix.lower()


def parts(path: Path) -> tuple[list[Part], str]:
    """The parts of a source in the order of their names, and what was made of a folder, in words.

    Raises InputError where there is none, or where a folder holds splits of a data set.
    """
    if path.is_dir():
        files = sorted(_walk(path))
        found = [_file(path / name, f"{path}/{name}", name) for name in files]
    elif path.is_file() and path.suffix.lower() == ARCHIVE:
        found = list(_members(path))
    elif path.is_file():
        return [_file(path, str(path), path.name)], ""
    else:
        raise InputError(f"{path}: no such file")
    found = [part for _, part in zip(found, found, strict=True) if not _is_aside(part.name)]
    if not found:
        raise InputError(f"{path}: holds no file with records")
    return _arranged(path, found)


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in files:
            yield (Path(root) / name).relative_to(folder).as_posix()


def _is_aside(name: str) -> bool:
    return PurePosixPath(name).name.lower().startswith(_ASIDE)


def _file(path: Path, where: str, name: str) -> Part:
    opener = COMPRESSED.get(path.suffix.lower())
    if opener is None:
        return Part(where, name, path.stat().st_size, lambda: path.open("rb"))
    name = name[: -len(path.suffix)]
    return Part(
        where, name, path.stat().st_size, lambda: cast(io.BufferedIOBase, opener(path)), True
    )


def _members(path: Path) -> Iterator[Part]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: damaged zip file ({error}). Fetch or make it again.") from error
    for info in sorted(infos, key=lambda info: info.filename):
        if info.flag_bits & 1:
            raise InputError(f"{path}: {show(info.filename)} is encrypted. Unpack it")
        if not info.filename.startswith("__MACOSX/"):
            where = f"{path}/{info.filename}"
            opening = _opening(path, info.filename)
            yield Part(where, info.filename, info.compress_size, opening, True)


def _opening(path: Path, member: str) -> Callable[[], io.BufferedIOBase]:
    def opening() -> io.BufferedIOBase:
        archive = zipfile.ZipFile(path)
        opened = archive.open(member)
        archive.close()  # the member keeps the file open
        return io.BufferedReader(cast(io.RawIOBase, opened))

    return opening


def _arranged(path: Path, found: list[Part]) -> tuple[list[Part], str]:
    """The parts with what their folders say; see the top of this file."""
    roots = {PurePosixPath(part.name).parts[0] for part in found if "/" in part.name}
    if len(roots) == 1 and not any("=" in root for root in roots) and path.is_file():
        # An archive mostly holds one folder, whose name says nothing.
        (root,) = roots
        if all("/" in part.name for part in found) and _depth(found) > 1:
            found = [_renamed(part, part.name.removeprefix(f"{root}/")) for part in found]
    _refuse_splits(path, found)
    folders = [PurePosixPath(part.name).parts[:-1] for part in found]
    if any("=" in name for names in folders for name in names):
        filled = [
            _with(part, _partition(names)) for part, names in zip(found, folders, strict=True)
        ]
        columns = ", ".join(sorted({name for part in filled for name in part.fields}))
        return filled, f"{len(found):,} parts, whose folders name {columns}"
    if any(folders) and all(part.ending in ("", ".txt") for part in found):
        classes = {"/".join(names) for names in folders}
        if "" in classes:
            raise InputError(
                f"{path}: holds text files both in folders, one a class, and beside them. Move "
                "these, or name a file"
            )
        filled = [
            _with(part, {FOLDER_LABEL: "/".join(names)}, document=True)
            for part, names in zip(found, folders, strict=True)
        ]
        return filled, f"a folder per class ({len(classes):,}), one text a file"
    endings = {part.ending for part in found}
    if len(endings) > 1:
        raise InputError(
            f"{path}: holds files of several kinds ({', '.join(sorted(endings))}); the parts of a "
            "data set are of one. Name the file, or leave the parts alone in a folder"
        )
    return found, f"{len(found):,} parts, one after the other" if len(found) > 1 else ""


def _depth(found: Iterable[Part]) -> int:
    return max(len(PurePosixPath(part.name).parts) for part in found) - 1


def _renamed(part: Part, name: str) -> Part:
    return Part(part.where, name, part.stored, part.opening, part.is_compressed)


def _with(part: Part, fields: Mapping[str, str], document: bool = False) -> Part:
    return Part(
        part.where, part.name, part.stored, part.opening, part.is_compressed, fields, document
    )


def _partition(folders: Iterable[str]) -> dict[str, str]:
    """`("label=spam",) → {"label": "spam"}`, as Hive and Spark name folders."""
    from urllib.parse import unquote

    pairs = (name.partition("=") for name in folders if "=" in name)
    return {
        unquote(key): "" if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for key, _, value in pairs
    }


def splits(names: Iterable[str]) -> dict[str, str]:
    """`("train.csv", "test-0.csv", "notes.txt") → {"train": "train.csv", "test": "test-0.csv"}`."""
    found: dict[str, str] = {}
    for name in names:
        stem = name.lower().split(".")[0].split("-")[0].split("_")[0]
        if stem in _SPLITS:
            found.setdefault(_SPLITS[stem], name)
    return found


def _refuse_splits(path: Path, found: Iterable[Part]) -> None:
    """Raise InputError where splits would be read as one: test texts would be trained on."""
    names = splits(PurePosixPath(part.name).parts[0] for part in found)
    if len(names) > 1:
        listed = ", ".join(sorted(names.values()))
        raise InputError(
            f"{path}: holds the splits of a data set ({listed}), which are no parts of one. Name "
            "each: data.train, data.dev, data.test"
        )
