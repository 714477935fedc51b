"""What the report of an attention ensemble shows beside a run's: methods, attention, number of k.

`facts` everywhere is one task's part of `report["attens"]`: `methods` (name → metrics), `modules`,
`attention` (`[A, A]`, where modules attend to modules), `by_k` (number of modules → metrics).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclf.data.tasks import Task
from jaxclf.metrics.metrics import main_metric
from jaxclf.report import plots
from jaxclf.report.markup import number, table, text
from jaxclf.report.names import COUNTS, metric_name, show

_NOTE = (
    '<p class="note">Model: a head at its random start on the frozen base. FFN: one layer trained '
    "on the frozen base. FT_LoRA: an adapter of the task's own, tuned with its head. AttEns: all "
    "modules combined by attention.</p>"
)
_ATTENTION = (
    '<p class="note">Rows: a module. Columns: how much it attends to each module, as a mean over '
    "heads and scored texts; a row sums to 1. Weight: the mean of a column.</p>"
)


def sections(report: Mapping[str, Any], tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """(title, HTML) of the sections; none where the run is no ensemble."""
    found = report.get("attens")
    if not found:
        return []
    by_name = {task.name: task for task in tasks}
    methods = "".join(
        f"<h3>{text(name)}</h3>{_methods(by_name[name], facts)}" for name, facts in found.items()
    )
    attention = "".join(
        f"<h3>{text(name)}</h3>{grid(facts['attention'], facts['modules'])}"
        for name, facts in found.items()
        if facts.get("attention")
    )
    curves = {
        f"{name}: {metric_name(main_metric(by_name[name]))}": {
            int(k): values.get(main_metric(by_name[name])) for k, values in facts["by_k"].items()
        }
        for name, facts in found.items()
        if len(facts["by_k"]) > 1
    }
    parts = [("Methods", methods + _NOTE)]
    if attention:
        parts.append(("Attention over modules", attention + _ATTENTION))
    if curves:
        image = plots.over_k(curves)
        parts.append(
            (
                "Number of modules",
                f'<img alt="metrics over k" style="max-width:640px" src="{image}">',
            )
        )
    return parts


def _methods(task: Task, facts: Mapping[str, Any]) -> str:
    """A row a method, a column a metric, the task's main one first."""
    main = main_metric(task)
    names = sorted(
        {name for values in facts["methods"].values() for name in values if name not in COUNTS},
        key=lambda name: (name != main, name),
    )
    names = [name for name in names if name != "unparsed_rate"]
    rows = [
        [text(method), *(number(show(name, values.get(name))) for name in names)]
        for method, values in facts["methods"].items()
    ]
    return table(["", *map(metric_name, names)], rows, "classes")


def grid(weights: Sequence[Sequence[float]], modules: Sequence[str]) -> str:
    """Attention `[A, A]` as a table of shaded cells, and below it each module's mean weight."""
    matrix = np.asarray(weights)
    highest = matrix.max()

    def cell(value: float) -> str:
        depth = value / highest if highest > 0 else 0.0
        ink = "#fff" if depth > 0.6 else "#223"
        return (
            f'<td class="number" style="background:rgba(47,109,181,{0.08 + 0.92 * depth:.2f});'
            f'color:{ink}">{value:.3f}</td>'
        )

    rows = [
        [f"<b>{text(name)}</b>", *map(cell, row)] for name, row in zip(modules, matrix, strict=True)
    ]
    rows.append(["<b>weight</b>", *(number(f"{value:.3f}") for value in matrix.mean(axis=0))])
    return f'<div class="wide">{table(["", *map(text, modules)], rows, "classes")}</div>'
