"""Your own files (`data.name=file`) and data sets of the hub (`hub:OWNER/NAME`) as records.

The columns are those that the config names, else what `guessing` makes of the training split; the
other splits are read the same way.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from jaxclf.core.errors import InputError, StorageError
from jaxclf.data import columns, guessing, hub, readers, records
from jaxclf.data.columns import Schema
from jaxclf.data.guessing import KNOWN, Wanted
from jaxclf.data.readers import Options, Source, show
from jaxclf.data.records import Defects
from jaxclf.data.tasks import Label, Record

Splits = dict[str, list[Record]]
_WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
_BOOLEANS = frozenset({"true", "false"})


def read(config: Any, defects: Defects) -> tuple[Schema, Splits]:
    """The schema of the training split, and the records of all splits.

    Raises InputError where the config names no source or a column that is not there.
    """
    wanted = wanted_of(config)
    if config.name.startswith(hub.PREFIX):
        sources = hub.sources(config)
        opened = {split: (lambda source=source: source) for split, source in sources.items()}
        names = {split: f"{config.name} ({split})" for split in sources}
    else:
        if not config.train:
            raise InputError("data.name is 'file' and data.train is empty; name the training file")
        options = options_of(config)
        names = {split: path for split in ("train", "dev", "test") if (path := config[split])}
        opened = {split: _opener(path, options) for split, path in names.items()}
    if "train" not in opened:
        raise InputError(f"{config.name}: has no split to train on; it has {', '.join(opened)}")
    schema, splits = None, dict[str, list[Record]]()
    for split, open_split in opened.items():
        source = open_split()
        if schema is None:
            schema, said = guessing.schema_of(source, wanted)
            ours = schema
        else:
            ours, said = _of_another(source, schema, wanted, split)
        defects.say(source.path, [*source.said, *said])
        splits[split] = records.of_source(source, ours, defects, split).get(split, [])
    assert schema is not None
    defects.check()
    for split, found in splits.items():
        if not found:
            about = " to train on" if split == "train" else ""
            raise InputError(f"{names[split]}: no usable record{about}")
    if not wanted.names and (note := _spell_alike(splits)):
        defects.guesses.append(note)
    return schema, splits


def read_texts(
    path: Path, schema: Schema, defects: Defects, options: Options | None = None
) -> list[Record]:
    """The records of a source without labels; the text's column is guessed if it is ""."""
    options = replace(options or Options(), known=KNOWN | {schema.text.strip().lower()})
    source, said = readers.open_source(path, options), list[str]()
    texts = guessing.text_columns(source, schema.text, (schema.id, schema.pair))
    if not schema.text and texts != ("text",):
        said = [f"text {' and '.join(map(show, texts))} (--text)"]
    schema = replace(schema, text=texts[0], texts=texts if len(texts) > 1 else ())
    schema, matched = columns.matched(source, schema)
    defects.say(source.path, [*source.said, *said, *matched])
    return records.of_source(source, schema, defects).get("", [])


def wanted_of(config: Any) -> Wanted:
    """What a config says of the columns."""
    names = config.get("label_names", "")
    return Wanted(
        text=config.text,
        label=config.label if config.task != "slots" else "",
        slots=config.slots if config.task != "label" else "",
        id=config.id,
        pair=config.pair,
        group=config.get("group", ""),
        kind=config.kind,
        # Before it could be left open, the columns that were named said it.
        task=config.task if config.task in ("label", "slots", "both") else "auto",
        names=read_names(Path(names)) if names else (),
        separator=config.get("label_separator", ""),
        decimal=config.get("decimal", "auto"),
    )


def options_of(config: Any) -> Options:
    """What a config says of how files are written."""
    named = f"{config.text},{config.label},{config.slots},{config.id}".lower().split(",")
    separator = config.get("separator", "")
    return Options(
        format=config.get("format", ""),
        encoding=config.get("encoding", ""),
        separator="\t" if separator in ("tab", "\\t") else separator,
        header=config.get("header", "auto"),
        quotes=config.get("quotes", "auto"),
        sheet=config.get("sheet", ""),
        known=KNOWN | {name.strip() for name in named if name.strip()},
    )


