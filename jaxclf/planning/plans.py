"""The plan of a config: what fits, what it takes and how long, as a table and as JSON."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.core.errors import InputError
from jaxclf.core.files import write_json
from jaxclf.distributed import sharding
from jaxclf.models import registry
from jaxclf.planning import collectives, gpus, hardware, meshes, programs, step_time, workload
from jaxclf.planning.collectives import Crossing
from jaxclf.planning.estimate import Need, PlannedRun, Sizes
from jaxclf.planning.hardware import GIB, Topology
from jaxclf.planning.meshes import Choice
from jaxclf.planning.programs import Program
from jaxclf.planning.workload import Workload

_COMPILED = 4  # choices that a search compiles at most before it gives up
_FRACTION = 0.75  # of a GPU's memory that JAX takes unless it is told otherwise
_TITLES = {
    "train_step": "train step",
    "decoding": "decoding a batch",
    "reading": "reading a batch of prompts",
    "scoring": "scoring labels of a batch",
    "prediction": "predicting a batch",
    "features": "features of a batch",
    "combiner": "64 steps of the combiner",
}
# What is kept beside a program that is not training's, but needs no room in it.
_BESIDE = ("decoding", "reading", "scoring", "prediction")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of the table and the same as data."""

    fits: bool
    lines: tuple[str, ...]
    data: dict[str, Any]

    def table(self) -> str:
        return "\n".join(self.lines)

    def write(self, path: Path) -> None:
        write_json(path, self.data)


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


def read(config: ConfigDict, *, say: Callable[[str], None] = print) -> Workload:
    """What the config's programs read; what is not on this machine is said and stood in for."""
    found = workload.read(config, registry.find(config.model.name))
    for note in found.notes:
        say(f"an estimate: {note}")
    return found


def plan(
    config: ConfigDict,
    topology: Topology,
    sizes: Sizes | None,
    found: Workload | None,
    *,
    decoding: bool = True,
    say: Callable[[str], None] = print,
) -> Plan:
    """The plan on one slice, with this mesh or the fastest that fits.

    Where none fits, of groups of layers (`model.checkpoint_layers`) if that does.
    """
    first = _plan(config, topology, sizes, found, decoding, say)
    if first.fits:
        return first
    grouped = config.copy_and_resolve_references()
    with grouped.unlocked():
        grouped.model.checkpoint_layers = size = _group(config, topology, found)
    leanest = _leanest(PlannedRun(grouped, topology, workload=found), sizes)
    if size == config.model.checkpoint_layers or leanest > topology.chip.usable:
        return first
    say(f"no room; with groups of {size} layers (model.checkpoint_layers) there may be …")
    second = _plan(grouped, topology, sizes, found, decoding, say)
    if not second.fits:
        return first
    line = f"it needs --config.model.checkpoint_layers={size}, which computes them once more"
    return dataclasses.replace(second, lines=(*second.lines, line))


