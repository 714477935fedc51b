"""Damaged files through our readers: every one is read, or refused by an error of ours.

    python -m benchmarks.faults.readers --count 100000 --seed 0

Each mutation takes a valid file and flips, removes, repeats or replaces parts of it. The counts by
reader stand in the table at the end; anything but a value or a `JaxclfError` is listed with the
mutation's number, which `--only` repeats, and makes the exit code 1. A crash of the process counts:
the mutations run in a child, which is started again behind one.
"""

import argparse
import collections
import gzip
import io
import json
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxclf.core.errors import JaxclfError
from jaxclf.data import records
from jaxclf.data.records import Column, Defects, Schema

_SECONDS = 60  # that one mutation may take


class Reader(NamedTuple):
    """What reads a kind of file: its name ends in `ending`; `valid` is what a good one holds."""

    ending: str
    valid: bytes
    read: Callable[[Path], Any]


_SCHEMA = Schema("text", (Column("label", "class", "label"), Column("slots", "slots", "slots")))
_ROWS = [
    {
        "text": f'wake me at {number} "am", é 日本\nplease' if number % 3 else "stop it now",
        "label": ("alarm_set", "audio, off")[number % 2],
        "slots": ["Other"] * (8 if number % 3 else 3),
        "number": number * 1e10,
    }
    for number in range(12)
]


def _read_records(path: Path) -> int:
    """Records with a class and slots, once failing over a defect and once without those."""
    defects = Defects(skip=True)
    found = records.read(path, _SCHEMA, defects, "train")
    Defects(counts=defects.counts, shown=defects.shown).check()
    return sum(map(len, found.values()))


def _jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS).encode()


def _csv() -> bytes:
    import csv

    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(_ROWS[0]))
    writer.writeheader()
    writer.writerows({**row, "slots": json.dumps(row["slots"])} for row in _ROWS)
    return file.getvalue().encode()


def _parquet(**options: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(_ROWS)
    names = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": names}})}
    )
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    return {
        "jsonl": Reader(".jsonl", _jsonl(), _read_records),
        "csv": Reader(".csv", _csv(), _read_records),
        "gzip": Reader(".jsonl.gz", gzip.compress(_jsonl(), mtime=0), _read_records),
        "parquet": Reader(".parquet", _parquet(), _read_records),
        "parquet, plain": Reader(
            ".parquet", _parquet(compression="none", use_dictionary=False), _read_records
        ),
    }


_PIECES = [
    *(b'"', b",", b"\n", b"\r", b"\0", b"[", b"{", b"}", b"]", b":", b"\\", b'""', b'",\n"'),
    *(b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"null", b"1e999", b"-1"),
    *(b"9" * 5000, b"[" * 5000, b'{"a":' * 3000, b"\x80" * 9, b"\xff\xff\xff\x7f", b"a" * 70_000),
]


def mutated(content: bytes, random: random.Random) -> bytes:
    """The content with up to four changes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(content) + 1)
        end = min(len(content), place + random.choice((1, 1, 2, 8, 64, len(content))))
        kind = random.randrange(6)
        if kind == 0 and place < len(content):
            flipped = content[place] ^ (1 << random.randrange(8))
            content = content[:place] + bytes([flipped]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place] + content[end:]
        elif kind == 2:
            content = content[:place] + content[place:end] * 2 + content[end:]
        elif kind == 3:
            content = content[:place] + random.choice(_PIECES) + content[place:]
        elif kind == 4:
            content = content[:place] + random.choice(_PIECES) + content[end:]
        else:
            noise = random.randbytes(random.choice((1, 4, 16)))
            content = content[:place] + noise + content[place + len(noise) :]
    return content


def outcome(reader: Reader, path: Path) -> str:
    """`read`, the name of our error, or what else was raised, with its place."""
    try:
        reader.read(path)
    except JaxclfError as error:
        return type(error).__name__
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = trace and f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        return f"FAULT {type(error).__name__}: {error} at {where}"
    return "read"


def mutation(reader: Reader, name: str, seed: int, number: int) -> bytes:
    return mutated(reader.valid, random.Random(f"{seed} {name} {number}"))


def _work(name: str, seed: int, numbers: list[int], sender: Any) -> None:
    """Send (number, outcome) of each mutation, and (number, "") before it is tried."""
    reader = readers()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train{reader.ending}"
        for number in numbers:
            sender.send((number, ""))
            path.write_bytes(mutation(reader, name, seed, number))
            sender.send((number, outcome(reader, path)))


def outcomes(name: str, seed: int, numbers: list[int]) -> Iterator[tuple[int, str]]:
    """The outcome of each mutation; one that ends or stops its process is a FAULT, too."""
    context = multiprocessing.get_context("spawn")
    while numbers:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(name, seed, numbers, sender))
        process.start()
        sender.close()
        current = numbers[0]
        try:
            while receiver.poll(_SECONDS):
                current, found = receiver.recv()
                if found:
                    numbers = numbers[numbers.index(current) + 1 :]
                    yield current, found
            yield current, f"FAULT no end within {_SECONDS} seconds"
        except EOFError:
            process.join()
            if not numbers:
                return
            yield current, f"FAULT the process ended with {process.exitcode}"
        finally:
            process.kill()
        numbers = numbers[numbers.index(current) + 1 :]


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        "benchmarks.faults.readers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=100_000, help="mutations over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=list(readers()), metavar="NAME")
    parser.add_argument("--only", type=int, help="try this mutation of each reader alone")
    options = parser.parse_args(arguments)
    faults = []
    for name in options.readers:
        each = range(options.count // len(options.readers))
        numbers = [*each] if options.only is None else [options.only]
        counts: collections.Counter[str] = collections.Counter()
        for number, found in outcomes(name, options.seed, numbers):
            counts[found.partition(" ")[0]] += 1
            if found.startswith("FAULT"):
                faults.append(f"{name} {number}: {found}")
                print(faults[-1], flush=True)
        said = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
        print(f"{name:16} {sum(counts.values()):8,}  {said}", flush=True)
    print(f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
