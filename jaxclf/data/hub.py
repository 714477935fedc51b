"""A data set of the hub by its id, `data.name=hub:OWNER/NAME`, as sources of rows by split.

It is read by the `datasets` library, so that whatever that reads is read here: parquet, csv, jsonl,
folders per class, configurations, features. A local folder of the same layout is read without the
hub: `data.name=hub:PATH`, or OWNER/NAME under `data.root`. The numbers of a ClassLabel become its
names.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxclf.core.errors import InputError, StorageError
from jaxclf.data.formats.columnar import named
from jaxclf.data.formats.exports import reshape, reshaped
from jaxclf.data.readers import SAMPLE, RawRow, Source

PREFIX = "hub:"
_LARGE = 2 << 30  # bytes; a larger data set is streamed, and not kept on this machine
SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "valid": "dev", "test": "test"}


def sources(config: Any) -> dict[str, Source]:
    """The splits train, dev and test of the data set that `data.name` names, as many as it has.

    `data.hub_config`: one of its configurations. `data.train`, `data.dev`, `data.test`: its splits,
    also as `train[:10%]`; "": those of these names. Raises InputError where one does not exist,
    StorageError where the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"data.name is {config.name!r}: data sets of the hub need the library datasets: "
            "pip install 'jaxclf[hub]'"
        ) from None
    place, where = _place(config)
    name = config.get("hub_config", "") or None
    datasets.disable_progress_bars()
    try:
        if name is None and len(configs := datasets.get_dataset_config_names(place)) > 1:
            if "default" not in configs:
                raise InputError(
                    f"{where}: has several configurations. Set data.hub_config to one of "
                    f"{', '.join(configs[:50])}"
                )
            name = "default"
        builder = datasets.load_dataset_builder(place, name)
        size = builder.info.download_size or _size_of(place)
        streaming = size > _LARGE
        found = list(builder.info.splits or datasets.get_dataset_split_names(place, name))
        chosen = _splits(config, where, found)
        return {
            split: _source(
                datasets.load_dataset(
                    place, name, split=theirs, streaming=streaming and "[" not in theirs
                ),
                f"{where}:{theirs}",
                f"{size:,} bytes are streamed" if streaming else "",
            )
            for split, theirs in chosen.items()
        }
    except (InputError, StorageError):
        raise
    except ValueError as error:  # of a configuration or split that does not exist
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # of several libraries, with no base in common
        raise StorageError(
            f"{where} could not be fetched: {type(error).__name__}: {error}. Check the id and the "
            "network, or set data.root to a folder that holds it as OWNER/NAME"
        ) from error


def _place(config: Any) -> tuple[str, str]:
    """What `datasets` is asked for, and how errors name it."""
    name = config.name.removeprefix(PREFIX)
    root = config.root or os.environ.get("JAXCLF_DATA_ROOT", "")
    if root and (Path(root) / name).is_dir():
        return str(Path(root) / name), str(Path(root) / name)
    if Path(name).is_dir():
        return name, name
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise InputError(
            f"data.name is {config.name!r}: no such folder, nor the id of a data set of the hub, "
            "hub:OWNER/NAME"
        )
    return name, config.name


def _size_of(place: str) -> int:
    folder = Path(place)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _splits(config: Any, where: str, found: Sequence[str]) -> dict[str, str]:
    """Ours → theirs."""
    chosen = {ours: theirs for theirs, ours in SPLITS.items() if theirs in found}
    for ours in ("train", "dev", "test"):
        wanted = config[ours]
        if not wanted:
            continue
        if wanted == "none":
            chosen.pop(ours, None)
        elif wanted.partition("[")[0] not in found:
            listed = ", ".join(found)
            raise InputError(
                f"{where}: has no split {wanted!r}. Set data.{ours} to one of {listed}"
            )
        else:
            chosen[ours] = wanted
    if "train" not in chosen:
        listed = ", ".join(found)
        raise InputError(f"{where}: has no split 'train'. Set data.train to one of {listed}")
    return {ours: chosen[ours] for ours in ("train", "dev", "test") if ours in chosen}


def _source(dataset: Any, where: str, said: str) -> Source:
    names = _class_names(dataset.features or {})

    def plain(columns: Sequence[str]) -> Iterator[RawRow]:
        chosen = dataset.select_columns(list(columns)) if columns else dataset
        for number, row in enumerate(chosen, 1):
            fields = {
                name: named(value, names[name]) if name in names else value
                for name, value in row.items()
            }
            yield RawRow(f"{where}:{number}", fields)

    all_columns = list(dataset.features) if dataset.features else []
    sample: list[RawRow] = []
    for row in plain(all_columns):
        sample.append(row)
        if len(sample) == SAMPLE:
            break
    change, export = reshape(sample)
    told = tuple(filter(None, [said, export]))
    if change is not None:
        return Source(
            Path(where),
            None,
            lambda columns: reshaped(plain(all_columns), change),
            told,
            list(reshaped(sample, change)),
        )
    return Source(Path(where), all_columns, plain, told, sample)


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Column → names, of ClassLabel columns and of lists of such."""
    found: dict[str, list[str]] = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if names := getattr(inner, "names", None):
            found[column] = list(names)
    return found
