"""curve.html: figures over the number of training examples."""

from collections.abc import Mapping
from typing import Any

from jaxclf.report import plots
from jaxclf.report.markup import document, number, table, text
from jaxclf.report.names import metric_name, show, spread


def curve_page(curve: Mapping[str, Any], picture: bytes) -> str:
    """The whole page of what `learning_curve.summary` found; `picture`: its SVG."""
    seeds = len({run["seed"] for run in curve["runs"]})
    header = f"<p>{text(curve['split'])} · seeds {seeds}</p>"
    image = f'<img alt="learning curve" style="max-width:720px" src="{plots.data_uri(picture)}">'
    note = '<p class="note">Mean over seeds; the band is one standard deviation (n - 1).</p>'
    sections = [("Learning curve", image + note)]
    for name, facts in curve["tasks"].items():
        metric = facts["metric"]
        rows = [
            [
                number(f"{point['examples']:,}"),
                number(spread(metric, point)),
                number(", ".join(show(metric, value) for value in point["values"])),
            ]
            for point in facts["points"]
        ]
        head = ["examples", metric_name(metric), "by seed"]
        sections.append((f"Task {name}", table(head, rows, "classes")))
    return document("Learning curve", header, sections)
