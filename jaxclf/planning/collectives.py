"""Collectives of a compiled program: which devices take part, and what crosses which link.

XLA writes the groups of devices that exchange in several ways; devices are numbered as in the mesh:

    replica_groups={{0,1},{2,3}}                             as they are; {}: all in one
    replica_groups=[2,4]<=[4,2]T(1,0)                        2 groups of 4: 0 … 7 as [4, 2], swapped
    replica_groups=mesh['a'=4,'b'=2] {'a'}                   those that differ in 'a' alone
    replica_groups=mesh['a'=8], device_ids=([4,2]T(1,0)) {'a':(2)4}     the last 4 of 'a' = [2, 4]
    source_target_pairs={{0,1},{1,0}}                        of a collective-permute
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Groups = tuple[tuple[int, ...], ...]

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,\s]*\},?\s*)*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}"
)
_AXIS = re.compile(r"'?([\w.\-]+)'?(?:=(\d+)|:\((\d+)\)(\d+))?")


class Collective(NamedTuple):
    """One instruction: bytes that each device gets out of it, and how often it runs.

    `groups`: devices that exchange; of a collective-permute, pairs of source and target.
    """

    kind: str
    size: float
    times: float
    is_async: bool
    groups: Groups


class Crossing(NamedTuple):
    """Bytes that one device sends over the links within a node, and over its part of the network.

    On a TPU slice all links are of one kind: a slice is one node.
    """

    inside: float = 0.0
    network: float = 0.0

    def __add__(self, other: "Crossing") -> "Crossing":  # pyright: ignore
        return Crossing(self.inside + other.inside, self.network + other.network)


def groups(text: str, count: int) -> Groups:
    """The groups that an instruction's text names, of a program for `count` devices."""
    if match := _MESH.search(text):
        return _of_mesh(*match.groups())
    if match := _IOTA.search(text):
        rows, columns, order = match.groups()
        return _tuples(_ordered(order).reshape(int(rows), int(columns)))
    if match := _LISTED.search(text):
        found = re.findall(r"\{([\d,\s]*)\}", match.group(1))
        if found:
            return tuple(tuple(int(n) for n in each.split(",") if n.strip()) for each in found)
    return (tuple(range(count)),)


def crossing(found: Collective, per_node: int) -> Crossing:
    """What a device sends in all its runs, where each node has `per_node` of the devices.

    Of an all-gather's result S a group of n devices has n-1 parts to send on, and so of a
    reduce-scatter's input; an all-reduce is both. Between m nodes, the g of the group in each share
    the work, each by its own network card: (m-1)/m of S, divided by g. An all-to-all's parts go
    straight to each device. Source: the rings of NCCL; Thakur et al. 2005, section 4.
    """
    if found.kind == "collective-permute":
        pairs = [(a // per_node, b // per_node) for a, b in found.groups if a != b]
        far = any(a != b for a, b in pairs)
        sent = found.size * found.times * bool(pairs)
        return Crossing(0.0, sent) if far else Crossing(sent, 0.0)
    size, worst = found.size * found.times, Crossing()
    for group in found.groups:
        nodes = len({device // per_node for device in group})
        own = math.ceil(len(group) / nodes)
        whole = size * len(group) if found.kind == "reduce-scatter" else size
        whole *= 2 if found.kind == "all-reduce" else 1
        if found.kind == "all-to-all":
            inside = whole * (own - 1) / len(group)
            network = whole * (len(group) - own) / len(group)
        else:
            inside = whole * (len(group) - 1) / len(group) if own > 1 else 0.0
            network = whole * (nodes - 1) / nodes / own
        worst = Crossing(max(worst.inside, inside), max(worst.network, network))
    return worst


def over(chosen: Sequence[str], sizes: Mapping[str, int]) -> Groups:
    """The groups of a mesh of these sizes whose devices differ in the chosen axes alone."""
    names = list(sizes)
    moved = [names.index(name) for name in chosen]
    kept = [axis for axis in range(len(names)) if axis not in moved]
    devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    together = math.prod(sizes[name] for name in chosen)
    return _tuples(devices.transpose([*kept, *moved]).reshape(-1, together))


def axes(found: Groups, sizes: Mapping[str, int]) -> str:
    """The mesh axes that devices of a group differ in: `fsdp`, or `fsdp+sequence`."""
    shape = tuple(sizes.values())
    varied: set[str] = set()
    for group in found:
        places = np.array(np.unravel_index(np.array(group), shape))
        several = (places != places[:, :1]).any(axis=1)
        varied |= {name for name, differs in zip(sizes, several, strict=True) if differs}
    return "+".join(name for name in sizes if name in varied)


def _of_mesh(sizes: str, order: str | None, chosen: str) -> Groups:
    """Groups of devices that differ in the chosen axes, or parts of axes, alone."""
    shape = {name: int(size) for name, size, *_ in _AXIS.findall(sizes)}
    parts: dict[str, tuple[int, int]] = {}  # axis → (parts before, size) of what is chosen
    for name, _, before, size in _AXIS.findall(chosen):
        parts[name] = (int(before), int(size)) if size else (1, shape[name])
    split, moved = [], []
    for name, size in shape.items():
        before, own = parts.get(name, (size, 1))
        if name in parts:
            moved.append(len(split) + 1)
        split += [before, own, size // before // own]
    kept = [axis for axis in range(len(split)) if axis not in moved]
    devices = _ordered(order) if order else np.arange(math.prod(shape.values()))
    devices = devices.reshape(split).transpose([*kept, *moved])
    return _tuples(devices.reshape(-1, math.prod(split[axis] for axis in moved)))


def _ordered(text: str) -> np.ndarray:
    """The devices in the order that `[4,2]T(1,0)` or `0,4,1,5` stands for, as one row."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not match:
        return np.array([int(n) for n in re.findall(r"\d+", text)])
    shape = [int(n) for n in match.group(1).split(",")]
    devices = np.arange(math.prod(shape)).reshape(shape)
    if match.group(2):
        devices = devices.transpose([int(n) for n in match.group(2).split(",")])
    return devices.reshape(-1)


def _tuples(array: np.ndarray) -> Groups:
    return tuple(map(tuple, array.tolist()))
