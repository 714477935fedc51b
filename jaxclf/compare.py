"""Compare two runs on the texts that both scored.

jaxclf compare runs/a runs/b --output runs/a-b

RUN_A and RUN_B are folders of `train`, `evaluate` or whatever else leaves report.json and
predictions.jsonl. For each task: both figures and their difference with confidence intervals
(paired bootstrap), McNemar's test, the classes that gain and lose, and the texts won and lost.
OUTPUT receives comparison.json and comparison.html. Exit codes: 0 done, 2 not the same texts or
gold labels, 3 a result is missing or was altered since it was written.
"""

from pathlib import Path

from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("compare", __doc__)
    parser.add_argument("a", metavar="RUN_A")
    parser.add_argument("b", metavar="RUN_B")
    parser.add_argument("--task", default="", help="one task; default: all that both answer")
    parser.add_argument("--output", metavar="DIR", help="folder that receives the comparison")
    parser.add_argument("--samples", type=int, default=10_000, help="resamples (10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (0)")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        raise errors.InputError(f"--samples {options.samples}: expected 1 or more")
    if options.seed < 0:
        raise errors.InputError(f"--seed {options.seed}: expected 0 or more")

    # Only now what takes seconds to import.
    from jaxclf import report
    from jaxclf.runs import comparison

    a, b = comparison.read(options.a), comparison.read(options.b)
    found = comparison.compare(a, b, options.task, options.samples, options.seed)
    print(f"A: {options.a}\nB: {options.b}\n\n{report.comparison_table(found)}")
    if options.output:
        comparison.write(Path(options.output), found)
        print(f"comparison: {Path(options.output) / 'comparison.html'}")


if __name__ == "__main__":
    errors.run(main)
