"""The short table that ends a run."""

from collections.abc import Mapping
from typing import Any

from jaxclf.report.names import COUNTS, metric_name, show


def table(report: Mapping[str, Any]) -> str:
    """The figures of every task as plain text, for a terminal or a log."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("task")
    found.add_column("metric")
    found.add_column(report.get("eval_split") or "value", justify="right")
    for task, metrics in report["eval"].items():
        rows = [name for name in metrics if name not in COUNTS or name == "support"]
        for place, name in enumerate(rows):
            found.add_row(
                Text(task if place == 0 else ""),
                metric_name(name),
                show(name, metrics[name]),
                end_section=place == len(rows) - 1,
            )
    console = Console(width=100, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(found)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
