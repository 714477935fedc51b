"""What the report shows of `report["calibration"]`: figures, diagrams and where to abstain."""

from collections.abc import Mapping
from typing import Any

from jaxclf.report import plots
from jaxclf.report.markup import number, table, text
from jaxclf.report.names import show

_FIGURES = {
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "area": "mean accuracy over all coverages",
}
_NOTE = (
    '<p class="note">Confidence: the probability of the predicted label. Bars: how many of the '
    "records with that confidence are right; on the dashed line confidence is accuracy. Above: "
    "the number of records. A confidence to answer from is read off the records scored here; one "
    "for use is better read off dev (evaluate --split dev).</p>"
)


def section(report: Mapping[str, Any]) -> str:
    """HTML with a part for each task that has figures; "" where none has."""
    tasks: Mapping[str, Mapping[str, Any]] = report.get("calibration") or {}
    split = report.get("eval_split", "test")
    parts = [
        f"<h3>{text(task)}</h3>{_figures(figures)}{_temperature(figures, split)}"
        f'<img alt="calibration of {text(task)}" src="{plots.calibration(figures)}">'
        f"{_abstention(figures, split)}"
        for task, figures in tasks.items()
    ]
    return "".join(parts) + _NOTE if parts else ""


def _figures(figures: Mapping[str, Any]) -> str:
    """A row a figure; a column before the temperature and one with it, where there is one."""
    columns = [figures]
    head = []
    if before := figures.get("before"):
        columns = [before, figures]
        head = ["", "before", f"with temperature {figures['temperature']:.3f}"]
    rows = [
        [text(title), *(number(_show(name, column[name])) for column in columns)]
        for name, title in _FIGURES.items()
    ]
    return table(head, rows, "classes" if head else "facts")


def _show(name: str, value: float) -> str:
    return f"{value:.4f}" if name in ("nll", "brier") else show(name, value)


def _temperature(figures: Mapping[str, Any], split: str) -> str:
    if figures.get("temperature") is None:
        return ""
    note = "The temperature is fitted on dev. It changes no label, only how sure the model is."
    if split == "dev":
        note += " These are the very records that it was fitted on: expect worse of others."
    return f'<p class="note">{note}</p>'


def _abstention(figures: Mapping[str, Any], split: str) -> str:
    kept = figures.get("abstention")
    if not kept:
        return ""
    wanted = show("accuracy", kept["wanted"])
    if kept["threshold"] is None:
        return f"<p>No confidence has an accuracy of {wanted} above it.</p>"
    return (
        f"<p>For an accuracy of {wanted}, answer where the confidence is at least "
        f"<b>{kept['threshold']:.4f}</b>: {show('coverage', kept['coverage'])} of the records of "
        f"{text(split)}, of which {show('accuracy', kept['accuracy'])} are right (the dot).</p>"
    )
