"""The plan of a config: what fits, what it takes and how long, as a table and as JSON."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf import chips, planning, sharding
from jaxclf.chips import GIB, Topology
from jaxclf.errors import InputError
from jaxclf.planning import Choice, Job, Program, Sizes

_COMPILED = 4  # choices that a search compiles at most before it gives up


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of the table and the same as data."""

    fits: bool
    lines: tuple[str, ...]
    data: dict[str, Any]

    def table(self) -> str:
        return "\n".join(self.lines)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.data, indent=1) + "\n")


def read_mesh(text: str, topology: Topology) -> Sizes:
    """`fsdp=8,tensor=4` with 1 for other axes; one may be -1. Raises InputError."""
    sizes: Sizes = dict.fromkeys(sharding.AXES, 1)
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise InputError(
                f"--mesh {text}: expected AXIS=SIZE with commas between; axes are "
                f"{', '.join(sharding.AXES)}"
            )
        sizes[axis] = int(size)
    return sharding.complete(sizes, topology.count)


def plan(
    config: ConfigDict,
    topology: Topology,
    sizes: Sizes | None,
    label_tokens: int,
    *,
    decoding: bool = True,
    say: Callable[[str], None] = print,
) -> Plan:
    """The plan on one slice, with this mesh or the fastest that fits."""
    job = Job(config, topology, label_tokens)
    if sizes is not None:
        accumulate = config.train.accumulate
        say(f"compiling for {topology.name}, {_mesh_name(sizes)} …")
        return _one(job, sizes, accumulate, decoding)
    ranked = planning.fitting(job)
    shown = [_choice_line(choice) for choice in ranked[:8]]
    if not ranked:
        everything = planning.choices(job)
        least = min(everything, key=lambda choice: choice.need.total, default=None)
        return _nothing(job, least)
    say("\n".join(["meshes by estimated time of a step:", *shown]))
    found = None
    for choice in ranked[:_COMPILED]:
        say(f"compiling {_mesh_name(choice.sizes)}, {choice.accumulate} micro-batch(es) …")
        found = _one(job, choice.sizes, choice.accumulate, decoding)
        if found.fits:
            break
    assert found is not None
    ranking = [_choice_data(choice) for choice in ranked]
    return dataclasses.replace(found, data=found.data | {"ranking": ranking})


def smallest(config: ConfigDict, label_tokens: int, *, say: Callable[[str], None] = print) -> Plan:
    """The smallest slice of each TPU generation on which the train step compiles and fits."""
    lines, data, any_fits = [], {}, False
    for name in chips.TPUS:
        found = None
        for shape in chips.CHIPS[name].sizes:
            topology = chips.topology(f"{name}:{shape}")
            job = Job(config, topology, label_tokens)
            # The leanest decides: by arithmetic, then by the compiler.
            choice = planning.leanest(job)
            if choice is None or choice.need.total > topology.chip.memory:
                continue
            say(f"compiling for {topology.name}, {_mesh_name(choice.sizes)} …")
            found = _one(job, choice.sizes, choice.accumulate, False)
            if found.fits:
                break
        if found is None or not found.fits:
            lines.append(f"{name}: no slice of up to {chips.CHIPS[name].sizes[-1]} has room")
            data[name] = None
            continue
        any_fits = True
        entry = found.data
        lines.append(
            f"{name}: {entry['topology']} ({entry['chips']} chips), mesh {entry['mesh_name']}, "
            f"{entry['accumulate']} micro-batch(es), reserved "
            f"{entry['train_step']['reserved_gib']:.1f} of {entry['memory_gib']:.0f} GiB a chip"
        )
        data[name] = entry
    return Plan(any_fits, tuple(lines), {"smallest": data})


