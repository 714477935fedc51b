"""What a compiled program does, read from its text: bytes moved, in memory and between devices.

A loop's body stands once in the text; it counts as often as the loop runs, which XLA:GPU notes, or
as its condition lets it run.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Sequence

from jaxclf.planning.collectives import KINDS, Collective, groups

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
_BITS |= {"f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?)([a-z][a-z\-]*)\((.*)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_FUSED = re.compile(r'"fusion_backend_config":\{"kind":"(__triton[^"]*)"')
# What moves nothing, or is counted where it ends.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "copy-done", "slice-done", "optimization-barrier"}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of one device in one run of the program, and what computes them.

    `memory`: read and written by its instructions. `exchanges`: its collectives. `kernels`: how
    often those run that the compiler did not make itself, or made by Triton, by name.
    """

    memory: float
    exchanges: tuple[Collective, ...] = ()
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def collectives(self) -> dict[str, float]:
        """Kind → bytes that each puts out."""
        return self._sums(lambda each: each.size * each.times)

    @functools.cached_property
    def counts(self) -> dict[str, float]:
        """Kind → how often."""
        return self._sums(lambda each: each.times)

    @functools.cached_property
    def asynchronous(self) -> dict[str, float]:
        """Kind → how often beside computation."""
        return self._sums(lambda each: each.times * each.is_async)

    def _sums(self, value) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for each in self.exchanges:
            found[each.kind] += value(each)
        return dict(found)


def traffic(text: str, devices: int = 1) -> Traffic:
    """The traffic of a compiled program (`Compiled.as_text()`) for so many devices."""
    computations = _computations(text)
    entry = next(name for name, lines in computations.items() if lines[0].startswith("ENTRY"))
    memory = 0.0
    exchanges: list[Collective] = []
    kernels: dict[str, float] = defaultdict(float)

    def walk(name: str, times: float, trips: int, is_async: bool = False) -> None:
        nonlocal memory
        sizes: dict[str, float] = {}
        begun: dict[str, Collective] = {}
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
                known = _TRIPS.search(rest)
                inside = int(known.group(1)) if known else _trips(computations[condition])
                walk(body, times * inside, inside)
            elif kind in ("call", "conditional", "async-start"):
                for inner in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", rest):
                    walk(inner, times, trips, kind == "async-start")
            match = _TARGET.search(rest) or _FUSED.search(rest)
            if match and match.group(1) != "AllocateBuffer":  # which computes nothing
                kernels[match.group(1)] += times
            collective = kind.removesuffix("-start").removesuffix("-done")
            if collective in KINDS:
                if kind.endswith("-done"):  # a start gives operand and result, a done the result
                    operand = re.search(r"%([\w.\-]+)", rest)
                    start = begun.pop(operand.group(1) if operand else "", None)
                    if start is not None:
                        exchanges.append(start._replace(size=sizes[own]))
                    continue
                starts = kind.endswith("-start")
                beside = is_async or (starts and '"is_sync":true' not in rest)
                found = Collective(collective, sizes[own], times, beside, groups(rest, devices))
                if starts:
                    begun[own] = found
                else:
                    exchanges.append(found)
                continue
            if kind == "fusion" and (inner := re.search(r"calls=%?([\w.\-]+)", rest)):
                within = computations.get(inner.group(1), [])
                exchanges.extend(_begun_within(within, times, devices))
            if kind in _FREE or kind.endswith("-done"):
                continue
            operands = re.findall(r"%([\w.\-]+)", rest.partition("),")[0])
            memory += times * (sizes[own] + sum(sizes.get(operand, 0) for operand in operands))

    walk(entry, 1, 1)
    return Traffic(memory, tuple(exchanges), dict(kernels))


def _begun_within(lines: Sequence[str], times: float, devices: int) -> list[Collective]:
    """The collectives that a fusion of libtpu's begins, to be gone on with in those after it.

    Each of these computes something else meanwhile. What only goes on in a fusion is not counted.
    """
    if not any("AsyncCollectiveStart" in line for line in lines):
        return []
    matches = [match for line in lines if (match := _LINE.match(line))]
    return [
        Collective(match.group(3), _bytes(match.group(2), 0), times, True, groups(rest, devices))
        for match in matches
        if match.group(3) in KINDS and (rest := match.group(4))
    ]


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


def _trips(condition: Sequence[str]) -> int:
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
