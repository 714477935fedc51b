"""What the runs of a table would take, by arithmetic alone: nothing is compiled, read or loaded.

Memory is the planner's estimate of a step of the longest rows on one device; hours are those of
one H100 at the speed of published steps (`planning.step_time`), as if it had that memory, with
texts of typical length.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from jaxclf.core.errors import InputError
from jaxclf.data import datasets, published
from jaxclf.distributed import sharding
from jaxclf.models.encoder import EncoderConfig
from jaxclf.planning import estimate as planning
from jaxclf.planning import hardware, step_time
from jaxclf.planning.hardware import GIB, Topology
from jaxclf.tables.definitions import Table
from jaxclf.tables.runs import TableRun

_H100 = hardware.topology("h100:1")
_ALONE: planning.Sizes = dict.fromkeys(sharding.AXES, 1)
_EFFICIENCY = step_time.shares(_H100.kind).products  # of the peak
# Tokens of the mean prompt: of what all have in common, by shots, of the text and of the answer.
# Counted with Llama 3's tokenizer over 300 training records at even distances.
_PROMPTS = {"20ng": ({0: 247, 5: 2651}, 531, 18), "massive": ({0: 654, 5: 937}, 21, 35)}
_ENCODED = {"20ng": 334, "massive": 12}  # tokens of the mean text for an encoder; of GLUE's:
_PAIR = 45


@dataclasses.dataclass(frozen=True)
class Line:
    """What rows need from one config file, all its tasks and seeds together.

    memory: bytes; hours; each None where it cannot be told, for the reason in `note`.
    """

    rows: tuple[str, ...]
    config: str
    memory: float | None = None
    hours: float | None = None
    note: str = ""


def lines(table: Table, jobs: Sequence[TableRun]) -> list[Line]:
    """A line for each config file of each row; rows that the same runs fill stand together."""
    titles: dict[object, list[str]] = {}
    for cell in table.cells:
        titles.setdefault(cell.run, []).append(table.rows[cell.row])
    groups: dict[tuple, list[TableRun]] = {}
    for job in jobs:
        file, _, words = job.run.config.partition(":")
        kept = tuple(word for word in words.split(",") if not word.startswith("task="))
        rows = tuple(dict.fromkeys(titles[job.run]))
        groups.setdefault((rows, file, kept), []).append(job)
    return [_line(rows, file, kept, found) for (rows, file, kept), found in groups.items()]


def _line(
    rows: tuple[str, ...], file: str, words: tuple[str, ...], jobs: Sequence[TableRun]
) -> Line:
    tasks = dict.fromkeys(job.run.config.partition("task=")[2].partition(",")[0] for job in jobs)
    name = f"configs/{file}:{','.join((*words, 'task=' + '|'.join(tasks)))}"
    try:
        configs = [job.load_base() for job in jobs]
        if configs[0].api.model:
            note = "asked of a server; jaxclf.prompt --dry-run estimates the cost"
            return Line(rows, name, 0, None, note)
        # Shapes and steps are those of the first for all: tasks differ in their heads alone.
        estimate = RunCost(configs[0], _H100)
        seconds = sum(map(estimate.seconds, configs))
        if jobs[0].run.group:  # the adapters are trained once for all targets
            seconds += len({job.shared for job in jobs}) * estimate.adapters()
    except InputError as error:
        return Line(rows, name, note=f"cannot run: {error}")
    return Line(rows, name, estimate.need(_ALONE).total, seconds / 3600)


def check_fits(config: ConfigDict) -> None:
    """Raise InputError where what a run keeps has no room on the devices of this machine.

    Activations are not counted, so that nothing is refused that might fit.
    """
    count, memory = jax.device_count(), _device_memory()
    need = RunCost(config, _H100).need(sharding.complete(config.mesh, count))
    kept = need.parameters + need.optimizer + need.gradients
    if kept > memory:
        raise InputError(
            f"does not fit: {config.model.name} needs about {kept / GIB:,.1f} GiB a device without "
            f"activations (an estimate); here are {count:,} with {memory / GIB:,.1f} GiB each"
        )


def _device_memory() -> float:
    """Bytes that a device has here; of CPUs, the machine's memory, divided among them."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.device_count()


