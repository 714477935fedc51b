import csv
import gzip
import json

import pytest

from jaxclf.core.errors import InputError, StorageError
from jaxclf.data.formats import json_rows
from jaxclf.data.records import Column, Defects, Schema, read

CLASS = Column("label", "class", "label")
SCHEMA = Schema(text="text", targets=(CLASS,), id="id")
GOOD = {"id": "1", "text": "wake me", "label": "alarm"}


def write_jsonl(path, *rows):
    """Each row an object, or the raw bytes of a line."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def defect_of(path, schema=SCHEMA):
    """The one defect of a file, checked to be skipped and counted as well."""
    defects = Defects(skip=True)
    records = read(path, schema, defects, "train")
    assert defects.counts == {"train": 1}
    defects.check()
    assert [record.id for record in records.get("train", [])] in (
        ["1"],
        ["1", "3"],
        ["1", "2", "3"],
    )
    failing = Defects()
    read(path, schema, failing, "train")
    with pytest.raises(InputError) as error:
        failing.check()
    assert error.value.exit_code == 2
    assert defects.shown[0] in str(error.value)
    return defects.shown[0].removeprefix(f"{path}:")


def row(**changes):
    return {**GOOD, "id": "2", **changes}


@pytest.mark.parametrize(
    ("given", "label"),
    [("no", "no"), ("yes", "yes"), (0, "no"), (1, "yes"), ("1", "yes"), (2, None), ("maybe", None)],
)
def test_a_number_is_the_class_at_its_place_where_classes_have_names(tmp_path, given, label):
    schema = Schema("text", (Column("label", "class", "label", names=("no", "yes")),))
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "wake me", "label": given})
    defects = Defects(skip=True)
    found = read(path, schema, defects, "train").get("train", [])
    assert [record.labels["label"] for record in found] == ([label] if label else [])
    if label is None:
        assert "is none of no, yes, nor the number of one" in defects.shown[0]


DEFECTS = {
    "bad JSON": (b'{"id": "2", "text": "a"', "2: not JSON: "),
    "two objects on a line": (b'{"id": "2"} {"id": "3"}', "2: not JSON: Extra data"),
    "no object": (b'["2", "a", "b"]', "2: expected an object"),
    "null": (b"null", '2: expected an object such as {"text": …}, found null'),
    "no text": ({"id": "2", "body": "a", "label": "b"}, "2: text: missing (the record has 'id'"),
    "null text": (row(text=None), "2: text: missing (null)"),
    "list for text": (row(text=["a", 1]), "2: text: expected text, found a list"),
    "true for text": (row(text=True), "2: text: expected text, found true"),
    "NaN for text": (row(text=float("nan")), "2: text: missing (NaN)"),
    "empty text": (row(text=""), "2: text: empty"),
    "blank text": (row(text=" \n\t\u2003"), "2: text: empty"),
    "NUL in text": (row(text="a\0b"), "2: text: character 1 is NUL"),
    "no label": ({"id": "2", "text": "a"}, "2: label: missing (the record has 'id', 'text')"),
    "null label": (row(label=None), "2: label: missing (null)"),
    "empty label": (row(label=""), "2: label: empty"),
    "NaN for label": (row(label=float("nan")), "2: label: missing (NaN)"),
    "list for label": (row(label=["a", "b"]), "2: label: expected one label, found a list of 2"),
    "object for label": (row(label={"a": 1}), "2: label: expected text, found an object"),
    "two-line label": (row(label="a\nb"), "2: label: 'a\\nb' has a line break in it"),
    "NUL in label": (row(label="a\0"), "2: label: character 1 is NUL"),
    "no id": ({"text": "a", "label": "b"}, "2: id: missing"),
    "list for id": (row(id=[]), "2: id: expected text, found a list"),
    "duplicate id": (row(id="1"), "2: id: '1' is the id of an earlier record"),
    "duplicate id as number": (row(id=1), "2: id: '1' is the id of an earlier record"),
    "not UTF-8": (b'{"id": "2", "text": "caf\xe9"}', "2: not UTF-8 (byte 0xe9 at byte 24 of"),
    "UTF-8 of a surrogate": (b'{"id": "2", "text": "\xed\xa0\x80"}', "2: not UTF-8 (byte 0xed"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(row()).encode(), "2: starts with a byte ord"),
    "escaped byte order mark": (row(text="\ufeffa"), "2: text: starts with a byte order mark"),
    "lone surrogate": (row(text="a\ud800"), "2: text: \\ud800 is half of a surrogate pair at ch"),
    "lone low surrogate": (row(text="\udfff"), "2: text: \\udfff is half of a surrogate pair at"),
    "surrogate in label": (row(label="\udc00"), "2: label: \\udc00 is half of a surrogate pair"),
    "long integer": (
        b'{"id": "2", "text": "a", "label": %s}' % (b"9" * 5000),
        "2: a number has too many digits. Put it in quotes.",
    ),
    "long integer elsewhere": (
        b'{"id": "2", "text": "a", "label": "b", "x": -%s}' % (b"9" * 5000),
        "2: a number has too many digits",
    ),
    "deep nesting": (
        b'{"id": "2", "text": %s}' % (b"[" * 100_000),
        "2: lists or objects are nested too deeply",
    ),
    "10 MB document": (row(text="a " * 5_000_000), "2: 10,000,0"),
    "text of the size limit and a byte": (row(text="é" * 2_200_000), "2: "),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_in_jsonl(tmp_path, name):
    bad, expected = DEFECTS[name]
    path = write_jsonl(tmp_path / "train.jsonl", GOOD, bad, {**GOOD, "id": "3"})
    assert defect_of(path).startswith(expected)


@pytest.mark.parametrize("name", ["bad JSON", "no label", "not UTF-8"])
def test_defect_in_the_last_line_of_a_gzip_file_without_a_line_end(tmp_path, name):
    bad, expected = DEFECTS[name]
    bad = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() + b"\n" + bad))
    assert defect_of(path).startswith(expected)


def test_the_remedy_for_a_large_document_is_told(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", GOOD, row(text="a" * 10_000_000))
    assert "may have 4,194,304. Split the document into several records or cut it." in (
        defect_of(path)
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_in_other_encodings(tmp_path, encoding):
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(row(text="café"), ensure_ascii=False).encode(encoding))
    (record,) = read(path, SCHEMA, Defects(), "train")["train"]
    assert record.text == "café"


def test_line_ends_and_blank_lines_of_jsonl_are_harmless(tmp_path):
    one, two = json.dumps(GOOD), json.dumps(row(text="a\r\nb\u2028c"), ensure_ascii=False)
    path = tmp_path / "train.jsonl"
    path.write_bytes(f"{one}\r\n\r\n  \n{two}".encode())
    defects = Defects()
    found = read(path, SCHEMA, defects, "train")["train"]
    defects.check()
    assert [record.text for record in found] == ["wake me", "a\r\nb\u2028c"]


def test_whole_numbers_are_taken_as_labels_and_ids(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", {"id": 7, "text": "a", "label": 0})
    (record,) = read(path, SCHEMA, Defects(), "train")["train"]
    assert (record.id, record.labels) == ("7", {"label": "0"})


def test_without_an_id_column_the_id_is_file_and_line(tmp_path):
    path = write_jsonl(tmp_path / "dev.jsonl", b"", GOOD)
    (record,) = read(path, Schema("text"), Defects(), "dev")["dev"]
    assert record.id == "dev.jsonl:2"
    assert record.labels == {}


def test_slots_are_read_and_checked(tmp_path):
    schema = Schema("text", (Column("slots", "slots", "slots"),), "id")
    path = write_jsonl(
        tmp_path / "train.jsonl",
        {"id": "1", "text": "at five", "slots": "at [time : five]"},
        {"id": "2", "text": "at five", "slots": ["Other"]},
        {"id": "3", "text": "at five", "slots": ["Other", "time"]},
    )
    assert defect_of(path, schema) == "2: slots: 1 tags for the 2 words of the text"
    found = read(path, schema, Defects(), "train")["train"]
    assert [record.labels["slots"] for record in found] == [("O", "B-time")] * 2


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        (None, "missing (null)"),
        ("at [time : six]", "word 2 is 'six'; the text has 'five'"),
        (["O"], "1 tags for the 2 words of the text"),
        (5, "expected annotated text or a list with one tag (text) per word"),
        (["O", "B-\ud800"], "\\ud800 is half of a surrogate pair at character 2"),
        ("[" * 100_000, "word 1 is"),
    ],
)
def test_slot_defects(tmp_path, slots, reason):
    schema = Schema("text", (Column("slots", "slots", "slots"),), "id")
    good = {"id": "1", "text": "at five", "slots": ["O", "O"]}
    path = write_jsonl(tmp_path / "train.jsonl", good, {**good, "id": "2", "slots": slots})
    assert defect_of(path, schema).startswith(f"2: slots: {reason}")


def test_split_column(tmp_path):
    path = write_jsonl(
        tmp_path / "all.jsonl",
        {**GOOD, "split": "validation"},
        {**GOOD, "split": "test"},  # an id may come again in another split
        {**GOOD, "split": "extra"},
    )
    defects = Defects(skip=True)
    found = read(path, Schema("text", (CLASS,), "id", "split"), defects)
    assert {split: len(records) for split, records in found.items()} == {"dev": 1, "test": 1}
    assert defects.counts == {"unknown": 1}
    assert defects.shown == [
        f"{path}:3: split: 'extra' is no split; "
        "expected one of train, dev, heldout, test, validation"
    ]


def test_ten_defects_are_shown_and_all_counted(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", *[b"{"] * 1234)
    defects = Defects()
    read(path, SCHEMA, defects, "train")
    with pytest.raises(InputError) as error:
        defects.check()
    lines = str(error.value).splitlines()
    assert lines[0] == "1,234 records have defects:"
    assert lines[10].strip().startswith(f"{path}:10: not JSON")
    assert lines[11].strip() == "and 1,224 more"
    assert "data.on_defect=skip" in lines[12]


# csv


def write_csv(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


HEADER = ["id", "text", "label"]


def test_csv_with_quotes_line_breaks_and_either_line_end(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b'id,text,label\r\n1,"a, ""b""\r\nc",x\r\n\r\n2,d,y\n3,"e\nf",x')
    defects = Defects()
    found = read(path, SCHEMA, defects, "train")["train"]
    defects.check()
    assert [record.text.splitlines() for record in found] == [['a, "b"', "c"], ["d"], ["e", "f"]]
    with_lines = read(path, Schema("text"), Defects(), "train")["train"]
    assert [record.id for record in with_lines] == ["train.csv:2", "train.csv:5", "train.csv:6"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"2,a", "3: 2 fields; the header has 3. Quote fields that hold a comma."),
        (b"2,a,b,c", "3: 4 fields; the header has 3"),
        ("2,été,x\n4,".encode() + b"caf\xe9,x", "4: text: not UTF-8 (byte 0xe9"),
        (b"2,a\0,x", "3: text: character 1 is NUL"),
        (b"2,,x", "3: text: empty"),
        (b"2,a,", "3: label: empty"),
        (b"1,a,x", "3: id: '1' is the id of an earlier record"),
        (b"2," + b"a" * 10_000_000 + b",x", "3: 10,000,005 bytes; a record may have 4,194,304"),
        (b"2," + b"9" * 5000 + b"\x00,x", "3: text: character 5000 is NUL"),
    ],
)
def test_defect_in_csv(tmp_path, line, expected):
    path = tmp_path / "train.csv"
    path.write_bytes(b"id,text,label\n1,wake me,alarm\n" + line + b"\n3,b,x\n")
    assert defect_of(path).startswith(expected)


def test_csv_keeps_the_readers_field_limit(tmp_path):
    limit = csv.field_size_limit()
    path = write_csv(tmp_path / "train.csv", HEADER, ["1", "a " * 200_000, "x"])
    defects = Defects()
    assert len(read(path, SCHEMA, defects, "train")["train"]) == 1
    assert csv.field_size_limit() == limit


def test_csv_slots_as_a_json_list(tmp_path):
    schema = Schema("text", (Column("slots", "slots", "slots"),))
    path = write_csv(
        tmp_path / "train.csv",
        ["text", "slots"],
        ["at five", '["Other", "time"]'],
        ["at six", "at [time : six]"],
        ["hello you", "hello you"],
    )
    found = read(path, schema, Defects(), "train")["train"]
    assert [record.labels["slots"] for record in found] == [("O", "B-time")] * 2 + [("O", "O")]


# parquet


def write_parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path):
    path = write_parquet(
        tmp_path / "train.parquet",
        id=[1, 2],
        text=["wake me", "a\r\nb"],
        label=["x", "y"],
        slots=[["O", "B-a"], ["O", "O"]],
        unused=[object.__name__, None],
    )
    schema = Schema("text", (CLASS, Column("slots", "slots", "slots")), "id")
    defects = Defects()
    first, second = read(path, schema, defects, "train")["train"]
    defects.check()
    assert first.labels == {"label": "x", "slots": ("O", "B-a")}
    assert (second.id, second.text) == ("2", "a\r\nb")


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("text", ["a", None, "c"], "2: text: missing (null)"),
        ("text", ["a", " ", "c"], "2: text: empty"),
        ("text", ["a", "b\0", "c"], "2: text: character 1 is NUL"),
        ("text", ["a", "b" * 5_000_000, "c"], "2: text: 5,000,000 bytes"),
        ("label", ["a", None, "c"], "2: label: missing (null)"),
        ("id", ["1", "1", "3"], "2: id: '1' is the id of an earlier record"),
    ],
)
def test_defect_in_parquet(tmp_path, column, values, expected):
    columns = {"id": ["1", "2", "3"], "text": ["a", "b", "c"], "label": ["x", "y", "x"]}
    path = write_parquet(tmp_path / "train.parquet", **columns | {column: values})
    assert defect_of(path).startswith(expected)


def test_numbers_and_lists_of_words_are_taken_as_text_and_counted(tmp_path):
    path = write_jsonl(
        tmp_path / "train.jsonl", GOOD, row(text=1.5), row(text=["a", "b"], id="3", label=" alarm")
    )
    defects = Defects()
    found = read(path, SCHEMA, defects, "train")["train"]
    assert [record.text for record in found] == ["wake me", "1.5", "a b"]
    assert found[2].labels == {"label": "alarm"}
    assert defects.notes() == [
        "numbers taken as texts: 1",
        "lists of words taken as texts: 1",
        "labels and ids with space around them, which is left out: 1",
    ]


@pytest.mark.parametrize(
    ("label", "expected"), [(True, "true"), (4.0, "4"), (1.5, "1.5"), (["a"], "a"), (-1, "-1")]
)
def test_labels_that_are_no_text(tmp_path, label, expected):
    path = write_jsonl(tmp_path / "train.jsonl", row(label=label))
    (record,) = read(path, SCHEMA, Defects(), "train")["train"]
    assert record.labels == {"label": expected}


def test_parquet_text_that_is_not_utf8(tmp_path):
    import pyarrow
    import pyarrow.parquet

    bad = pyarrow.array([b"a", b"caf\xe9", b"c"]).view(pyarrow.string())
    path = write_parquet(
        tmp_path / "t.parquet", id=["1", "2", "3"], text=bad, label=["x", "y", "x"]
    )
    assert defect_of(path).startswith("2: text: not UTF-8 (byte 0xe9")


def test_parquet_class_numbers_of_the_datasets_library_become_names(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    path = tmp_path / "train.parquet"
    table.to_parquet(str(path))
    found = read(path, Schema("text", (CLASS,)), Defects(), "train")["train"]
    assert [record.labels["label"] for record in found] == ["yes", "no"]


def test_file_that_is_no_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"id,text,label\n" * 100)
    with pytest.raises(InputError, match="not a readable parquet file"):
        read(path, SCHEMA, Defects(), "train")


# plain lines and whole files


def test_plain_lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("wake me\r\n\n\u00e9t\u00e9".encode() + b"\n\xff\n")
    defects = Defects(skip=True)
    found = read(path, Schema("text"), defects, "test")["test"]
    assert [(record.id, record.text) for record in found] == [
        ("texts.txt:1", "wake me"),
        ("texts.txt:3", "été"),
    ]
    assert [shown.removeprefix(f"{path}:") for shown in defects.shown] == [
        "2: text: empty; a record needs at least one word",
        "4: text: not UTF-8 (byte 0xff, or \\udcff escaped alone) at character 0",
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_or_double_column(tmp_path, kind):
    path = tmp_path / f"train.{kind}"
    if kind == "csv":
        write_csv(path, ["id", "body", "label"], ["1", "a", "x"])
    else:
        write_parquet(path, id=["1"], body=["a"], label=["x"])
    with pytest.raises(InputError) as error:
        read(path, SCHEMA, Defects(skip=True), "train")
    assert "column 'text' is not in the file; its columns: 'id', 'body', 'label'" in (
        str(error.value)
    )
    if kind == "csv":
        write_csv(path, ["id", "text", "label", "text"], ["1", "a", "x", "b"])
        with pytest.raises(InputError, match="column 'text' is twice in the file"):
            read(path, SCHEMA, Defects(), "train")


@pytest.mark.parametrize("name", ["train", "train.data", "train.parquet.gz", "jsonl"])
def test_file_name_without_a_known_ending(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"must end in \.jsonl, \.json, \.csv, .*set data\.format"):
        read(tmp_path / name, SCHEMA, Defects(), "train")


def test_missing_file_and_folder(tmp_path):
    for path, message in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "holds no file")):
        with pytest.raises(InputError, match=message):
            read(path, SCHEMA, Defects(), "train")


@pytest.mark.parametrize("cut", [slice(-20), slice(3, None)])
def test_damaged_gzip_file(tmp_path, cut):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 100)[cut])
    with pytest.raises(InputError, match="damaged gzip file"):
        read(path, SCHEMA, Defects(), "train")


def test_file_the_system_refuses_to_read(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "train.jsonl", GOOD)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(json_rows, "lines", refuse)
    with pytest.raises(StorageError, match=r"train.jsonl: cannot be read: Permission denied"):
        read(path, SCHEMA, Defects(), "train")


def test_empty_file_has_no_records(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl")
    assert read(path, SCHEMA, Defects(), "train") == {}
