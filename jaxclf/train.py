"""Train, evaluate and report a classifier.

jaxclf train --config configs/quickstart.py --workdir runs/quickstart

The same command resumes a run that was stopped. Exit codes: 0 done, 2 wrong input, 3 corrupt or
mismatched artifact, 4 input or output failed, 5 training went non-finite, 75 stopped after saving.
On several hosts start it on each, with --distributed; launch/ does that.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxclf.config import loading
from jaxclf.core import command, errors
from jaxclf.core.allocator import keep_freed_memory


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
    from jaxclf.core import cache
    from jaxclf.distributed import processes

    cache.keep_programs()
    if options.distributed:
        processes.join(options.heartbeat)
    run(config, Path(options.workdir))


def run(config: ConfigDict, workdir: Path) -> None:
    """Train, evaluate and report what the config says, from the checkpoint that it names."""
    from jaxclf.distributed import processes
    from jaxclf.runs.training import train

    base = None
    if config.model.checkpoint:
        from jaxclf.convert import hf_import

        with processes.first_then_others("convert"):
            base = hf_import.resolve(config.model.checkpoint, config.model.quantize)
    if config.attens.modules:
        from jaxclf.convert import peft_import
        from jaxclf.ensemble.run import train_ensemble

        train_ensemble(config, workdir, base, peft_import.convert)
    else:
        train(config, workdir, base)


if __name__ == "__main__":
    errors.run(main)
