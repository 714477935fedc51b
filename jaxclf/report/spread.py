"""What the report of prompted models shows beside a run's: how much the way of asking matters.

`report["variants"]` are the ways (style, draw of examples, their order), `report["spread"]` (task →
metric → mean, std, min, max, values) the figures of each way in that order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxclf.data.tasks import Task
from jaxclf.metrics.metrics import main_metric
from jaxclf.report import plots
from jaxclf.report.markup import number, table, text
from jaxclf.report.names import COUNTS, metric_name, show

_SHOWN = ("mean", "std", "min", "max")
_NOTE = (
    '<p class="note">Every way of asking was put to the same records. Results above and the '
    "sections below are of the first; std is of a sample.</p>"
)


def section(report: Mapping[str, Any], tasks: Sequence[Task]) -> str:
    """HTML of the section; "" where the run compares nothing."""
    ways = report.get("variants", ())
    if len(ways) < 2:
        return ""
    main = {task.name: main_metric(task) for task in tasks} | {"joint": "exact_match"}
    figures = [
        (task, name, values)
        for task, metrics in report["spread"].items()
        for name, values in metrics.items()
        if name not in COUNTS
    ]
    rows = [
        [text(task), text(metric_name(name)), *(number(show(name, v[key])) for key in _SHOWN)]
        for task, name, v in figures
    ]
    chosen = [(task, name, v) for task, name, v in figures if name == main.get(task)]
    titles = [f"{task}: {metric_name(name)}" for task, name, _ in chosen]
    of_ways = [
        [
            *(text(way[key]) for key in ("style", "draw", "order")),
            *(number(show(name, v["values"][place])) for _, name, v in chosen),
        ]
        for place, way in enumerate(ways)
    ]
    points = {title: v["values"] for title, (_, _, v) in zip(titles, chosen, strict=True)}
    styles = [way["style"] for way in ways]
    groups = styles if len(set(styles)) > 1 else [f"examples {way['draw']}" for way in ways]
    return (
        f'<img alt="figures by way of asking" src="{plots.by_group(points, groups)}">'
        f"{table(['task', 'metric', *_SHOWN], rows, 'classes')}"
        "<h3>Every way of asking</h3>"
        f"{table(['style', 'examples', 'order', *map(text, titles)], of_ways, 'classes')}{_NOTE}"
    )
