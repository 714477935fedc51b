"""Average the parameters of several runs of one base, as far as that helps on dev.

jaxclf soup runs/a-0 runs/a-1 runs/a-2 --output runs/a-soup

The runs are finished ones that keep whole models: other seeds or settings of one config, from one
checkpoint. The best on dev comes first; each other is added where the average with it is no worse.
OUTPUT becomes a run of its own, as large and fast as one of them, which evaluate and predict open.
Exit codes: 0 done, 2 the runs cannot be averaged, 3 one of them is damaged.
"""

from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("soup", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the new run")
    parser.epilog = (
        "Fields of the first run's config are overridden as in training: --config.data.root=PATH, "
        "--config.eval.batch_size=64."
    )
    options = loading.parse(parser, arguments)

    # Only now what takes seconds to import.
    from jaxclf.core import compiler
    from jaxclf.runs import soup

    compiler.configure()
    soup.cook(options.runs, Path(options.output), options.overrides)


if __name__ == "__main__":
    errors.run(main)
