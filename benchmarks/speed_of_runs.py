"""How fast finished runs label, beside how well: `python benchmarks/speed_of_runs.py RUN [RUN …]`.

Each run labels `--records` texts of its evaluation split twice, in batches of `--batch-size`; the
second time is taken, in which nothing is compiled. Printed as a Markdown table: parameters, texts a
second, and the main metrics of the run's own report. RUN,RUN is the mean of several.
"""

import argparse
import time

import jax

from jaxclf import opening, report
from jaxclf.data import datasets
from jaxclf.metrics.metrics import main_metric


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    print("| run | parameters | texts a second | figures |\n|---|---|---|---|")
    for run in options.runs:
        print(row(run, options.records, options.batch_size), flush=True)


def row(run: str, count: int, batch_size: int) -> str:
    """A run's line of the table."""
    opened = opening.open_source(run)
    dataset = datasets.load(opened.config.data, opened.config.seed)
    split = datasets.scored_split(dataset, opened.config.eval.split)
    records = datasets.spread(dataset.splits[split], count)
    classifier = opened.classifier
    members = getattr(classifier, "members", [classifier])
    size = sum(leaf.size for each in members for leaf in jax.tree.leaves(each.params))
    for _ in range(2):
        start = time.perf_counter()
        classifier.predict(records, batch_size, prompt=opened.prompt)
        seconds = time.perf_counter() - start
    figures = ""
    if opened.source.run_dir is not None:
        found = report.read(opened.source.run_dir)
        figures = ", ".join(
            f"{task.name} {100 * found['eval'][task.name][main_metric(task)]:.2f} %"
            for task in report.tasks_of(found)
        )
    return f"| {run} | {size:,} | {len(records) / seconds:,.0f} | {figures} |"


if __name__ == "__main__":
    main()
