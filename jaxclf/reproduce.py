"""Run the papers' tables, and one of our own, with our figures beside the published ones.

jaxclf reproduce zhao3 --workdir runs/zhao3 --rows llama3-8b --columns 20class-dual
jaxclf reproduce attens2 --workdir runs/smoke --scale smoke

Each run has a folder of its own in the workdir; the same command goes on where it was stopped. A
run that fails is noted in its cells, and the others go on. Exit codes: 0 every chosen cell has a
figure of ours, 1 some have none (the table says why), 2 wrong input, 75 stopped after saving.
"""

import contextlib
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from jaxclf.config import loading
from jaxclf.core import command, errors, locks
from jaxclf.tables import definitions

if TYPE_CHECKING:
    from jaxclf.tables.runs import TableRun

# A smoke run's time goes into compiling: quick compilation, and programs kept however small.
_SMOKE = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
_STANDIN = "The closed models' rows were answered by a stand-in on this machine, not by the models"


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("reproduce", __doc__)
    parser.add_argument("table", metavar="TABLE", help=", ".join(definitions.NAMES))
    parser.add_argument("--workdir", default="", metavar="DIR", help="folder of runs and tables")
    parser.add_argument(
        "--rows", default="", metavar="NAME,…", help="parts of names of rows; default: all"
    )
    parser.add_argument("--columns", default="", metavar="NAME,…", help="the same of columns")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="runs of each kind (1; of laptop's quick rows 3)"
    )
    parser.add_argument("--scale", choices=("full", "smoke"), default="full", help="or tiny models")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes at once")
    parser.add_argument("--list", action="store_true", help="what would run, and what it takes")
    parser.epilog = "--config.GROUP.FIELD=VALUE overrides a field of every run's config."
    options = loading.parse(parser, arguments)
    smoke = options.scale == "smoke"
    table = definitions.find(options.table, smoke).select(options.rows, options.columns)
    if (options.seeds is not None and options.seeds < 1) or options.jobs < 0:
        raise errors.InputError("--seeds and --jobs: expected 1 or more")
    if any(each.startswith("--config.seed=") for each in options.overrides):
        raise errors.InputError("--config.seed: the seeds are 0 to N - 1 of --seeds N")
    if not options.workdir and not options.list:
        raise errors.InputError("--workdir DIR: name the folder that receives runs and tables")
    if smoke:
        for name, value in _SMOKE.items():
            os.environ.setdefault(name, value)

    # Only now what takes seconds to import: a typo is told at once.
    from jaxclf.tables import costs
    from jaxclf.tables.runs import TableRun

    workdir = Path(options.workdir)
    asks = any(run.config.startswith("gpt") for run in table.runs)
    given = any(each.startswith("--config.api.base_url=") for each in options.overrides)
    stands_in = smoke and asks and not given and not options.list
    with _standin(workdir) if stands_in else contextlib.nullcontext(()) as address:
        jobs = [
            TableRun(run, seed, workdir, (*options.overrides, *address))
            for run in table.runs
            for seed in range(options.seeds or run.seeds)
        ]
        if options.list:
            print(costs.listed(costs.lines(table, jobs)))
            return
        workers = options.jobs or (min(2, os.cpu_count() or 1) if smoke else 1)
        with locks.folder(workdir):
            _run(table, jobs, workers, [_STANDIN] if stands_in else [])


def _run(
    table: definitions.Table, jobs: Sequence["TableRun"], workers: int, notes: Sequence[str]
) -> None:
    """Run what is not finished, then print and write the table, also of what SIGTERM left."""
    from jaxclf.report import tables as shown
    from jaxclf.tables import results, runs

    workdir = jobs[0].workdir
    workdir.mkdir(parents=True, exist_ok=True)
    stopped: errors.Preempted | None = None
    failed: dict[TableRun, str] = {}
    try:
        failed = runs.carry_out(jobs, execute, workers, keep=table.smoke)
    except errors.Preempted as error:
        stopped = error
    filled = results.filled(table, jobs, failed, notes)
    shown.write(workdir, filled)
    print(shown.terminal(filled))
    print(f"table: {workdir / table.name}.html, .md and .csv")
    if stopped is not None:
        raise stopped
    if any(entry.ours is None for entry in filled.entries):
        sys.exit(1)


def execute(job: "TableRun", config: ConfigDict) -> None:
    """One run, by the command that its config is for; called in a process of its own."""
    from jaxclf.core.allocator import keep_freed_memory

    keep_freed_memory()
    from jaxclf.convert import hf_import, peft_import
    from jaxclf.core import compiler
    from jaxclf.ensemble import modules
    from jaxclf.ensemble.run import train_ensemble
    from jaxclf.runs import prompting
    from jaxclf.runs.training import train
    from jaxclf.tables import costs

    compiler.configure()
    if config.model.checkpoint and not job.run.group:
        costs.check_fits(config)
    if config.tune == "none":
        opened = prompting.served if config.api.model else prompting.decoder(hf_import.resolve)
        prompting.run(config, job.folder, opened)
        return
    if job.run.group and not job.load_base().model.checkpoint:
        modules.own_base(job.load_base(), job.shared)
    base = None
    if config.model.checkpoint:
        base = hf_import.resolve(config.model.checkpoint, config.model.quantize)
    if config.attens.modules:
        train_ensemble(config, job.folder, base, peft_import.convert)
    else:
        train(config, job.folder, base)


@contextlib.contextmanager
def _standin(workdir: Path) -> Iterator[tuple[str]]:
    """Runs in the block ask a server of ours, for which this is the override."""
    from jaxclf.remote import stand_in

    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    # The same address in every call: it is in the config of runs that are to go on.
    port = 20_000 + zlib.crc32(str(workdir.resolve()).encode()) % 20_000
    with stand_in.started(port) as address:
        yield (f"--config.api.base_url={address}",)


if __name__ == "__main__":
    errors.run(main)