def _one(job: Job, sizes: Sizes, accumulate: int, decoding: bool) -> Plan:
    chip, estimated = job.topology.chip, not job.topology.is_tpu
    need = job.need(sizes, accumulate)
    data: dict[str, Any] = {
        "topology": job.topology.name,
        "chips": job.topology.count,
        "memory_gib": chip.memory / GIB,
        "mesh": sizes,
        "mesh_name": _mesh_name(sizes),
        "accumulate": accumulate,
        "model": job.config.model.name,
        "tokens_of_a_row": job.length,
        "rows_of_a_step": job.config.train.batch_size,
        "label_tokens": job.label_tokens,
        "estimate_gib": {name: value / GIB for name, value in dataclasses.asdict(need).items()},
    }
    lines = [
        f"{job.config.model.name} on {job.topology.name}: {job.topology.count:,} chips of "
        f"{chip.memory / GIB:.0f} GiB; mesh {_mesh_name(sizes)}; {job.config.train.batch_size:,} "
        f"rows of {job.length:,} tokens a step in {accumulate} micro-batch(es)",
        f"  parameters   {need.parameters / GIB:8.2f} GiB a chip",
        f"  optimizer    {need.optimizer / GIB:8.2f}",
    ]
    fits = True
    programs: dict[str, Callable[[], Program | None]] = {
        "train_step": lambda: job.train_step(sizes, accumulate)
    }
    if decoding:
        programs["decoding"] = lambda: job.decoding(sizes)
    for name, compiled in programs.items():
        try:
            program = compiled()
        except MemoryError as error:
            data[name], fits = {"error": str(error)}, False
            lines.append(f"  {name}: does not fit ({error})")
            continue
        if program is None:
            continue
        beside = need.optimizer if name == "decoding" else 0
        numbers = _numbers(program, chip, beside)
        if estimated:
            numbers["reserved_gib"] = need.total / GIB
            numbers["peak_gib"] = None
        data[name] = numbers
        fits &= numbers["reserved_gib"] <= chip.memory / GIB
        lines += _lines(name, numbers, estimated)
    data["fits"] = fits
    lines.append(
        "fits"
        if fits
        else "does not fit: take more chips, more tensor or sequence, or more "
        "micro-batches (train.accumulate); or tune fewer parameters (:lora, :qlora)"
    )
    return Plan(fits, tuple(lines), data)


def _numbers(program: Program, chip: chips.Chip, beside: int) -> dict[str, Any]:
    collectives = program.traffic.collectives
    seconds = {
        "compute": program.flops / chip.flops,
        "memory": program.traffic.memory / chip.bandwidth,
        "links": sum(collectives.values()) / chip.links,
    }
    return {
        "peak_gib": (program.peak + beside) / GIB,
        "reserved_gib": (program.reserved + beside) / GIB,
        "activations_and_gradients_gib": (program.peak - program.arguments) / GIB,
        "tflop": program.flops / 1e12,
        "memory_traffic_gib": program.traffic.memory / GIB,
        "collectives_gib": {name: size / GIB for name, size in collectives.items()},
        "collectives_count": program.traffic.counts,
        "seconds": seconds,
        "seconds_overlapped": max(seconds.values()),
        "seconds_in_turn": max(seconds["compute"], seconds["memory"]) + seconds["links"],
        "compile_seconds": program.compile_seconds,
    }


def _lines(name: str, numbers: dict[str, Any], estimated: bool) -> list[str]:
    sent = ", ".join(f"{kind} {size:.1f}" for kind, size in numbers["collectives_gib"].items())
    title = "train step" if name == "train_step" else "decoding a batch"
    memory = (
        f"{numbers['reserved_gib']:.2f} GiB (an estimate)"
        if estimated
        else f"peak {numbers['peak_gib']:.2f} GiB, reserved {numbers['reserved_gib']:.2f}"
    )
    seconds = numbers["seconds"]
    return [
        f"{title} (compiled in {numbers['compile_seconds']:.0f} s)",
        f"  memory       {memory}",
        f"  compute      {numbers['tflop']:,.0f} TFLOP a chip: {seconds['compute']:.2f} s at peak",
        f"  memory moved {numbers['memory_traffic_gib']:,.0f} GiB: {seconds['memory']:.2f} s",
        f"  links        {sent or 'nothing'} GiB: {seconds['links']:.2f} s",
        f"  a step takes {numbers['seconds_overlapped']:.2f} s if all overlaps, "
        f"{numbers['seconds_in_turn']:.2f} s if the links wait, at the published peaks",
    ]


def _nothing(job: Job, least: Choice | None) -> Plan:
    chip = job.topology.chip
    reason = (
        f"no mesh of {job.topology.count:,} chips divides {job.config.train.batch_size:,} rows"
        if least is None
        else f"the leanest mesh, {_mesh_name(least.sizes)} with {least.accumulate} micro-batch(es),"
        f" needs about {least.need.total / GIB:.1f} of {chip.memory / GIB:.0f} GiB a chip"
    )
    line = (
        f"{job.config.model.name} does not fit on {job.topology.name}: {reason}. Take more chips, "
        "or tune fewer parameters (:lora, :qlora); --topology auto finds the smallest slice"
    )
    return Plan(False, (line,), {"topology": job.topology.name, "fits": False, "reason": reason})


def _choice_line(choice: Choice) -> str:
    return (
        f"  {_mesh_name(choice.sizes):32} {choice.accumulate} micro-batch(es)  "
        f"{choice.need.total / GIB:6.1f} GiB  {choice.seconds:7.2f} s"
    )


def _choice_data(choice: Choice) -> dict[str, Any]:
    return {
        "mesh": choice.sizes,
        "accumulate": choice.accumulate,
        "estimated_gib": choice.need.total / GIB,
        "estimated_seconds": choice.seconds,
    }


def _mesh_name(sizes: Sizes) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one chip"
