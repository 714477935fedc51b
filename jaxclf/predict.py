"""Label a file of texts with a trained classifier.

jaxclf predict --checkpoint runs/quickstart --input texts.jsonl --output labels.jsonl

INPUT: whatever training reads (csv, jsonl, parquet, xlsx …), or plain lines (.txt). OUTPUT: one
JSON object a record, in the input's order: id, the label of each task (null where the output was
no label), raw output, unparsed tasks. A killed command resumes where it stopped.
"""

import argparse
from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, errors, locks


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("predict", __doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="SOURCE",
        help="a run, a step of one, or a Hugging Face classifier: a directory or a hub id; several "
        "with commas between: the mean of their probabilities",
    )
    parser.add_argument("--input", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE.jsonl")
    parser.add_argument("--step", default="best", help="best (default), last or a step's number")
    parser.add_argument("--text", default="", help="the input's text column; default: found out")
    parser.add_argument("--pair", default="", help="its column of a second text, for pairs")
    parser.add_argument("--id", default="", help="its id column; default: a record's file:line")
    parser.add_argument("--encoding", default="", help="of a text file; default: found out")
    parser.add_argument("--separator", default="", help="of a csv file; default: found out")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the run's")
    parser.add_argument(
        "--on-defect", choices=("fail", "skip"), default="fail", help="what a malformed record does"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = loading.parse(parser, arguments)
    if options.batch_size < 0:
        raise errors.InputError(f"--batch-size {options.batch_size}: expected 1 or more")
    with locks.file(options.output):
        _label(options)


def _label(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.exists() and output.samefile(options.input):
        raise errors.InputError(
            f"--output {output} is the input; the texts would be lost. Name another"
        )

    # Only now what takes seconds to import.
    from jaxclf import opening
    from jaxclf.checkpoint.steps import read_step
    from jaxclf.core import compiler
    from jaxclf.data.readers import Options
    from jaxclf.data.records import Schema
    from jaxclf.runs import labelling

    records = labelling.read_texts(
        Path(options.input),
        Schema(options.text, id=options.id, pair=options.pair),
        skip=options.on_defect == "skip",
        options=Options(encoding=options.encoding, separator=options.separator),
    )
    compiler.configure()
    opened = opening.open_source(options.checkpoint, read_step(options.step), options.overrides)
    labelling.label_file(
        opened,
        records,
        output,
        batch_size=options.batch_size or opened.config.eval.batch_size,
        overwrite=options.overwrite,
    )
    labelling.say_cut(output)


if __name__ == "__main__":
    errors.run(main)
