"""What people have, each kind written here: what is read of it, what is said, what is asked."""

import bz2
import gzip
import json
import lzma
import os
import shlex
import zipfile
from pathlib import Path

import pytest

from jaxclf.config.defaults import default
from jaxclf.core.errors import InputError, JaxclfError
from jaxclf.data import datasets
from jaxclf.data.notes import notes

ROWS = [
    ("Where is Burma ?", "LOC"),
    ("Who wrote Hamlet in London, and when ?", "HUM"),
    ("What is a fear of shadows ?", "ENTY"),
    ("Where does the Danube end ?", "LOC"),
    ("Who was the first man on the moon ?", "HUM"),
    ('What does "RAM" stand for ?', "ENTY"),
] * 3
ROWS = [(f"{text} {number}", label) for number, (text, label) in enumerate(ROWS)]


def quoted(value, separator=","):
    needed = any(letter in value for letter in (separator, '"', "\n"))
    return '"' + value.replace('"', '""') + '"' if needed else value


def delimited(rows=ROWS, separator=",", header=("text", "label"), end="\n"):
    lines = [header, *rows] if header else rows
    return "".join(
        separator.join(quoted(str(value), separator) for value in row) + end for row in lines
    )


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def objects(rows=ROWS, text="text", label="label"):
    return [{text: a, label: b} for a, b in rows]


def load(path, **fields):
    config = default().data
    config.update({"name": "file", "task": "auto", "train": str(path), **fields})
    return datasets.load(config)


def read(dataset, task="label"):
    return [(record.text, record.labels[task]) for record in dataset.splits["train"]]


