"""The short tables that end a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxclf.data.tasks import Task
from jaxclf.metrics.metrics import main_metric
from jaxclf.report.names import COUNTS, cost_rows, metric_name, show, show_difference, spread


def table(report: Mapping[str, Any]) -> str:
    """The figures of every task as plain text, for a terminal or a log."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("task")
    found.add_column("metric")
    found.add_column(report.get("eval_split") or "value", justify="right")
    spread, count = report.get("spread", {}), len(report.get("variants", ()))
    if count > 1:
        found.add_column(f"mean ± std of {count}", justify="right")
    for task, metrics in report["eval"].items():
        rows = [name for name in metrics if name not in COUNTS or name == "support"]
        for place, name in enumerate(rows):
            of_all = spread[task][name] if count > 1 else {}
            found.add_row(
                Text(task if place == 0 else ""),
                metric_name(name),
                show(name, metrics[name]),
                *([" ± ".join(show(name, of_all[k]) for k in ("mean", "std"))] if of_all else []),
                end_section=place == len(rows) - 1,
            )
    return _plain(found)


def methods_table(attens: Mapping[str, Any], tasks: Sequence[Task]) -> str:
    """The main metric of every task by every method, for a terminal or a log."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("task")
    found.add_column("metric")
    methods = list(dict.fromkeys(name for facts in attens.values() for name in facts["methods"]))
    for method in methods:
        found.add_column(Text(method), justify="right")
    for task in tasks:
        main, values = main_metric(task), attens[task.name]["methods"]
        shown = [show(main, values.get(method, {}).get(main)) for method in methods]
        found.add_row(Text(task.name), metric_name(main), *shown)
    return _plain(found)


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Both runs, their difference and its p by task, for a terminal or a log."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("task")
    found.add_column("metric")
    for name in ("texts", "A", "B", "B - A", f"{100 * comparison['level']:g} %", "won/lost", "p"):
        found.add_column(name, justify="right")
    joint = {"joint": comparison["joint"]} if comparison["joint"] else {}
    for name, facts in (comparison["tasks"] | joint).items():
        metric, change = facts["metric"], facts["difference"]
        row = [f"{facts['support']:,}", *(show(metric, facts[run]["value"]) for run in "ab")]
        row.append(show_difference(metric, change["value"]))
        row.append(" to ".join(show_difference(metric, change[end]) for end in ("low", "high")))
        if test := facts.get("mcnemar"):
            row += [f"{test['won']:,}/{test['lost']:,}", f"{test['p']:.3g}"]
        found.add_row(Text(name), metric_name(metric), *row)
    costs = cost_rows(comparison)
    if not costs:
        return _plain(found)
    beside = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    beside.add_column("cost")
    for name in ("A", "B", "B / A"):
        beside.add_column(name, justify="right")
    for row in costs:
        beside.add_row(*row)
    return f"{_plain(found)}\n{_plain(beside)}"


def curve_table(curve: Mapping[str, Any]) -> str:
    """The main metric of every task by size, mean and deviation, for a terminal or a log."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("examples", justify="right")
    for name, facts in curve["tasks"].items():
        title = Text(f"{name} {metric_name(facts['metric'])}")
        found.add_column(title, justify="right")
    for points in zip(*(facts["points"] for facts in curve["tasks"].values()), strict=True):
        shown = [
            spread(facts["metric"], point)
            for facts, point in zip(curve["tasks"].values(), points, strict=True)
        ]
        found.add_row(f"{points[0]['examples']:,}", *shown)
    return _plain(found)


def _plain(table: Any) -> str:
    from rich.console import Console

    console = Console(width=100, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
