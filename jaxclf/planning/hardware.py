"""What accelerators have: memory, speed and links, as their makers publish them.

Sources: Google Cloud's pages on TPU v5e, v5p and v6e; NVIDIA's data sheets of A100, H100, H200,
DGX B200, GB200 NVL72, A10, L4 and L40S and its architecture paper on Ada (RTX 4090, with sums in
float32). Networks: of TPUs the data centre's, 6.4 Tb/s for 256 v5e, 25.6 for 256 v6e, 200 Gb/s for
a host of 4 v5p; of DGX A100 (200 Gb/s a GPU), of DGX H100, H200, B200 and GB200 NVL72 (400), and of
the largest machines that clouds rent with A10G and L4 (100 for 8 GPUs) and L40S (400 for 8).
Figures of links are of one direction; without NVLink they are those of 16 lanes of PCIe 4.0.
"""

import dataclasses
import math
import re

from jaxclf.core.errors import InputError
from jaxclf.planning.gpus import GPUS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory in bytes; dense bfloat16 FLOP/s; bytes/s of memory and of links to other chips.

    `network`: bytes/s of each to other nodes or slices (0: it has none). `dimensions`: of a slice's
    shape; `sizes`: shapes on offer, the smallest first. Of GPUs: `linked`: those that links join, a
    node; `hosted`: those of a host. `reserved`: bytes of the memory that no program gets.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float
    dimensions: int = 0
    sizes: tuple[str, ...] = ()
    network: float = 0.0
    linked: int = 0
    hosted: int = 8
    reserved: float = 0.0

    @property
    def usable(self) -> float:
        return self.memory - self.reserved


_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_3D += ("8x8x16", "8x16x16", "16x16x16")


def _gpu(
    name: str, flops: float, links: float, network: float, linked: int = 8, hosted: int = 8
) -> Chip:
    """A GPU with the memory that CUDA reports.

    Reserved are 1 GiB for CUDA's context, the code of kernels and the workspaces of cuDNN and
    cuBLAS, none of which XLA's analysis counts, and what the allocator cannot fill: 2 %.
    """
    gpu = GPUS[name]
    reserved = GIB + 0.02 * gpu.memory
    return Chip(
        gpu.memory,
        flops,
        gpu.bandwidth,
        links,
        network=network,
        linked=linked,
        hosted=hosted,
        reserved=reserved,
    )


CHIPS: dict[str, Chip] = {
    "v5e": Chip(16 * GIB, 197e12, 0.82e12, 0.2e12, 2, _2D, network=3.125e9),
    "v5p": Chip(95 * GIB, 459e12, 2.765e12, 0.6e12, 3, _3D, network=6.25e9),
    "v6e": Chip(32 * GIB, 918e12, 1.64e12, 0.448e12, 2, _2D, network=12.5e9),
    "a100": _gpu("a100", 312e12, 300e9, 25e9),
    "a100-40": _gpu("a100-40", 312e12, 300e9, 25e9),
    "h100": _gpu("h100", 989e12, 450e9, 50e9),
    "h200": _gpu("h200", 989e12, 450e9, 50e9),
    "b200": _gpu("b200", 2250e12, 900e9, 50e9),
    "gb200": _gpu("gb200", 2500e12, 900e9, 50e9, 72, 4),
    "a10g": _gpu("a10g", 70e12, 32e9, 1.56e9),
    "l4": _gpu("l4", 121e12, 32e9, 1.56e9),
    "l40s": _gpu("l40s", 362e12, 32e9, 6.25e9),
    "rtx4090": _gpu("rtx4090", 165e12, 32e9, 0.0),
}
TPUS = tuple(name for name, chip in CHIPS.items() if chip.dimensions)


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` of a shape: `v5p:4x4x2` is 32 chips; of GPUs `h100:64` are 8 nodes of 8.

    `price`: of a chip for an hour, where it is known.
    """

    name: str
    chip: Chip
    count: int
    is_tpu: bool
    slices: int = 1
    price: float | None = None

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def per_node(self) -> int:
        """Devices that fast links join; a TPU slice is one node."""
        return self.count // self.slices if self.is_tpu else min(self.count, self.chip.linked)

    @property
    def nodes(self) -> int:
        return self.count // self.per_node


def topology(text: str, slices: int = 1, price: float | None = None) -> Topology:
    """Read `GENERATION:SHAPE`, of which there are so many, or `GPU:COUNT`; raises InputError."""
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
    count = math.prod(sizes)
    if not chip.dimensions:
        _check_nodes(text, name, chip, count)
    if slices < 1 or (slices > 1 and not chip.dimensions):
        raise InputError(
            f"--slices {slices}: expected 1 or more slices of a TPU; of GPUs the number is in "
            "--topology, such as h100:64"
        )
    return Topology(text, chip, count * slices, chip.dimensions > 0, slices, price)


def _check_nodes(text: str, name: str, chip: Chip, count: int) -> None:
    """Raise InputError for GPUs that fill no whole hosts or nodes, or more than can be joined."""
    if count > chip.linked and not chip.network:
        raise InputError(
            f"--topology {text}: {name} has no network of its own; expected up to {chip.linked}, "
            "those of one machine"
        )
    for size, what in ((chip.hosted, "host"), (chip.linked, "node")):
        if count > size and count % size:
            raise InputError(
                f"--topology {text}: a {what} has {size} GPUs of kind {name}; expected up to "
                f"{size}, or a multiple, such as {name}:{size * math.ceil(count / size)}"
            )