def read_names(path: Path) -> tuple[str, ...]:
    """The names that numbers stand for: one a line, a JSON list, or {"0": "name"}, from 0 or 1.

    Raises InputError for a file that holds none, StorageError for one that cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"data.label_names: {path} cannot be read: {error}") from error
    found: Any = text.splitlines()
    if text.startswith(("[", "{")):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f"data.label_names: {path} is not JSON: {error}") from None
    if isinstance(found, dict):
        found = _by_number(path, cast(dict[str, Any], found))
    names = [name.strip() for name in found if isinstance(name, str) and name.strip()]
    if not names or len(names) < len(found) or len({*names}) < len(names):
        raise InputError(
            f"data.label_names: {path} names no distinct classes; expected one a line, or a JSON "
            'list, or an object such as {"0": "no", "1": "yes"}'
        )
    return tuple(names)


def _by_number(path: Path, found: Mapping[str, Any]) -> list[Any]:
    """Also of `{"no": 0}`. A number without a name, such as 0 in a file from 1, gets one here."""
    pairs = {str(key): value for key, value in found.items()}
    if not all(key.isdecimal() for key in pairs):
        pairs = {str(value): key for key, value in found.items()}
    if not all(key.isdecimal() for key in pairs) or not pairs:
        raise InputError(f"data.label_names: {path} has names for other than the numbers 0, 1 …")
    last = max(map(int, pairs))
    if last > 1_000_000:
        raise InputError(f"data.label_names: {path} has a name for {last:,}; expected 0, 1 …")
    return [pairs.get(str(number), f"(class {number})") for number in range(last + 1)]


def _opener(path: str, options: Options) -> Callable[[], Source]:
    return lambda: readers.open_source(Path(path), options)


def _of_another(
    source: Source, schema: Schema, wanted: Wanted, split: str
) -> tuple[Schema, list[str]]:
    """How a split is read beside train: the same columns, or those that it has instead of them."""
    names = columns.names_of(source)
    if all(columns.find(names, name) is not None for name in schema.columns) or not names:
        return columns.matched(source, schema)
    labels = [target for target in schema.targets if target.kind != "slots"]
    has_labels = any(columns.find(names, name) for target in labels[:1] for name in target.read)
    if labels and wanted.label and not has_labels:
        raise InputError(
            f"{source.path}: has no column {show(labels[0].column)} with labels, so it cannot "
            f"be scored. Leave data.{split} empty, and label the file with jaxclf predict"
        )
    ours, said = guessing.schema_of(source, wanted)
    return guessing.with_kind(ours, schema), said


def _spell_alike(splits: Splits) -> str:
    """Write labels that are all numbers or booleans in one way, in place: 4.0 as 4, True as true.

    Returns what to say of it. Whether they are is decided by train; `004` stays.
    """
    said = ""
    for task in [*(splits["train"][0].labels if splits["train"] else ())]:
        names = {_text_of(record.labels[task]) for record in splits["train"]}
        if None in names or not names:
            continue
        known = cast(set[str], names)
        if all(map(_WHOLE.fullmatch, known)):
            spell: Callable[[str], str] = _without_zeros
        elif {name.lower() for name in known} <= _BOOLEANS:
            spell = str.lower
        else:
            continue
        changed = 0
        for split, found in splits.items():
            for place, record in enumerate(found):
                label = record.labels[task]
                if isinstance(label, str) and spell(label) != label:
                    labels = {**record.labels, task: spell(label)}
                    splits[split][place] = replace(record, labels=labels)
                    changed += 1
        if changed:
            example = "4.0 is 4" if spell is _without_zeros else "True is true"
            said = f"labels written as the others are ({example}): {changed:,}"
    return said


def _text_of(label: Label) -> str | None:
    return label if isinstance(label, str) else None


def _without_zeros(label: str) -> str:
    return label.partition(".")[0] if _WHOLE.fullmatch(label) else label
