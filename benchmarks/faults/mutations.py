"""Mutated files before every reader: each is read, or refused by an error of ours."""

from collections import Counter
from collections.abc import Iterator

from benchmarks.faults import model_files, readers
from benchmarks.faults.world import Result, World

_READ = 95_000  # mutations of csv, jsonl and parquet, over all of their readers
_CONVERTED = 5_000  # of model folders: safetensors, config.json, tokenizers, adapters


def run(world: World) -> Iterator[Result]:
    kinds = readers.readers()
    each = world.few(_READ, 40 * len(kinds)) // len(kinds)
    for name in kinds:
        counts = Counter()
        for number, outcome in readers.outcomes(name, world.seed, list(range(each))):
            verdict = "traceback" if outcome.startswith("FAULT") else "told"
            counts[verdict] += 1
            if verdict != "told":
                case = f"{name}: mutation {number}"
                yield Result("mutations", case, verdict, outcome)
        yield Result("mutations", f"{name}: others", "told", "", counts["told"])
    counts, faults = model_files.run_all(world.few(_CONVERTED, 24), world.seed)
    for number, fault in enumerate(faults):
        yield Result("mutations", f"model folders: fault {number + 1}", "traceback", fault)
    fine = sum(counts[kind] for kind in model_files.FINE)
    yield Result("mutations", "model folders: others", "told", "", fine)
