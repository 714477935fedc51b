"""What the text of a program compiled for GPUs says: its kernels, collectives, and squares.

Counts are of statements: a loop's body stands once in the text, however often it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

Shape = tuple[int, ...]

# Beginning of a custom call's target → what attention it is; all others are none.
KERNELS = {
    "__cudnn$fmha": "cuDNN",
    "__gpu$xla.gpu.triton": "flash",  # Pallas through Triton
    "mosaic_gpu": "Mosaic",  # Pallas through Mosaic
}
PLAIN = "plain"

_TARGET = re.compile(r'\bcustom_call_target="([^"]+)"')
_COLLECTIVE = re.compile(
    r" (?:all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(-start)?\("
)
_ARRAY = re.compile(r"\b[a-z]+\d+(?:e\d\w*)?\[([\d,]+)\]|\bpred\[([\d,]+)\]")
_FUSED = re.compile(r"\bfusion\(.*?\bcalls=%?([\w.\-]+)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """How many there are, and how many of these let other work go on meanwhile."""

    count: int = 0
    asynchronous: int = 0

    def __add__(self, other: "Collectives") -> "Collectives":
        return Collectives(self.count + other.count, self.asynchronous + other.asynchronous)


def kernels(text: str) -> dict[str, int]:
    """How many calls there are of each kind of attention kernel; empty: attention is XLA's own."""
    found: dict[str, int] = {}
    for target in _TARGET.findall(text):
        for beginning, name in KERNELS.items():
            if target.startswith(beginning):
                found[name] = found.get(name, 0) + 1
    return found


def collectives(text: str) -> Collectives:
    """All that moves arrays between devices.

    A start whose own configuration says `is_sync` waits for its end at once.
    """
    found = Collectives()
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            waits = match.group(1) is None or '"is_sync":true' in line
            found += Collectives(1, 0 if waits else 1)
    return found


def squares(text: str, least: int, elements: int) -> tuple[set[Shape], set[Shape]]:
    """Shapes with a value for each pair of tokens: (of arrays in memory, within fusions alone).

    Made for programs of which every dimension but those that count tokens is smaller than `least`,
    half the tokens of a row: a square has two dimensions of that size. (Rows and their tokens as
    one dimension are one. Half, because tokens may be divided over two devices, and because random
    bits are drawn two to a word.) Or it lies in blocks, and then has `elements` or more, half as
    many as there are pairs in all heads of a device; of one dimension alone are only the work
    spaces of kernels.
    Values within a fusion never lie in memory, but they are computed.
    """
    fused = set(_FUSED.findall(text))
    memory: set[Shape] = set()
    within: set[Shape] = set()
    found = memory

    def is_square(shape: Shape) -> bool:
        in_blocks = len(shape) > 1 and math.prod(shape) >= elements
        return in_blocks or sum(size >= least for size in shape) > 1

    for line in text.splitlines():
        if line and not line[0].isspace():
            match = _COMPUTATION.match(line)
            found = within if match and match.group(1) in fused else memory
        found |= set(filter(is_square, _shapes(line)))
    return memory, within - memory


def _shapes(line: str) -> Iterable[Shape]:
    for groups in _ARRAY.findall(line):
        yield tuple(int(size) for size in (groups[0] or groups[1]).split(","))
