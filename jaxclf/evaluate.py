"""Score a trained classifier again.

jaxclf evaluate --checkpoint runs/quickstart --output runs/quickstart-test

In Python the same is jaxclf.evaluate("runs/quickstart", "runs/quickstart-test").
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclf.config import loading
from jaxclf.core import command, errors
from jaxclf.core.modules import make_callable

if TYPE_CHECKING:
    from jaxclf.checkpoint.steps import Which
    from jaxclf.report.result import Report


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("evaluate", __doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="SOURCE",
        help="a run, a step of one, or a Hugging Face classifier: a directory or a hub id; several "
        "with commas between: the mean of their probabilities",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for report and predictions"
    )
    parser.add_argument("--step", default="best", help="best (default), last or a step's number")
    parser.add_argument("--split", default="", help="train, dev or test; default: the run's")
    parser.epilog = (
        "Fields of the run's config are overridden as in training: --config.data.root=PATH, "
        "--config.eval.batch_size=64. A Hugging Face classifier has no data of its own: name them, "
        "as --config.data.name=file --config.data.test=FILE."
    )
    options = loading.parse(parser, arguments)

    # Only now what takes seconds to import.
    from jaxclf.checkpoint.steps import read_step

    step = read_step(options.step)
    run(options.checkpoint, options.output, options.split, step, options.overrides)


def run(
    checkpoint: str | Path,
    output: str | Path | None = None,
    split: str = "",
    step: "Which" = "best",
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> "Report":
    """Score a run, or a step of one, and return the report; `jaxclf.evaluate` is this function.

    A classifier in Hugging Face's format is scored on the data that `overrides` name.

    output: the folder for report and predictions; None: neither is kept. split: train, dev or test;
    "": the run's. overrides: fields of the run's config to change, such as the place of the data.
    Raises the errors of `jaxclf.core.errors`, whose texts are those of the command.

    >>> report = jaxclf.evaluate("runs/smoke", split="dev")
    >>> report["eval_split"]
    'dev'
    """
    from jaxclf import opening
    from jaxclf.core import compiler
    from jaxclf.report.result import PAGE, Report
    from jaxclf.runs import evaluation

    compiler.configure()
    lines = loading.as_lines(overrides)
    opened = opening.open_source(checkpoint, step, lines, scores=True)
    if output is not None:
        return Report(evaluation.evaluate(opened, Path(output), split), Path(output))
    with tempfile.TemporaryDirectory() as folder:
        result = evaluation.evaluate(opened, Path(folder), split, keeps=False)
        return Report(result, Path(checkpoint), (Path(folder) / PAGE).read_text("utf-8"))


make_callable(__name__, run)


if __name__ == "__main__":
    errors.run(main)
