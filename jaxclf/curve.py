"""A learning curve: the same training on few, more and all labels, with several seeds.

jaxclf curve --config configs/minilm_massive.py --workdir runs/curve --sizes 50,100,all

WORKDIR/SIZE-SEED is a run of its own. The same command goes on where it was stopped; finished runs
are read, not made again. Then curve.json, curve.csv, curve.svg and curve.html show the figures over
the number of examples. Exit codes are those of jaxclf.train.
"""

from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, errors
from jaxclf.core.allocator import keep_freed_memory


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("curve", __doc__)
    loading.add_arguments(parser)
    parser.add_argument(
        "--sizes",
        default="50,100,200,all",
        help="numbers of training examples, with commas between; all: every one (50,100,200,all)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from config.seed on (3)")
    options = loading.parse(parser, arguments)
    if options.seeds < 1:
        raise errors.InputError(f"--seeds {options.seeds}: expected 1 or more")
    config = loading.load(options.config, options.overrides)

    keep_freed_memory()
    # Only now what takes seconds to import.
    from jaxclf import report, train
    from jaxclf.core import compiler
    from jaxclf.runs import learning_curve

    sizes = learning_curve.read_sizes(options.sizes)
    compiler.configure()
    workdir = Path(options.workdir)
    found = learning_curve.learn(config, workdir, sizes, options.seeds, train.run)
    print(f"\n{report.curve_table(found)}\ncurve: {workdir / 'curve.html'}")


if __name__ == "__main__":
    errors.run(main)
