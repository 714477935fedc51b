"""A report in Python: a dict, shown as its page in a notebook."""

import html
from pathlib import Path
from typing import Any

from jaxclf import report
from jaxclf.metrics.metrics import main_metric
from jaxclf.report.names import show

PAGE = "report.html"


class Report(dict[str, Any]):
    """What report.json holds, and in a notebook what report.html shows.

    folder: that it was written into. page: what report.html had, where the folder will not stay.
    """

    def __init__(self, fields: dict[str, Any], folder: Path, page: str = ""):
        super().__init__(fields)
        self.folder, self.page = folder, page

    def __repr__(self) -> str:
        """`<Report of runs/quickstart, test: intent accuracy 91.20 %, slots slot F1 87.40 %>`."""
        figures = ", ".join(self._figures()) or "no figures"
        return f"<Report of {self.folder}, {self['eval_split']}: {figures}>"

    def _figures(self) -> list[str]:
        """The main figure of every task."""
        figures = []
        for task in report.tasks_of(self):
            name = main_metric(task)
            value = self["eval"].get(task.name, {}).get(name)
            if value is not None:
                figures.append(f"{task.name} {report.metric_name(name)} {show(name, value)}")
        return figures

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its styles and the notebook's keep apart."""
        page = self.page or (self.folder / PAGE).read_text("utf-8")
        content = html.escape(page, quote=True)
        return (
            f'<iframe srcdoc="{content}" title="Report of {html.escape(str(self.folder))}" '
            'style="width: 100%; height: 40em; border: 1px solid #8884"></iframe>'
        )
