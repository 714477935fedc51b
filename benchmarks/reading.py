"""Rows a second and peak memory of reading csv, jsonl and parquet, beside pandas and datasets.

    python benchmarks/reading.py --rows 1000000

Each reading is a process of its own. Ours ends with records: texts, labels and ids checked, columns
and encoding found out. The others end with their table; pandas' has every value as an object of
Python, that of datasets lies in a file. Memory is the peak resident set of the process, imports
included.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FORMATS = ("csv", "jsonl", "parquet")
READERS = ("jaxclf", "pandas", "datasets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--readers", nargs="+", default=READERS, choices=READERS)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--output", type=Path, help="file for every measured value, as JSON")
    parser.add_argument("--read", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(measured(*options.read)))
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for ending in options.formats:
            path = Path(folder) / f"rows.{ending}"
            write(path, options.rows)
            for reader in options.readers:
                result = apart(reader, path, folder)
                assert result["rows"] == options.rows, result
                found.append({"format": ending, "reader": reader, **result})
                print(
                    f"{ending:8} {reader:9} {options.rows / result['seconds']:>11,.0f} rows/s "
                    f"{result['mib']:>7,.0f} MiB",
                    flush=True,
                )
    if options.output:
        options.output.write_text(json.dumps(found, indent=1))


def rows(count: int) -> Iterator[tuple[str, str]]:
    """A dozen words and one of twenty classes."""
    words = "the parcel came two weeks late and nobody at your office answers".split()
    for number in range(count):
        turned = words[number % 12 :] + words[: number % 12]
        yield f"{' '.join(turned)}, order {number}", f"class {number % 20}"


def write(path: Path, count: int) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows(count)])
    elif path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for text, label in rows(count):
                file.write(json.dumps({"text": text, "label": label}) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        texts, labels = zip(*rows(count), strict=True)
        table = pyarrow.table({"text": list(texts), "label": list(labels)})
        pyarrow.parquet.write_table(table, path)


def apart(reader: str, path: Path, cache: str) -> dict[str, float]:
    """What a process of its own measures."""
    done = subprocess.run(
        [sys.executable, __file__, "--read", reader, str(path)],
        env={**os.environ, "HF_DATASETS_CACHE": f"{cache}/cache", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(reader: str, file: str) -> dict[str, float]:
    """Rows, seconds and MiB of one reading."""
    read = {"jaxclf": _jaxclf, "pandas": _pandas, "datasets": _datasets}[reader](file)
    start = time.perf_counter()
    table = read()
    seconds = time.perf_counter() - start
    return {"rows": len(table), "seconds": seconds, "mib": _peak() / 1024}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _jaxclf(file: str):
    import pyarrow.parquet  # noqa: F401 - its import is not measured

    from jaxclf.config.defaults import default
    from jaxclf.data import own_files
    from jaxclf.data.records import Defects

    config = default().data
    config.update({"name": "file", "task": "auto", "train": file})
    return lambda: own_files.read(config, Defects())[1]["train"]


def _pandas(file: str):
    import pandas

    kinds = {".csv": pandas.read_csv, ".parquet": pandas.read_parquet}
    if file.endswith(".jsonl"):
        return lambda: pandas.read_json(file, lines=True)
    return lambda: kinds[Path(file).suffix](file)


def _datasets(file: str):
    import datasets

    datasets.disable_progress_bars()
    kind = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[Path(file).suffix]
    return lambda: datasets.load_dataset(kind, data_files=file, split="train")


if __name__ == "__main__":
    main()
