"""The methods of several runs of an ensemble beside each other: mean and spread over seeds.

    for seed in 0 1 2; do python -m jaxclf.train --config configs/attens_minilm.py:k=sweep \\
        --workdir runs/attens_$seed --config.seed=$seed \\
        --config.attens.targets="('glue/rte','glue/mrpc','glue/cola','glue/sst2','glue/wnli',
        'glue/stsb')"; done
    python benchmarks/attens_table.py runs/attens_0 runs/attens_1 runs/attens_2 --plot k.svg

Prints a row a task as markdown: the task's main metric, times 100, as mean ± standard deviation (of
the runs, n - 1). `--plot`: the metric over the number of modules, a band of one deviation.
"""

import argparse
from pathlib import Path

import numpy as np

from jaxclf import report

MAIN = {"cola": "matthews", "stsb": "pearson"}  # else accuracy
METHODS = ("Model", "FFN", "FT_LoRA", "AttEns")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG of the metric over the number of modules")
    parser.add_argument("--tasks", default="", help="of the plot, with commas between; all")
    options = parser.parse_args()
    reports = [report.read(run)["attens"] for run in options.runs]
    print(f"| task | {' | '.join(METHODS)} |")
    print("|---|" + "---|" * len(METHODS))
    for task in reports[0]:
        main_metric = MAIN.get(task, "accuracy")
        cells = [
            summary([report[task]["methods"][method][main_metric] for report in reports])
            for method in METHODS
        ]
        print(f"| {task} ({main_metric}) | {' | '.join(cells)} |")
    if options.plot:
        plot(reports, options.tasks.split(",") if options.tasks else list(reports[0]), options.plot)


def summary(values: list[float]) -> str:
    found = 100 * np.array(values)
    return f"{found.mean():.1f} ± {found.std(ddof=1):.1f}" if len(found) > 1 else f"{found[0]:.1f}"


def plot(reports: list[dict], tasks: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for task in tasks:
        ks = sorted(map(int, reports[0][task]["by_k"]))
        name = MAIN.get(task, "accuracy")
        values = np.array([[report[task]["by_k"][str(k)][name] for k in ks] for report in reports])
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(reports) - 1))
        (line,) = axis.plot(ks, mean, marker="o", label=f"{task}: {name}")
        axis.fill_between(ks, mean - spread, mean + spread, alpha=0.15, color=line.get_color())
        axis.set_xticks(ks)
    axis.set_xlabel("modules")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
