"""Files that lose, invent or swallow rows, and files that become more than they are."""

import csv
import gzip
import json
import random
import tracemalloc

import pytest

from benchmarks.faults import readers as faults
from jaxclf.core.errors import InputError, JaxclfError
from jaxclf.data.formats import limits, lines
from jaxclf.data.formats.parts import parts
from jaxclf.data.records import Column, Defects, Schema, read

CLASS = Schema("text", (Column("label", "class", "label"),))
QUESTIONS = [(f"question {number} of the day ?", "AB"[number % 2]) for number in range(40)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records(path, schema=CLASS, skip=True):
    defects = Defects(skip=skip)
    found = read(path, schema, defects, "train").get("train", [])
    defects.check()
    return found, defects


def rows(order, questions=QUESTIONS, start=""):
    """A csv file without quotes, but for what stands before text 10 and after text 25."""
    lines = [",".join(order)]
    for number, (text, label) in enumerate(questions):
        text = {10: f'{start}"{text}', 25: f'{text} he said"'}.get(number, text)
        fields = {"text": text, "label": label, "id": str(number)}
        lines.append(",".join(fields[name] for name in order))
    return "\n".join(lines) + "\n"


# Quotes


@pytest.mark.parametrize("order", ["label text", "text label", "id label text", "id text label"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_quote_that_holds_whole_rows_is_noticed(tmp_path, order, skip):
    path = write(tmp_path / "train.csv", rows(order.split()))
    with pytest.raises(InputError, match=r"train.csv:12: a quote .* 16 lines together, of which"):
        records(path, skip=skip)


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_a_quote_that_holds_rows_of_other_tasks_is_noticed(tmp_path, kind):
    questions = [(text, str(number % 5)) for number, (text, _) in enumerate(QUESTIONS)]
    path = write(tmp_path / "train.csv", rows(["label", "text"], questions))
    with pytest.raises(InputError, match="16 lines together, of which 16 are whole rows"):
        records(path, Schema("text", (Column("label", kind, "label"),)))


def test_a_quote_that_holds_texts_to_label_is_noticed(tmp_path):
    path = write(tmp_path / "train.csv", rows(["id", "text"]))
    with pytest.raises(InputError, match="16 lines together"):
        records(path, Schema("text", id="id"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_line_may_have_so_many_bytes_besides_its_end(tmp_path, monkeypatch, end, is_last):
    monkeypatch.setattr(limits, "MAX_BYTES", 8)

    def read_lines():
        (part,), _ = parts(path)
        return [*lines.lines(part, lines.TextForm())]

    path = write(tmp_path / "a.txt", b"x" * 8 + end + (b"" if is_last else b"y"))
    expected = [(1, b"x" * 8), *([] if is_last else [(2, b"y")])]
    assert read_lines() == expected
    write(path, b"x" * 11 + end + b"y")
    (_, first), second = read_lines()
    assert isinstance(first, lines.LongLine)
    assert second == (2, b"y")


@pytest.mark.parametrize(("count", "is_told"), [(3, False), (4, True)])
def test_of_texts_to_label_four_whole_rows_are_no_text(tmp_path, count, is_told):
    held = "\n".join(f"{number},text {number}" for number in range(count))
    held = held.replace("text", '"text', 1) + '"'
    path = write(tmp_path / "train.csv", f"id,text\n{held}\nb,last\n")
    if is_told:
        with pytest.raises(InputError, match="4 lines together, of which 4 are whole rows"):
            records(path, Schema("text", id="id"))
    else:
        assert len(records(path, Schema("text", id="id"))[0]) == 2


TEXTS = [
    "one line, a comma",
    "dear all,\n\nyours, Bob\n",
    "A, a list\nB, of letters\nor, of prose",
    'a "quote", and\nanother "one"',
    "roses are red, violets blue\n" * 3,
    '"',
    '""\n""',
    "\n\nA",
    "x" * 9000 + "\n" + "y,z\n" * 500,
]


@pytest.mark.parametrize("order", ["text label", "label text", "label text id"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts_with_quotes_commas_and_line_breaks_are_what_was_written(tmp_path, order, end):
    path = tmp_path / "train.csv"
    expected = [(text, "AB"[number % 2]) for number, text in enumerate(TEXTS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, order.split(), lineterminator=end)
        writer.writeheader()
        for number, (text, label) in enumerate(expected):
            fields = {"text": text, "label": label, "id": number}
            writer.writerow({name: fields[name] for name in order.split()})
    found, defects = records(path)
    assert [(record.text, record.labels["label"]) for record in found] == expected
    assert defects.counts == {}


BROKEN = {
    "backslash": '"a \\"b\\" c\nsecond line of it,regards\nthird "line" of it",A',
    "text behind a quote": '"a"b,A',
    "quote not doubled": '"he said "yes, or\nsomething plain,regards\nno" to me",A',
    "never closed": '"a,A',
    "space before a quote": 'A, "a line\nand more, of it"',
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("skip", [False, True])
def test_nothing_is_read_behind_a_misplaced_quote(tmp_path, name, skip):
    path = write(tmp_path / "train.csv", f"text,label\na,A\n{BROKEN[name]}\nb,B\nc,C\n")
    with pytest.raises(InputError, match=r"train.csv:3: not csv: .*none can be skipped") as error:
        records(path, skip=skip)
    assert ('not written \\"' in str(error.value)) == (name == "backslash")


def test_quotes_inside_a_field_without_quotes_are_text(tmp_path):
    path = write(tmp_path / "train.csv", 'text,label\n5" screen or "big" one,A\na "b,B\n')
    found, _ = records(path)
    assert [record.text for record in found] == ['5" screen or "big" one', 'a "b']


# Sizes


@pytest.fixture
def small(monkeypatch):
    """Limits that small files reach."""
    monkeypatch.setattr(limits, "MAX_BYTES", 1000)
    monkeypatch.setattr(limits, "MAX_LINE", 64_000)
    monkeypatch.setattr(limits, "FREE_BYTES", 100_000)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_line_without_end_is_not_held(tmp_path, monkeypatch, compress, kind):
    monkeypatch.setattr(limits, "MAX_BYTES", 1 << 16)
    monkeypatch.setattr(limits, "MAX_LINE", 64 << 16)
    ending = "" if compress is bytes else ".gz"
    path = tmp_path / f"train.{kind}{ending}"
    start = b"text,label\n" if kind == "csv" else b""
    write(path, compress(start + b"a" * (limits.MAX_LINE + 10)))
    tracemalloc.start()
    with pytest.raises(InputError, match="no line end in 4,194,304 bytes"):
        records(path, CLASS if kind != "txt" else Schema("text"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * limits.MAX_BYTES


def test_long_csv_records(tmp_path, small):
    start, end = "text,label\na,A\n", "\nb,B\n"
    for line in ("a" * 1500 + ",A", '"' + "a," * 800 + '",A'):
        found, defects = records(write(tmp_path / "train.csv", start + line + end))
        assert [record.text for record in found] == ["a", "b"]
        assert "bytes; a record may have 1,000" in defects.shown[0]
    for record in ('"' + "a\n" * 800 + '",A', '"' + "a" * 1500 + '\n",A'):
        path = write(tmp_path / "train.csv", start + record + end)
        with pytest.raises(InputError, match=r"csv:3: not csv: .* not closed within 1,000 bytes"):
            records(path)


def test_what_a_gzip_file_may_become(tmp_path, small):
    row = json.dumps({"text": "a b " * 50, "label": "A"}).encode() + b"\n"
    noise = random.Random(0).randbytes(50).hex()
    other = json.dumps({"text": noise, "label": "A"}).encode() + b"\n"
    content = gzip.compress(other + row * 800, mtime=0)
    assert len(row) * 800 / len(content) > 200
    found, _ = records(write(tmp_path / "good.jsonl.gz", content))
    assert len(found) == 801
    dense = json.dumps({"text": "a" * 800, "label": "A"}).encode() + b"\n"
    for bomb in (dense * 3000, b"\n" * 10_000):
        path = write(tmp_path / "bomb.jsonl.gz", gzip.compress(bomb, mtime=0))
        with pytest.raises(InputError, match="decompressed it has more than"):
            records(path)


def parquet(path, table, **options):
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path, **options)
    return path


def test_what_a_parquet_file_may_become(tmp_path, small):
    import pyarrow

    def repeated(value, count):
        indices = pyarrow.array([0] * count, pyarrow.int32())
        return pyarrow.DictionaryArray.from_arrays(indices, [value])

    bombs = {
        "plain": pyarrow.table({"text": ["a" * 900] * 9000, "label": ["A"] * 9000}),
        "one value": pyarrow.table({"text": repeated("a" * 900, 5000), "label": ["A"] * 5000}),
        "rows": pyarrow.table({"text": repeated("a", 90_000), "label": repeated("A", 90_000)}),
        "list": pyarrow.table({"text": ["a"], "label": pyarrow.array([["a"] * 900_000])}),
    }
    for name, table in bombs.items():
        options = {"use_dictionary": name != "plain", "compression": "zstd"}
        for stored in (False, True):
            path = parquet(tmp_path / "bomb.parquet", table, store_schema=stored, **options)
            with pytest.raises(InputError, match="decompressed it has more than"):
                records(path)


# Parquet


@pytest.mark.parametrize(
    "names", [5, None, [1, 2], ["a", "a"], {"a": 1}], ids=["number", "none", "ints", "twice", "map"]
)
def test_class_names_that_are_none(tmp_path, names):
    import pyarrow

    feature = {"_type": "ClassLabel"} | ({} if names is None else {"names": names})
    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    )
    with pytest.raises(InputError, match="column 'label' has numbers for class names"):
        records(parquet(tmp_path / "train.parquet", table))


@pytest.mark.parametrize("metadata", ["[1]", "{", "[" * 100_000, '{"info": {"features": [1]}}'])
def test_other_metadata_are_no_matter(tmp_path, metadata):
    import pyarrow

    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1]})
    table = table.replace_schema_metadata({"huggingface": metadata})
    found, _ = records(parquet(tmp_path / "train.parquet", table))
    assert [record.labels["label"] for record in found] == ["0", "1"]


def test_a_class_number_without_name_is_a_defect(tmp_path):
    import pyarrow

    features = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 2, -1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    found, defects = records(parquet(tmp_path / "train.parquet", table))
    assert [record.labels["label"] for record in found] == ["yes"]
    assert defects.shown[0].endswith(
        "label: 2 is not the number of one of the 2 classes of the file"
    )
    assert defects.shown[1].endswith("label: missing (null)")


def test_damaged_parquet_is_wrong_input(tmp_path):
    content = bytearray(faults.readers()["parquet"].valid)
    for place in range(30, 60):  # of a column's page
        content[place] ^= 0xFF
    with pytest.raises(InputError, match="not a readable parquet file"):
        records(write(tmp_path / "train.parquet", bytes(content)))


# Values


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[1]", "true", "1" + "0" * 400])
def test_numbers_that_are_none(tmp_path, value):
    path = write(tmp_path / "train.jsonl", f'{{"text": "a", "label": {value}}}\n')
    _, defects = records(path, Schema("text", (Column("label", "regression", "label"),)))
    assert len(defects.shown) == 1


def test_a_field_that_stands_twice_is_a_defect(tmp_path):
    path = write(tmp_path / "train.jsonl", '{"text": "a", "label": "A", "text": "b"}\n')
    _, defects = records(path)
    assert "'text' stands twice" in defects.shown[0]


# Damaged files


@pytest.mark.parametrize("name", faults.readers())
def test_damaged_files_are_read_or_refused(tmp_path, name):
    reader = faults.readers()[name]
    path = tmp_path / f"train{reader.ending}"
    assert reader.read(write(path, reader.valid)) == 12
    found = []
    for number in range(120):
        path.write_bytes(faults.mutation(reader, name, 0, number))
        found.append(faults.outcome(reader, path))
    assert [each for each in found if each.startswith("FAULT")] == []
    assert "InputError" in found
    assert not {*found} - {"read", "InputError"}


def test_a_fault_of_a_reader_is_found(tmp_path):
    def wrong(path):
        raise KeyError("x")

    path = write(tmp_path / "x", b"")
    assert faults.outcome(faults.Reader("", b"", wrong), path).startswith("FAULT KeyError")
    assert issubclass(InputError, JaxclfError)