class RunCost:
    """What the planner's formulas say of a config on one chip of `topology`."""

    def __init__(self, config: ConfigDict, topology: Topology):
        self.config, self.chip = config, topology.chip
        shaped = config.copy_and_resolve_references()
        if config.tune == "none":
            with shaped.unlocked():
                shaped.tune = "full"  # the same parameters, and the planner wants to train some
        self.job = planning.PlannedRun(shaped, topology)
        self.longest = self.job.length

    def need(self, sizes: dict[str, int]) -> planning.Need:
        """Bytes of one chip of a mesh; of a prompted model parameters, keys and values alone."""
        self.job.length = self.longest
        need = self.job.need(sizes, self.config.train.gradient_accumulation_steps)
        if self.config.tune != "none":
            return need
        cached = self._cached_bytes() // math.prod(sizes.values())
        return planning.Need(need.parameters, 0, 0, cached)

    def _cached_bytes(self) -> int:
        """Of keys and values of a batch of mean prompts."""
        dims, (prefix, text, answer) = self.job.model.config, self._lengths(self.config)
        tokens = (prefix + text + answer) * self.config.eval.batch_size
        heads = getattr(dims, "num_kv_heads", dims.num_heads)
        size = getattr(dims, "head_dim", dims.hidden_size // dims.num_heads)
        return 2 * tokens * self.job.depth * heads * size * self.job.width

    def _lengths(self, config: ConfigDict) -> tuple[int, int, int]:
        """Tokens of what prompts share, of a text and of an answer; an encoder reads a text."""
        name = config.data.name
        if isinstance(self.job.model.config, EncoderConfig):
            return 0, min(config.train.max_length, _ENCODED.get(name, _PAIR)), 0
        prefixes, text, answer = _PROMPTS[name]
        return prefixes[config.prompt.shots], text, answer

    def seconds(self, config: ConfigDict) -> float:
        """Of training and scoring; of an ensemble, of all modules' pass over the texts.

        `config`: the same as of the estimate but for its data and prompt.
        """
        prefix, text, answer = self._lengths(config)
        train, scored = _counts(config.data.name, config.data.limit)
        if config.attens.modules:
            return (1 + len(config.attens.modules)) * (train + scored) * self._forward(text)
        seconds = scored * self._forward(text + answer)
        # Every token of an answer reads all parameters, once for a batch.
        reading = self.need(_ALONE).parameters / self.chip.bandwidth
        seconds += scored / config.eval.batch_size * answer * reading
        if config.tune == "none":
            return seconds
        own = prefix / config.train.batch_size if config.train.share_prefix else prefix
        return seconds + config.train.steps * self._step(math.ceil(own) + text + answer)

    def adapters(self) -> float:
        """Seconds of training the adapters of all modules of an ensemble."""
        train, limit = self.config.train, self.config.data.limit
        modules = self.config.attens.modules
        steps = train.steps * len(modules)
        if train.epochs:
            steps = train.epochs * sum(_counts(name, limit)[0] for name in modules)
            steps /= train.batch_size
        return steps * self._step(_PAIR)

    def _step(self, length: int) -> float:
        self.job.length = length
        return step_time.step_seconds(
            self.job, _ALONE, self.config.train.gradient_accumulation_steps
        )

    def _forward(self, tokens: int) -> float:
        """Of one text among many."""
        return 2 * tokens * self.job.computed / self.chip.flops / _EFFICIENCY


def _counts(name: str, limit: int) -> tuple[int, int]:
    """Published sizes of the training split and of the one that is scored."""
    found = datasets.COUNTS.get(name) or published.DATASETS[name].counts
    scored = found["dev" if name.startswith("glue/") else "test"]
    train = found["train"]
    return (min(train, limit), min(scored, limit)) if limit else (train, scored)


def listed(found: Sequence[Line]) -> str:
    """The lines as a table for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE, show_edge=False, pad_edge=False)
    shown.add_column("row")
    shown.add_column("config")
    shown.add_column("GiB", justify="right")
    shown.add_column("H100 hours", justify="right")
    for line in found:
        memory = "-" if line.memory is None else f"{line.memory / GIB:,.1f}"
        hours = "-" if line.hours is None else f"{line.hours:,.2f}"
        config = f"{line.config}\n{line.note}" if line.note else line.config
        shown.add_row(Text("\n".join(line.rows)), Text(config), memory, hours)
    console = Console(width=150, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    lines_ = [line.rstrip() for line in capture.get().splitlines()]
    note = (
        "Estimates by the planner's formulas: memory of one device for a step of the longest rows; "
        "hours of one H100 at the speed of published steps, had it that memory, for texts of "
        "typical length."
    )
    return "\n".join([*lines_, "", note])
