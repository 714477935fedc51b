"""Train, evaluate and report a classifier.

jaxclf train --config configs/quickstart.py --workdir runs/quickstart

The same command resumes a run that was stopped. Exit codes: 0 done, 2 wrong input, 3 corrupt or
mismatched artifact, 4 input or output failed, 5 training went non-finite, 75 stopped after saving.
On several hosts start it on each, with --distributed; launch/ does that. In Python the same is
jaxclf.train("configs/quickstart.py", "runs/quickstart").
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from jaxclf.config import loading
from jaxclf.config.schema import leaves
from jaxclf.core import command, errors
from jaxclf.core.allocator import keep_freed_memory
from jaxclf.core.modules import make_callable

if TYPE_CHECKING:
    from jaxclf.report.result import Report


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("train", __doc__)
    loading.add_arguments(parser)
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes of a run: on every host of a TPU pod, in every task of a "
        "JobSet or of Slurm",
    )
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=60,
        metavar="SECONDS",
        help="with --distributed: all end when one was silent for so long (60)",
    )
    options = loading.parse(parser, arguments)
    config = loading.load(options.config, options.overrides)

    keep_freed_memory()
    # Only now what takes seconds to import: a typo is told at once.
    from jaxclf.distributed import peers, processes

    processes.check_heartbeat(options.heartbeat)
    with peers.joined(options.heartbeat) if options.distributed else nullcontext():
        peers.agree("config", dict(leaves(config)))
        run(config, Path(options.workdir))


def run(
    config: ConfigDict | str | Path,
    workdir: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> "Report":
    """Train or resume a run, evaluate it and return its report; `jaxclf.train` is this function.

    config: a config, or the file of one, with its variant if it has any. workdir: the folder that
    receives all results. overrides: fields to change, as on the command line or by their names.
    Raises the errors of `jaxclf.core.errors`, whose texts are those of the command.

    >>> report = jaxclf.train("configs/quickstart.py:smoke", "runs/smoke", {"train.steps": 2})
    >>> report["eval"]["intent"]["support"]
    24
    """
    config, workdir = loading.changed(config, overrides), Path(workdir)
    from jaxclf import opening
    from jaxclf.core import compiler
    from jaxclf.distributed import processes
    from jaxclf.report.result import Report
    from jaxclf.runs.training import train

    compiler.configure()
    base = None
    if config.model.checkpoint:
        from jaxclf.convert import hf_import

        with processes.first_then_others("convert"):
            base = hf_import.resolve(config.model.checkpoint, config.model.quantize)
    if config.attens.modules:
        from jaxclf.convert import peft_import
        from jaxclf.ensemble.run import train_ensemble

        result = train_ensemble(config, workdir, base, peft_import.convert)
    else:
        result = train(config, workdir, base, opening.open_teacher)
    return Report(result, workdir)


make_callable(__name__, run)

if __name__ == "__main__":
    errors.run(main)
