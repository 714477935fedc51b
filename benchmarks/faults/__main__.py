"""A campaign of faults: what is killed, damaged, starved or fed nonsense is never silently wrong.

    python -m benchmarks.faults --seed 0 --output faults.jsonl
    python -m benchmarks.faults --short --parts flips,inputs

Each case is a line of the output file. A stopped campaign goes on with what it has not finished of
its parts, and of the kinds of commands that are killed and stopped. At the end the counts by part;
exit code 1 where there was a fault.

kills      SIGKILL at random times and writes; the same command goes on to the same results
stops      SIGTERM and Ctrl-C on a loaded machine
flips      flipped bits, emptied, halved and lost files in every kind of artifact
disks      full, read-only and vanishing disks
peers      dead, stuck and wrong servers and processes; two writers of one folder
inputs     bad data, configs and arguments
mutations  readers of csv, jsonl, parquet, safetensors and config.json, thousands of times
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks.faults import artifacts, disks, flips, inputs, kills, mutations, peers, stops
from benchmarks.faults.commands import Commands
from benchmarks.faults.world import FAULTS, Part, Result, World

PARTS: Mapping[str, Part] = {
    "kills": kills.run,
    "stops": stops.run,
    "flips": flips.run,
    "disks": disks.run,
    "peers": peers.run,
    "inputs": inputs.run,
    "mutations": mutations.run,
}


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few cases of each part")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.jsonl", help="the results, a line each"
    )
    parser.add_argument("--scratch", type=Path, help="a folder to work in; default: a new one")
    options = parser.parse_args(arguments)
    wanted = options.parts.split(",")
    if unknown := {*wanted} - {*PARTS}:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        results = campaign(
            wanted, options.scratch or Path(temporary), options.seed, options.short, options.output
        )
    print(table(results))
    return int(any(result.verdict in FAULTS for result in results))


def campaign(
    parts: list[str], scratch: Path, seed: int = 0, short: bool = False, output: Path | None = None
) -> list[Result]:
    """Run the parts; `output`: where results go, and where those of before are read."""
    results = _read(output) if output else []
    finished = {result.part for result in results if result.case == "finished"}
    scratch.mkdir(parents=True, exist_ok=True)
    with Commands(scratch) as commands:
        os.environ.update(commands.environment)  # for commands within this process
        world = World(scratch, commands, seed, short, finished)
        with artifacts.chat_server(world):
            artifacts.build(world)
            for part in parts:
                if part in finished:
                    continue
                known = {(result.part, result.case) for result in results}
                for result in PARTS[part](world):
                    if (result.part, result.case) not in known:
                        results.append(result)
                        _write(output, result)
                _write(output, Result(part, "finished", "harmless"))
    return [result for result in results if result.case != "finished"]


def table(results: list[Result]) -> str:
    """Counts by part, as Markdown, and the faults."""
    verdicts = ("same", "told", "harmless", *FAULTS)
    lines = ["| part | tried | fine | " + " | ".join(FAULTS) + " |"]
    lines.append("|---" + "|---:" * (2 + len(FAULTS)) + "|")
    counts: dict[str, Counter[str]] = {}
    for result in results:
        counts.setdefault(result.part, Counter())[result.verdict] += result.count
    counts["all"] = sum(counts.values(), Counter())
    for part, found in counts.items():
        fine = sum(found[verdict] for verdict in verdicts if verdict not in FAULTS)
        cells = [part, found.total(), fine, *(found[verdict] for verdict in FAULTS)]
        lines.append(
            "| " + " | ".join(f"{cell:,}" if cell != part else part for cell in cells) + " |"
        )
    lines += [
        f"\n{result.verdict.upper()} {result.part}: {result.case}\n    {result.seen}"
        for result in results
        if result.verdict in FAULTS
    ]
    return "\n".join(lines)


def _write(output: Path | None, result: Result) -> None:
    if result.case != "finished":
        seen = " ".join(result.seen.split())[:160]
        print(f"{result.verdict:10} {result.part}: {result.case}  {seen}", flush=True)
    if output is not None:
        with output.open("a", encoding="utf-8") as file:
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False), file=file)


def _read(output: Path) -> list[Result]:
    if not output.is_file():
        return []
    return [Result(**json.loads(line)) for line in output.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
