"""What a compiled program does, read from its text: bytes moved, in memory and between devices.

A loop's body stands once in the text; it counts as often as the loop's condition lets it run.
"""

import dataclasses
import math
import re
from collections import defaultdict

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
_BITS |= {"f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?)([a-z][a-z\-]*)\((.*)$")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What moves nothing, or is counted where it ends.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "copy-done", "slice-done", "optimization-barrier"}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of one device in one run of the program.

    `memory`: read and written by its instructions. `collectives`: kind → bytes that each puts out,
    and `counts`: how often.
    """

    memory: float
    collectives: dict[str, float]
    counts: dict[str, int]


def traffic(text: str) -> Traffic:
    """The traffic of a compiled program (`Compiled.as_text()`)."""
    computations = _computations(text)
    entry = next(name for name, lines in computations.items() if lines[0].startswith("ENTRY"))
    memory = 0.0
    collectives: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)

    def walk(name: str, times: int, trips: int) -> None:
        nonlocal memory
        sizes: dict[str, float] = {}
        for line in computations[name][1:]:
            if not (match := _LINE.match(line)):
                continue
            own, shapes, kind, rest = match.groups()
            sizes[own] = _bytes(shapes, trips)
            if kind == "while":
                body, condition = (
                    re.search(rf"{part}=%?([\w.\-]+)", rest).group(1)  # pyright: ignore
                    for part in ("body", "condition")
                )
                inside = _trips(computations[condition])
                walk(body, times * inside, inside)
            elif kind in ("call", "conditional", "async-start"):
                for inner in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", rest):
                    walk(inner, times, trips)
            if kind in _FREE or kind.endswith("-done"):
                continue
            collective = kind.removesuffix("-start")
            if collective in _COLLECTIVES:
                # A start gives operand and result; the result is the larger half.
                size = sizes[own] / (2 if kind.endswith("-start") else 1)
                collectives[collective] += size * times
                counts[collective] += times
                continue
            operands = re.findall(r"%([\w.\-]+)", rest.partition("),")[0])
            memory += times * (sizes[own] + sum(sizes.get(operand, 0) for operand in operands))

    walk(entry, 1, 1)
    return Traffic(memory, dict(collectives), dict(counts))


def shapes(text: str) -> set[tuple[int, ...]]:
    """The shape of every array that the program's text names."""
    return {
        tuple(int(size) for size in dims.split(",")) for _, dims in _SHAPE.findall(text) if dims
    }


def gathered(text: str) -> set[tuple[int, ...]]:
    """The shapes that all-gathers put out."""
    found = set()
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match.group(3).startswith("all-gather"):
            found |= shapes(match.group(2))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)
            lines = [line]
            found[name.group(1) if name else line] = lines
        elif lines:
            lines.append(line)
    return found


def _trips(condition: list[str]) -> int:
    """The bound that a loop counts to: the largest whole number in its condition."""
    bounds = [int(n) for line in condition for n in re.findall(r"constant\((\d+)\)", line)]
    return max(bounds, default=1)


def _bytes(text: str, trips: int) -> float:
    """Of all arrays; of a stack with one part a turn of the loop, such a part alone."""
    total = 0.0
    for kind, dims in _SHAPE.findall(text):
        sizes = [int(size) for size in dims.split(",") if size]
        if kind in _BITS:
            parts = trips if len(sizes) > 2 and sizes[0] == trips else 1
            total += math.prod(sizes) * _BITS[kind] / 8 / parts
    return total
