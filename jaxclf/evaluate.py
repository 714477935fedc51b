"""Score a trained classifier again.

jaxclf evaluate --checkpoint runs/quickstart --output runs/quickstart-test
"""

from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("evaluate", __doc__)
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run directory, or a step of one"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for report and predictions"
    )
    parser.add_argument("--step", default="best", help="best (default), last or a step's number")
    parser.add_argument("--split", default="", help="train, dev or test; default: the run's")
    parser.epilog = (
        "Fields of the run's config are overridden as in training: --config.data.root=PATH, "
        "--config.eval.batch_size=64."
    )
    options = loading.parse(parser, arguments)

    # Only now what takes seconds to import.
    from jaxclf.checkpoint.steps import read_step
    from jaxclf.convert import hf_import, peft_import
    from jaxclf.core import cache
    from jaxclf.ensemble.opening import open_any
    from jaxclf.runs import evaluation

    cache.keep_programs()
    opened = open_any(
        options.checkpoint,
        read_step(options.step),
        options.overrides,
        hf_import.resolve,
        peft_import.convert,
    )
    evaluation.evaluate(opened, Path(options.output), options.split)


if __name__ == "__main__":
    errors.run(main)
