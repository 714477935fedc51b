"""What accelerators have: memory, speed and links, as their makers publish them.

Sources: Google Cloud's pages on TPU v5e, v5p and v6e; NVIDIA's data sheets of A100, H100, H200.
"""

import dataclasses
import math
import re

from jaxclf.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory in bytes; dense bfloat16 FLOP/s; bytes/s of memory and of links to other chips.

    `dimensions`: of a slice's shape; `sizes`: shapes on offer, the smallest first.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float
    dimensions: int = 0
    sizes: tuple[str, ...] = ()


_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

CHIPS: dict[str, Chip] = {
    "v5e": Chip(16 * GIB, 197e12, 0.82e12, 0.2e12, 2, _2D),
    "v5p": Chip(95 * GIB, 459e12, 2.765e12, 0.6e12, 3, _3D),
    "v6e": Chip(32 * GIB, 918e12, 1.64e12, 0.448e12, 2, _2D),
    "a100": Chip(80e9, 312e12, 2.0e12, 0.3e12),
    "h100": Chip(80e9, 989e12, 3.35e12, 0.45e12),
    "h200": Chip(141e9, 989e12, 4.8e12, 0.45e12),
}
TPUS = tuple(name for name, chip in CHIPS.items() if chip.dimensions)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `v5p:4x4x2` is 32 chips; of GPUs `h100:8` are 8."""

    name: str
    chip: Chip
    count: int
    is_tpu: bool


def topology(text: str) -> Topology:
    """Read `GENERATION:SHAPE` or `GPU:COUNT`; raises InputError."""
    name, _, shape = text.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise InputError(
            f"--topology {text}: expected auto, a TPU slice such as v5p:4x4x2 or GPUs such as "
            f"h100:8; known: {', '.join(CHIPS)}"
        )
    chip, sizes = CHIPS[name], [int(size) for size in shape.split("x")]
    if chip.dimensions and len(sizes) != chip.dimensions:
        raise InputError(
            f"--topology {text}: a slice of {name} has {chip.dimensions} dimensions, such as "
            f"{name}:{chip.sizes[3]}"
        )
    if not chip.dimensions and len(sizes) != 1:
        raise InputError(f"--topology {text}: expected a number of GPUs, such as {name}:8")
    if min(sizes) < 1:
        raise InputError(f"--topology {text}: a slice has at least one chip")
    return Topology(text, chip, math.prod(sizes), chip.dimensions > 0)