def write(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


# One text and one label a record, however it is written ------------------------------------------

ONE_HEADER = delimited()
FILES = {
    "a byte order mark": ("a.csv", ONE_HEADER.encode("utf-8-sig"), ""),
    "UTF-16": ("a.csv", ONE_HEADER.encode("utf-16"), "encoding utf-16"),
    "UTF-16 without a mark": ("a.csv", ONE_HEADER.encode("utf-16-le"), "encoding utf-16-le"),
    "semicolons": ("a.csv", delimited(separator=";"), "separator ';'"),
    "tabs in csv": ("a.csv", delimited(separator="\t"), "separator tab"),
    "bars": ("a.csv", delimited(separator="|"), "separator '|'"),
    "tsv": ("a.tsv", delimited(separator="\t"), ""),
    "a line sep=": ("a.csv", "sep=;\n" + delimited(separator=";"), ""),
    "CR alone": ("a.csv", delimited(end="\r"), "lines end in CR"),
    "CRLF": ("a.csv", delimited(end="\r\n"), ""),
    "a padded header": ("a.csv", delimited(header=(" text ", " label")), ""),
    "another case": ("a.csv", delimited(header=("Text", "LABEL")), "text 'Text'"),
    "no header": (
        "a.csv",
        delimited(header=None),
        "no header: columns are called 1, 2 (data.header), text '1' (data.text), label '2'",
    ),
    "an index column": (
        "a.csv",
        delimited([(n, *row) for n, row in enumerate(ROWS)], header=("", "text", "label")),
        "",
    ),
    "names of rows, as R writes them": (
        "a.csv",
        delimited([(n, *row) for n, row in enumerate(ROWS)]),
        "the first column has no name",
    ),
    "empty columns": (
        "a.csv",
        delimited([(b, a, "", "") for a, b in ROWS], header=("v1", "v2", "", "")),
        "text 'v2' (data.text), label 'v1' (data.label)",
    ),
    "empty fields at the end": ("a.csv", delimited([(*row, "", "") for row in ROWS]), ""),
    "spaces behind commas": (
        "a.csv",
        "text, label\n" + "".join(f"{quoted(a)}, {b}\n" for a, b in ROWS),
        "",
    ),
    "backslashes before quotes": (
        "a.csv",
        "text,label\n" + "".join('"{}",{}\n'.format(a.replace('"', r"\""), b) for a, b in ROWS),
        "data.quotes=backslash",
    ),
    "quotes in tsv": (
        "a.tsv",
        "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS) + '"Go" is what ?\tENTY\n',
        "data.quotes=none",
    ),
    "gzip": ("a.csv.gz", gzip.compress(ONE_HEADER.encode()), ""),
    "bzip2": ("a.jsonl.bz2", bz2.compress(jsonl(objects()).encode()), ""),
    "xz": ("a.csv.xz", lzma.compress(ONE_HEADER.encode()), ""),
    "a JSON array": ("a.json", json.dumps(objects()), ""),
    "a JSON array over lines": ("a.json", json.dumps(objects(), indent=1), ""),
    "a JSON array called jsonl": ("a.jsonl", json.dumps(objects()), "a JSON array"),
    "JSON lines called json": ("a.json", jsonl(objects()), ""),
    "an object of columns": (
        "a.json",
        json.dumps(
            {
                name: {n: row[p] for n, row in enumerate(ROWS)}
                for p, name in enumerate(("text", "label"))
            }
        ),
        "",
    ),
    "an object of lists": (
        "a.json",
        json.dumps({"text": [a for a, _ in ROWS], "label": [b for _, b in ROWS]}),
        "",
    ),
    "an array in an object": ("a.json", json.dumps({"version": 1, "data": objects()}), ""),
    "fastText": ("a.txt", "".join(f"__label__{b} {a}\n" for a, b in ROWS), "fastText's format"),
    "lines with tabs": (
        "a.txt",
        "".join(f"{b}\t{a}\n" for a, b in ROWS if '"' not in a),
        "fields separated by tabs",
    ),
    "doccano": (
        "a.jsonl",
        jsonl(
            [{"id": n, "text": a, "label": [b], "Comments": []} for n, (a, b) in enumerate(ROWS)]
        ),
        "",
    ),
    "alpaca": (
        "a.json",
        json.dumps([{"instruction": "Classify.", "input": a, "output": b} for a, b in ROWS]),
        "text 'input' (data.text), label 'output' (data.label)",
    ),
    "prompt and completion": (
        "a.jsonl",
        jsonl([{"prompt": a, "completion": f" {b}"} for a, b in ROWS]),
        "text 'prompt'",
    ),
    "chat messages": (
        "a.jsonl",
        jsonl(
            [
                {
                    "messages": [
                        {"role": "system", "content": "Classify."},
                        {"role": "user", "content": a},
                        {"role": "assistant", "content": b},
                    ]
                }
                for a, b in ROWS
            ]
        ),
        "chat messages: the label is the assistant's last one (the system's message is left out)",
    ),
    "ShareGPT": (
        "a.json",
        json.dumps(
            [
                {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}
                for a, b in ROWS
            ]
        ),
        "chat messages",
    ),
    "Label Studio": (
        "a.json",
        json.dumps(
            [
                {
                    "id": n,
                    "data": {"text": a},
                    "annotations": [{"result": [{"type": "choices", "value": {"choices": [b]}}]}],
                }
                for n, (a, b) in enumerate(ROWS)
            ]
        ),
        "an export of Label Studio",
    ),
    "other names": (
        "a.jsonl",
        jsonl(objects(text="review", label="sentiment")),
        "text 'review' (data.text), label 'sentiment' (data.label)",
    ),
    "names that say nothing": (
        "a.jsonl",
        jsonl([{"a": n, "b": b, "c": a} for n, (a, b) in enumerate(ROWS)]),
        "text 'c' (data.text), label 'b' (data.label)",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_and_what_is_guessed_is_said(tmp_path, name):
    file, content, said = FILES[name]
    dataset = load(write(tmp_path / file, content))
    expected = [row for row in ROWS if name != "lines with tabs" or '"' not in row[0]]
    assert read(dataset)[: len(expected)] == expected
    assert said in " ".join(dataset.guesses)
    assert bool(said) == bool([g for g in dataset.guesses if str(tmp_path) in g])
    assert notes(dataset)[: len(dataset.guesses)] == list(dataset.guesses)


TEXTS_BY_ENCODING = {
    "cp1252": "Le café était très bon à Noël, ça va",
    "cp1251": "Посылка пришла слишком поздно и была повреждена",
    "gb18030": "包裹来得太晚了而且已经损坏我要退货",
    "cp932": "荷物がとても遅く届きました。ありがとう",
}


@pytest.mark.parametrize("encoding", TEXTS_BY_ENCODING)
def test_legacy_encodings_are_guessed_said_and_set(tmp_path, encoding):
    rows = [(f"{TEXTS_BY_ENCODING[encoding]} {n}", "ab"[n % 2]) for n in range(20)]
    path = write(tmp_path / "a.csv", delimited(rows), encoding)
    dataset = load(path)
    assert read(dataset) == rows
    assert f"encoding {encoding} (the file is not UTF-8)" in dataset.guesses[0]
    chosen = load(path, encoding=encoding)
    assert read(chosen) == rows
    assert chosen.guesses == ()


def test_a_bad_byte_among_good_ones_is_a_defect_of_its_record(tmp_path):
    content = delimited([("été", "a"), ("où", "b")]).encode() + b"caf\xe9,a\n"
    dataset = load(write(tmp_path / "a.csv", content), on_defect="skip")
    assert [text for text, _ in read(dataset)] == ["été", "où"]
    assert "not UTF-8 (byte 0xe9" in dataset.defects[0]


# Folders and archives -----------------------------------------------------------------------------


def parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def folder_per_class(root):
    for number, (text, label) in enumerate(ROWS):
        write(root / label / f"{number}.txt", text + "\n")
    write(root / "README.md", "About it")


def parts(root):
    write(root / "part-0.csv", delimited(ROWS[:7]))
    write(root / "part-1.csv", delimited(ROWS[7:]))
    write(root / "_SUCCESS", "")


def partitioned(root):
    for label in {label for _, label in ROWS}:
        parquet(root / f"label={label}/0.parquet", text=[a for a, b in ROWS if b == label])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (folder_per_class, "a folder per class (3), one text a file"),
        (parts, "2 parts, one after the other"),
        (partitioned, "3 parts, whose folders name label"),
    ],
)
def test_folders_and_archives(tmp_path, fill, said, zipped):
    path = tmp_path / "corpus"
    fill(path)
    if zipped:
        with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
            for file in sorted(path.rglob("*")):
                archive.write(file, f"corpus/{file.relative_to(path)}")
        path = tmp_path / "corpus.zip"
    dataset = load(path)
    assert sorted(read(dataset)) == sorted(ROWS)
    assert len({record.id for record in dataset.splits["train"]}) == len(ROWS)
    assert dataset.guesses == (f"{path}: {said}",)


def test_splits_are_not_read_as_parts_of_one(tmp_path):
    for name in ("train.csv", "test.csv"):
        write(tmp_path / "corpus" / name, delimited())
    with pytest.raises(InputError, match=r"holds the splits .*data\.train, data\.dev, data\.test"):
        load(tmp_path / "corpus")


def test_spreadsheets(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "empty"
    sheet = book.create_sheet("data")
    for row in [("Text", "Label"), *ROWS]:
        sheet.append(row)
    book.create_sheet("other").append(("text", "label"))
    book.save(tmp_path / "a.xlsx")
    dataset = load(tmp_path / "a.xlsx")
    assert read(dataset) == ROWS
    assert "sheet 'data' of 3 (data.sheet)" in dataset.guesses[0]
    with pytest.raises(InputError, match=r"has no sheet 'x'. Set data.sheet to 'empty', 'data'"):
        load(tmp_path / "a.xlsx", sheet="x")
    write(tmp_path / "b.xlsx", b"PK\x03\x04")
    with pytest.raises(InputError, match="not a readable xlsx file.*or as csv"):
        load(tmp_path / "b.xlsx")


def test_arrow_files_of_the_datasets_library(tmp_path):
    hub = pytest.importorskip("datasets")
    features = hub.Features(
        {"text": hub.Value("string"), "label": hub.ClassLabel(names=["no", "yes"])}
    )
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(6)]
    hub.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    assert read(load(tmp_path / "saved"))[:2] == [("text 0", "no"), ("text 1", "yes")]


# Labels -------------------------------------------------------------------------------------------


def labelled(values):
    return [{"text": f"what is it {n}", "label": value} for n, value in enumerate(values)]


LABELS = {
    "floats": ([4.0, 5.0, 4.0, 1.0], "class", ["4", "5", "4", "1"]),
    "booleans": ([True, False, True, True], "class", ["true", "false", "true", "true"]),
    "lists of one": ([["a"], ["b"], ["a"], ["b"]], "class", ["a", "b", "a", "b"]),
    "lists": ([["a"], ["b", "a"], [], ["b"]], "multilabel", [("a",), ("a", "b"), (), ("b",)]),
    "bars": (["a", "a|b", "b", "c|a"], "multilabel", [("a",), ("a", "b"), ("b",), ("a", "c")]),
    "Python lists": (
        ["['a']", "['b', 'a']", "[]", "['b']"],
        "multilabel",
        [("a",), ("a", "b"), (), ("b",)],
    ),
    "a bar in a name": (["x | y", "z", "x | y", "z"], "class", ["x | y", "z", "x | y", "z"]),
    "numbers": ([n / 7 for n in range(1, 31)], "regression", [n / 7 for n in range(1, 31)]),
    "decimal commas": (
        [f"{n},{n % 7}" for n in range(30)],
        "regression",
        [float(f"{n}.{n % 7}") for n in range(30)],
    ),
    "few numbers": ([1.5, 2.0, 1.5, 2.5], "class", ["1.5", "2", "1.5", "2.5"]),
    "zeros before": (["004", "005", "004", "001"], "class", ["004", "005", "004", "001"]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_kind(tmp_path, name):
    values, kind, expected = LABELS[name]
    dataset = load(write(tmp_path / "a.jsonl", jsonl(labelled(values))))
    assert dataset.tasks[0].kind == kind
    assert [label for _, label in read(dataset)] == expected
    assert (f"kind {kind} (data.kind)" in " ".join(dataset.guesses)) == (kind != "class")


def test_columns_of_zeros_and_ones_are_labels(tmp_path):
    rows = [("what is it 1", 1, 0, 1), ("what is it 2", 0, 0, 0), ("what is it 3", 0, 1, 0)]
    path = write(tmp_path / "a.csv", delimited(rows, header=("text", "A", "B", "C")))
    expected = [("A", "C"), (), ("B",)]
    for fields in ({}, {"label": "A,B,C"}, {"label": "A, B, C", "kind": "multilabel"}):
        assert [label for _, label in read(load(path, **fields))] == expected
    with pytest.raises(InputError, match="expected 1 in one of the columns of labels, found it in"):
        load(path, kind="class")


def test_numbers_and_booleans_are_one_label_however_they_are_written(tmp_path):
    train = write(tmp_path / "train.csv", delimited([("a", "4.0"), ("b", "5.0"), ("c", "4")]))
    test = write(tmp_path / "test.jsonl", jsonl([{"text": "d", "label": 5}]))
    dataset = load(train, test=str(test))
    assert dataset.tasks[0].labels == ("4", "5")
    assert dataset.splits["test"][0].labels == {"label": "5"}
    assert "labels written as the others are (4.0 is 4): 2" in dataset.guesses
    train = write(tmp_path / "train.csv", delimited([("a", "True"), ("b", "False")]))
    test = write(tmp_path / "test.jsonl", jsonl([{"text": "d", "label": True}]))
    assert load(train, test=str(test)).splits["test"][0].labels == {"label": "true"}


@pytest.mark.parametrize(
    "names", ["no\nyes\n", '["no", "yes"]', '{"0": "no", "1": "yes"}', '{"no": 0, "yes": 1}']
)
def test_numbers_are_named_by_a_file(tmp_path, names):
    path = write(tmp_path / "a.jsonl", jsonl(labelled([0, 1, 1])))
    dataset = load(path, label_names=str(write(tmp_path / "names", names)))
    assert [label for _, label in read(dataset)] == ["no", "yes", "yes"]
    path = write(tmp_path / "b.jsonl", jsonl(labelled([0, 2])))
    with pytest.raises(InputError, match="'2' is none of no, yes, nor the number of one"):
        load(path, label_names=str(tmp_path / "names"))


def test_labels_that_are_nearly_the_same_are_noted(tmp_path):
    train = delimited([("a", "Café"), ("b", "cafe"), ("c", "007"), ("d", "x")])
    test = delimited([("e", "7"), ("f", "X ")])
    dataset = load(
        write(tmp_path / "train.csv", train), test=str(write(tmp_path / "test.csv", test))
    )
    said = "\n".join(notes(dataset))
    assert "classes that differ by case, spaces or accents alone: 'Café', 'cafe'" in said
    assert "labels of test are those of train but for case" in said
    assert "'007', '7'" in said
    assert "'X', 'x'" in said


# Slots --------------------------------------------------------------------------------------------

CONLL = "-DOCSTART- -X- O\n\nat O\nfive B-time\nam I-time\n\nfor IN O\nanna NN B-person\n"
SLOTS = {
    "CoNLL": ("a.txt", CONLL),
    "CoNLL by its ending": ("a.conll", CONLL),
    "BIOES": (
        "a.jsonl",
        jsonl(
            [
                {"text": "at five am", "slots": ["O", "B-time", "E-time"]},
                {"text": "for anna", "slots": ["O", "S-person"]},
            ]
        ),
    ),
    "Python lists": (
        "a.csv",
        delimited(
            [("at five am", "['O', 'B-time', 'I-time']"), ("for anna", "['O', 'B-person']")],
            header=("text", "slots"),
        ),
    ),
    "tokens and tags": (
        "a.jsonl",
        jsonl(
            [
                {"tokens": ["at", "five", "am"], "ner_tags": ["O", "B-time", "I-time"]},
                {"tokens": ["for", "anna"], "ner_tags": ["O", "B-person"]},
            ]
        ),
    ),
    "doccano's spans": (
        "a.jsonl",
        jsonl(
            [
                {"text": "at five am", "label": [[3, 10, "time"]]},
                {"text": "for anna", "label": [[4, 8, "person"]]},
                {"text": "and then", "label": []},
            ]
        ),
    ),
    "spans as objects": (
        "a.jsonl",
        jsonl(
            [
                {
                    "text": "at five am",
                    "entities": [{"start_offset": 3, "end_offset": 10, "label": "time"}],
                },
                {
                    "text": "for anna",
                    "entities": [{"start_offset": 4, "end_offset": 8, "label": "person"}],
                },
            ]
        ),
    ),
    "Label Studio": (
        "a.json",
        json.dumps(
            [
                {"data": {"text": text}, "annotations": [{"result": [{"value": value}]}]}
                for text, value in (
                    ("at five am", {"start": 3, "end": 10, "labels": ["time"]}),
                    ("for anna", {"start": 4, "end": 8, "labels": ["person"]}),
                )
            ]
        ),
    ),
}


@pytest.mark.parametrize("name", SLOTS)
def test_slots(tmp_path, name):
    file, content = SLOTS[name]
    dataset = load(write(tmp_path / file, content))
    assert [task.name for task in dataset.tasks] == ["slots"]
    found = read(dataset, "slots")
    assert found[:2] == [("at five am", ("O", "B-time", "I-time")), ("for anna", ("O", "B-person"))]
    assert found[2:] in ([], [("and then", ("O", "O"))])


def test_tags_that_are_numbers_need_names(tmp_path):
    rows = [{"tokens": ["at", "five"], "ner_tags": [0, 1]}]
    path = write(tmp_path / "a.jsonl", jsonl(rows))
    with pytest.raises(InputError, match=r"are numbers without names.*data\.label_names"):
        load(path)
    names = write(tmp_path / "names.txt", "O\nB-time\nI-time\n")
    assert read(load(path, label_names=str(names)), "slots") == [("at five", ("O", "B-time"))]


def test_a_name_that_begins_like_a_tag_stays_one(tmp_path):
    rows = [{"text": "mail it", "slots": ["E-mail", "Other"]}]
    dataset = load(write(tmp_path / "a.jsonl", jsonl(rows)))
    assert read(dataset, "slots") == [("mail it", ("B-E-mail", "O"))]


# Texts of several columns -------------------------------------------------------------------------


def test_several_columns_are_one_text_with_their_names(tmp_path):
    rows = [("Sale", "All lamps", "x"), ("", "No title here", "y"), ("News", "Of us", "x")]
    path = write(tmp_path / "a.csv", delimited(rows, header=("title", "body", "label")))
    for fields in ({}, {"text": "title,body"}):
        dataset = load(path, **fields)
        assert [text for text, _ in read(dataset)] == [
            "title: Sale\nbody: All lamps",
            "body: No title here",
            "title: News\nbody: Of us",
        ]


# Questions ----------------------------------------------------------------------------------------

ASKED = {
    "lines of text": ("a.txt", "what is it\nwho is it\n", r"without labels.*data\.format"),
    "no labels": ("a.csv", "id,text\n1,what is it\n2,who is it\n", r"Set data\.label.*predict"),
    "two columns of classes": (
        "a.csv",
        delimited(
            [(f"what is it {n}", "ab"[n % 2], "xy"[n % 2]) for n in range(9)],
            header=("words here", "p", "q"),
        ),
        r"labels cannot be told. Set data\.label; columns: 'p' \(2 different",
    ),
    "two texts": (
        "a.csv",
        delimited(
            [(f"what is it {n}", f"who is it {n}", "ab"[n % 2]) for n in range(9)],
            header=("p", "q", "label"),
        ),
        r"text cannot be told. Set data\.text; columns: 'p'",
    ),
    "a name twice": ("a.csv", "text,label,text\na,b,c\n", "'text' is twice .*Rename one"),
    "no known ending": ("a.dat", "text,label\na,b\n", r"set data\.format"),
    "an old spreadsheet": ("a.xls", "x", "Save it as xlsx or csv"),
    "a zip by another name": ("a.csv", b"PK\x03\x04", "is a zip or xlsx file by its first bytes"),
    "a damaged zip": ("a.zip", b"PK\x03\x04", "damaged zip file"),
    "an array that ends": ("a.json", '[{"text": "a", "label": "b"}, {"te', "element 2 .*not JSON"),
    "an array that is not closed": ("a.json", '[{"text": "a", "label": "b"}', "is not closed"),
    "a column of another kind": (
        "a.jsonl",
        jsonl([{"text": "a b", "label": [[0, 1, "x"]]}]),
        r"holds spans of the text, which are slots: set data\.slots=label",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_cannot_be_known_is_asked(tmp_path, name):
    file, content, message = ASKED[name]
    fields = {"task": "label"} if name == "a column of another kind" else {}
    with pytest.raises(InputError, match=f"(?s){message}"):
        load(write(tmp_path / file, content), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "body"}, "column 'body' is not in the file; its columns: 'text', 'label'"),
        ({"label": "labl"}, "column 'labl' is not in the file.* Did you mean 'label'"),
        ({"encoding": "latin-17"}, "data.encoding is 'latin-17'; expected a name that Python"),
        ({"label_names": "none.txt"}, "data.label_names: none.txt cannot be read"),
    ],
)
def test_options_that_do_not_fit(tmp_path, fields, message):
    with pytest.raises(JaxclfError, match=message):
        load(write(tmp_path / "a.csv", delimited()), **fields)


def test_options_say_how_a_file_is_written(tmp_path):
    path = write(tmp_path / "a.dat", delimited(separator="~", header=None))
    dataset = load(path, format="csv", separator="~", header="no", text="1", label="2")
    assert read(dataset) == ROWS
    assert dataset.guesses == ()
    content = 'text,label\n"it" is,a\n5" of it,b\n'
    path = write(tmp_path / "b.csv", content)
    with pytest.raises(InputError, match=r"set data\.quotes=none"):
        load(path)
    assert read(load(path, quotes="none")) == [('"it" is', "a"), ('5" of it', "b")]


def test_a_test_split_with_other_columns_and_one_without_labels(tmp_path):
    train = write(tmp_path / "train.csv", delimited(header=("text", "category")))
    test = write(tmp_path / "test.jsonl", jsonl(objects(ROWS[:3], label="label")))
    assert len(load(train, test=str(test)).splits["test"]) == 3
    bare = write(tmp_path / "bare.csv", "id,text\n1,what is it\n")
    with pytest.raises(InputError, match=r"(?s)bare.csv.*label.*predict"):
        load(train, test=str(bare))


# The reported inputs, where they are --------------------------------------------------------------


def test_every_reported_case_is_read_or_answered(shared_root):
    cases = shared_root / "cases"
    if not cases.is_dir():
        pytest.skip("no folder of cases beside the data")
    refused = {}
    for folder in sorted(path for path in cases.iterdir() if path.is_dir()):
        readme = folder / "README"
        words = (
            shlex.split(readme.read_text("utf-8").split("\n")[0].split(";")[0])
            if (readme.exists())
            else []
        )
        fields = dict(
            word.removeprefix("--config.data.").split("=", 1)
            for word in words
            if word.startswith("--config.data.")
        )
        fields = {k: v for k, v in fields.items() if k not in ("train", "dev", "test", "limit")}
        for train in sorted(folder.glob("train*")):
            try:
                assert load(train, **fields).splits["train"]
            except InputError as error:
                refused[os.fspath(train.relative_to(cases))] = str(error)
    assert {Path(name).parts[0] for name in refused} <= {
        *("csv_missing_label", "csv_skip_resync", "csv_stray_quote", "csv_unbalanced_quote"),
        *("csv_unquoted_commas", "dup_header", "hf_ner", "jsonl_nan", "multilabel_empty", "xlsx"),
    }