def _group(config: ConfigDict, topology: Topology, found: Workload | None) -> int:
    """Layers of a group that need least memory; what is set already, or is of no use, stays."""
    model = config.model
    if model.checkpoint_layers > 1 or not model.gradient_checkpointing or config.tune == "none":
        return model.checkpoint_layers
    depth = PlannedRun(config, topology, workload=found).depth
    divisors = [size for size in range(1, depth + 1) if depth % size == 0]
    return min(divisors, key=lambda size: depth // size + size)


def _leanest(job: PlannedRun, sizes: Sizes | None) -> int:
    """Bytes by arithmetic that a chip needs at least, on this mesh or any."""
    if sizes is not None:
        return job.need(sizes, job.config.train.gradient_accumulation_steps).total
    return min((choice.need.total for choice in meshes.choices(job)), default=2**62)


def _plan(
    config: ConfigDict,
    topology: Topology,
    sizes: Sizes | None,
    found: Workload | None,
    decoding: bool,
    say: Callable[[str], None],
) -> Plan:
    job = PlannedRun(config, topology, workload=found)
    if not job.compiles:
        say(
            f"without the compiler for GPUs bytes are an estimate, and kernels are those of a CPU: "
            f"{gpus.EXTRA} brings it"
        )
    if sizes is not None:
        accumulate = config.train.gradient_accumulation_steps
        say(f"compiling for {topology.name}, {mesh_name(sizes)} …")
        return _one(job, sizes, accumulate, decoding)
    # The arithmetic may be too high; the compiler decides.
    ranked = meshes.fitting(job) or meshes.fitting(job, 1.05)
    shown = [_choice_line(choice) for choice in ranked[:8]]
    if not ranked:
        everything = meshes.choices(job)
        least = min(everything, key=lambda choice: choice.need.total, default=None)
        return _nothing(job, least)
    say("\n".join(["meshes by estimated time of a step:", *shown]))
    best = None
    for choice in ranked[:_COMPILED]:
        say(f"compiling {mesh_name(choice.sizes)}, {choice.accumulate} micro-batch(es) …")
        try:
            best = _one(job, choice.sizes, choice.accumulate, decoding)
        except InputError as error:  # such as heads that a kernel cannot divide
            say(f"  {error}")
            continue
        if best.fits:
            break
    if best is None:
        return _nothing(job, ranked[0])
    ranking = [_choice_data(choice) for choice in ranked]
    return dataclasses.replace(best, data=best.data | {"ranking": ranking})


def smallest(
    config: ConfigDict, load: Workload | None, *, say: Callable[[str], None] = print
) -> Plan:
    """The smallest slice of each TPU generation on which the train step compiles and fits."""
    lines, data, any_fits = [], {}, False
    for name in hardware.TPUS:
        found = None
        for shape in hardware.CHIPS[name].sizes:
            topology = hardware.topology(f"{name}:{shape}")
            job = PlannedRun(config, topology, workload=load)
            # The leanest decides: by arithmetic, then by the compiler.
            choice = meshes.leanest(job)
            if choice is None or choice.need.total > topology.chip.usable:
                continue
            say(f"compiling for {topology.name}, {mesh_name(choice.sizes)} …")
            found = _one(job, choice.sizes, choice.accumulate, False)
            if found.fits:
                break
        if found is None or not found.fits:
            lines.append(f"{name}: no slice of up to {hardware.CHIPS[name].sizes[-1]} has room")
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


def _one(job: PlannedRun, sizes: Sizes, accumulate: int, decoding: bool) -> Plan:
    """All programs of a run on one mesh; raises InputError where it cannot be divided so."""
    chip, estimated, train = job.topology.chip, not job.compiles, job.config.train
    need, rows = job.need(sizes, accumulate), job.rows(accumulate)
    mean = None if job.workload is None else job.workload.mean(job.config)
    data: dict[str, Any] = {
        "topology": job.topology.name,
        "chips": job.topology.count,
        "nodes": job.topology.nodes,  # of TPUs slices
        "memory_gib": chip.memory / GIB,
        "usable_gib": chip.usable / GIB,
        "mesh": sizes,
        "mesh_name": mesh_name(sizes),
        "accumulate": accumulate,
        "model": job.config.model.name,
        "attention": job.fields.model.attention,
        "tokens_of_a_row": rows.length,
        "tokens_of_shared_prefixes": rows.prefix,
        "mean_tokens": mean,
        "rows_of_a_step": train.batch_size,
        "label_tokens": rows.labels,
        "notes": [] if job.workload is None else [*job.workload.notes],
        "estimated": estimated,
        "estimate_gib": {name: value / GIB for name, value in dataclasses.asdict(need).items()},
    }
    lines = [*_head(job, sizes, accumulate, mean), *_kept(need)]
    fits = True
    for name, compiled in programs.of(job, sizes, accumulate).items():
        if name != "train_step" and not decoding:
            continue
        try:
            program = compiled()
        except MemoryError as error:
            data[name], fits = {"error": str(error)}, False
            lines.append(f"{_TITLES[name]}: does not fit ({error})")
            continue
        numbers = _numbers(program, job, sizes, need.optimizer if name in _BESIDE else 0)
        if estimated:
            numbers["reserved_gib"] = need.total / GIB
            numbers["peak_gib"] = None
        data[name] = numbers
        # XLA:TPU lays a program out in what it reserves; XLA:GPU takes memory as it needs it.
        taken = "reserved_gib" if job.topology.is_tpu or estimated else "peak_gib"
        fits &= numbers[taken] <= chip.usable / GIB
        lines += _lines(name, numbers, job)
        if not job.topology.is_tpu and numbers[taken] > _FRACTION * chip.memory / GIB:
            lines.append(
                f"  JAX takes {_FRACTION:.0%} of a GPU's memory by itself: set "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=0.97 for the run"
            )
        if name == "train_step":
            data["predicted"] = predicted = _predicted(job, sizes, accumulate, program)
            lines += _prediction(predicted)
    data["fits"] = fits
    lines.append(
        "fits"
        if fits
        else f"does not fit into {chip.usable / GIB:.1f} GiB: take more chips, more tensor or "
        "sequence, or more micro-batches (train.gradient_accumulation_steps); or tune with fewer "
        "bytes a parameter (:lean), or fewer parameters (:lora, :qlora)"
    )
    return Plan(fits, tuple(lines), data)


def _predicted(job: PlannedRun, sizes: Sizes, accumulate: int, program: Program) -> dict[str, Any]:
    """How long a step takes, see `step_time`, and what of its matrix products is not the model's.

    `products`: shares of the program's. Attention counts there with what its mask hides.
    """
    done, topology = step_time.work(job, sizes, accumulate), job.topology
    seconds = step_time.seconds(done, topology)
    own, masked = done.model / topology.count, done.attention * (not job.model.is_encoder)
    spent = seconds * topology.count / done.tokens * 1e6
    cost = {} if topology.price is None else {"cost": spent / 3600 * topology.price}
    return cost | {
        "seconds": seconds,
        "share_of_peak": step_time.share_of_peak(done, seconds, topology),
        "tokens": done.tokens,
        "chip_seconds_per_million_tokens": spent,
        "products": {
            "model": own / program.flops,
            "computed_again": done.again / program.flops,
            "masked": masked / program.flops,
            "other": 1 - (done.products + done.attention + masked) / program.flops,
        },
    }


def _prediction(found: dict[str, Any]) -> list[str]:
    products, spent = found["products"], found["chip_seconds_per_million_tokens"]
    cost = f", {found['cost']:,.2f} USD" if "cost" in found else ""
    return [
        f"  predicted    {found['seconds']:.2f} s a step, {found['share_of_peak']:.0%} of peak; "
        f"{spent:,.0f} chip-seconds for a million tokens{cost}",
        f"  products     {products['model']:.0%} the model's own, "
        f"{products['computed_again']:.0%} computed again, {products['masked']:.0%} of scores that "
        f"are masked, {products['other']:.0%} other",
    ]


def _head(job: PlannedRun, sizes: Sizes, accumulate: int, mean: float | None) -> list[str]:
    """What is planned, and what was assumed of its data."""
    topology, chip, rows = job.topology, job.topology.chip, job.rows(accumulate)
    what = "slices" if topology.is_tpu else "nodes"
    nodes = f" in {topology.nodes:,} {what}" if topology.nodes > 1 else ""
    shared = f", after shared prefixes of {rows.prefix:,} tokens" if rows.prefix else ""
    lines = [
        f"{job.config.model.name} on {topology.name}: {topology.count:,} chips{nodes} of "
        f"{chip.memory / GIB:.0f} GiB; mesh {mesh_name(sizes)}; {job.config.train.batch_size:,} "
        f"rows of {rows.length:,} tokens a step in {accumulate} micro-batch(es){shared}; attention "
        f"by {job.fields.model.attention}",
    ]
    if mean is not None and not job.config.train.pack:
        lines.append(
            f"  rows are those of the longest texts; the mean has {mean:,.0f} tokens, so that most "
            "steps are shorter"
        )
    if job.workload is not None:
        lines += [f"  an estimate: {note}" for note in job.workload.notes]
    return lines


def _kept(need: Need) -> list[str]:
    return [
        f"  parameters   {need.parameters / GIB:8.2f} GiB a chip",
        f"  optimizer    {need.optimizer / GIB:8.2f}",
        f"  by arithmetic a step takes {need.total / GIB:.2f}",
    ]


def _numbers(program: Program, job: PlannedRun, sizes: Sizes, beside: int) -> dict[str, Any]:
    chip, found = job.topology.chip, program.traffic
    crossing: dict[str, Crossing] = {}
    for each in found.exchanges:
        axes = collectives.axes(each.groups, sizes)
        if axes:  # else a device talks to itself
            sent = collectives.crossing(each, job.topology.per_node)
            crossing[axes] = crossing.get(axes, Crossing()) + sent
    inside = sum(each.inside for each in crossing.values())
    network = sum(each.network for each in crossing.values())
    seconds = {
        "compute": program.flops / chip.flops,
        "memory": found.memory / chip.bandwidth,
        "links": inside / chip.links,
        "network": network / chip.network if network else 0.0,
    }
    links = seconds["links"] + seconds["network"]
    return {
        "peak_gib": (program.peak + beside) / GIB,
        "reserved_gib": (program.reserved + beside) / GIB,
        "activations_and_gradients_gib": (program.peak - program.arguments) / GIB,
        "tflop": program.flops / 1e12,
        "memory_traffic_gib": found.memory / GIB,
        "collectives_gib": {name: size / GIB for name, size in found.collectives.items()},
        "collectives_count": found.counts,
        "collectives_asynchronous": found.asynchronous,
        "crossing_gib": {
            axes: {"links": each.inside / GIB, "network": each.network / GIB}
            for axes, each in crossing.items()
        },
        "kernels": found.kernels,
        "seconds": seconds,
        "seconds_overlapped": max(seconds.values()),
        "seconds_in_turn": max(seconds["compute"], seconds["memory"]) + links,
        "compile_seconds": program.compile_seconds,
    }


def _lines(name: str, numbers: dict[str, Any], job: PlannedRun) -> list[str]:
    counts, beside = numbers["collectives_count"], numbers["collectives_asynchronous"]
    sent = ", ".join(
        f"{kind} {size:.1f} GiB in {counts[kind]:,.0f} ({beside[kind]:,.0f} asynchronous)"
        for kind, size in numbers["collectives_gib"].items()
    )
    memory = (
        f"peak {numbers['peak_gib']:.2f} GiB, reserved {numbers['reserved_gib']:.2f}"
        if job.compiles
        else f"{numbers['reserved_gib']:.2f} GiB (an estimate)"
    )
    seconds = numbers["seconds"]
    lines = [
        f"{_TITLES[name]} (compiled in {numbers['compile_seconds']:.0f} s)",
        f"  memory       {memory}",
        f"  compute      {numbers['tflop']:,.0f} TFLOP a chip: {seconds['compute']:.2f} s at peak",
        f"  memory moved {numbers['memory_traffic_gib']:,.0f} GiB: {seconds['memory']:.2f} s",
        f"  collectives  {sent or 'none'}",
    ]
    several, link = job.topology.nodes > 1, "links" if job.topology.is_tpu else "NVLink"
    for axes, size in numbers["crossing_gib"].items():
        network = f", {size['network']:.1f} GiB the network" if several else ""
        lines.append(f"  over {axes}: {size['links']:.1f} GiB cross {link}{network}")
    if numbers["crossing_gib"]:
        network = f", network {seconds['network']:.2f} s" if several else ""
        lines.append(f"  {link:12} {seconds['links']:.2f} s{network}")
    if numbers["kernels"] and job.compiles:
        kernels = ", ".join(f"{name} {count:,.0f}" for name, count in numbers["kernels"].items())
        lines.append(f"  kernels      {kernels}")
    lines.append(
        f"  it takes {numbers['seconds_overlapped']:.2f} s if all overlaps, "
        f"{numbers['seconds_in_turn']:.2f} s if the links wait, at the published peaks"
    )
    return lines


def _nothing(job: PlannedRun, least: Choice | None) -> Plan:
    chip = job.topology.chip
    reason = (
        f"no mesh of {job.topology.count:,} chips divides {job.config.train.batch_size:,} rows"
        if least is None
        else f"the leanest mesh, {mesh_name(least.sizes)} with {least.accumulate} micro-batch(es),"
        f" needs about {least.need.total / GIB:.1f} of {chip.usable / GIB:.0f} GiB a chip"
    )
    line = (
        f"{job.config.model.name} does not fit on {job.topology.name}: {reason}. Take more chips, "
        "or tune with fewer bytes a parameter (:lean) or fewer parameters (:lora, :qlora); "
        "--topology auto finds the smallest slice"
    )
    return Plan(False, (line,), {"topology": job.topology.name, "fits": False, "reason": reason})


def _choice_line(choice: Choice) -> str:
    return (
        f"  {mesh_name(choice.sizes):32} {choice.accumulate} micro-batch(es)  "
        f"{choice.need.total / GIB:6.1f} GiB  {choice.seconds:7.2f} s"
    )


def _choice_data(choice: Choice) -> dict[str, Any]:
    return {
        "mesh": choice.sizes,
        "accumulate": choice.accumulate,
        "estimated_gib": choice.need.total / GIB,
        "estimated_seconds": choice.seconds,
    }


def mesh_name(sizes: Sizes) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one chip"
