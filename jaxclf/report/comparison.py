"""comparison.html: what of two runs differs, by task, class and text."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxclf.report.markup import document, number, table, text
from jaxclf.report.names import cost_rows, metric_name, show, show_difference

_EXAMPLES = 200  # shown of each list; comparison.json has all
_NOTE = (
    '<p class="note">B - A: of shares in percentage points, in brackets the {level:g} % interval '
    "of a paired bootstrap over the texts ({samples:,} resamples, seed {seed}). Won: texts that B "
    "alone has right, lost: that A alone has (slots: all words of a text). p: McNemar's test of "
    "won against lost, the binomial distribution below 25 such texts.</p>"
)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The whole page of what `comparison.compare` found."""
    runs, tasks = comparison["runs"], comparison["tasks"]
    header = "".join(
        f"<p>{run.upper()}: {text(facts['path'])}<br>{text(_origin(facts))}</p>"
        for run, facts in runs.items()
    )
    sections = [("Results", _results(comparison))]
    if costs := cost_rows(comparison):
        rows = [[text(name), *map(number, values)] for name, *values in costs]
        sections.append(("Costs", table(["", "A", "B", "B / A"], rows, "classes")))
    for name, facts in tasks.items():
        if "classes" in facts:
            thing = "slot" if facts["kind"] == "slots" else "class"
            sections.append((f"Task {name} by {thing}", _classes(facts["classes"])))
            for which in ("lost", "won"):
                sections.append((f"Task {name}: {which}", _examples(facts[which])))
    return document("A against B", header, sections)


def _origin(facts: Mapping[str, Any]) -> str:
    elsewhere = ("path", "provenance", "costs")
    run = {name: value for name, value in facts.items() if name not in elsewhere}
    origin = facts["provenance"].items()
    digests = {"records" if name == "data" else name: str(value)[:16] for name, value in origin}
    shown = {**run, **digests}
    return " · ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def _results(comparison: Mapping[str, Any]) -> str:
    joint = {"joint": comparison["joint"]} if comparison["joint"] else {}
    rows = []
    for name, facts in (comparison["tasks"] | joint).items():
        metric, test = facts["metric"], facts.get("mcnemar")
        shown = [_estimate(metric, facts[run], show) for run in "ab"]
        shown.append(_estimate(metric, facts["difference"], show_difference))
        counts = (
            [f"{test['won']:,}", f"{test['lost']:,}", f"{test['p']:.3g}"] if test else ["-"] * 3
        )
        cells = [f"{facts['support']:,}", *shown, *counts]
        rows.append([text(name), metric_name(metric), *map(number, cells)])
    head = ["", "metric", "texts", "A", "B", "B - A", "won", "lost", "p"]
    note = _NOTE.format(
        level=100 * comparison["level"], samples=comparison["samples"], seed=comparison["seed"]
    )
    return table(head, rows, "classes") + note


def _estimate(metric: str, found: Mapping[str, Any], written: Any) -> str:
    low, high = (written(metric, found[end]) for end in ("low", "high"))
    return f"{written(metric, found['value'])} <small>[{low}, {high}]</small>"


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            text(each["class"]),
            number(f"{each['support']:,}"),
            *(
                number(f"{100 * each[figure][part]:{sign}.1f}")
                for figure in ("f1", "recall")
                for part, sign in (("a", ""), ("b", ""), ("difference", "+"))
            ),
        ]
        for each in classes
    ]
    head = [f"{figure} % {part}" for figure in ("F1", "recall") for part in ("A", "B", "B - A")]
    return table(["", "gold", *head], rows, "classes")


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return "<p>None.</p>"
    rows = [
        [
            f"<small>{text(each['id'])}</small>",
            text(each["text"] or "", 300),
            *(text(_label(each[name]), 200) for name in ("gold", "a", "b")),
        ]
        for each in examples[:_EXAMPLES]
    ]
    notes = []
    if len(examples) > _EXAMPLES:
        notes.append(f"The first {_EXAMPLES} of {len(examples):,}; comparison.json has all.")
    if any(each["text"] is None for each in examples):
        notes.append("Texts are missing: the data that were scored are not at hand.")
    found = table(["id", "text", "gold", "A", "B"], rows, "outputs")
    return f'<p class="note">{" ".join(notes)}</p>{found}'


def _label(value: Any) -> str:
    if value is None:
        return "unparsed"
    return " ".join(value) if isinstance(value, (list, tuple)) else str(value)
