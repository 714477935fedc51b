"""The pictures of report.html: curves, calibration, the heat map of a confusion matrix."""

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclf.report.markup import text

_BLUE, _RED, _GREY, _GRID = "#2f6db5", "#cd3e28", "#b9c6d6", "#e4e8ee"
_LONGEST = 32  # characters of a label beside the heat map
# Of dev, what stands for a task.
_SHOWN = ("accuracy", "slot_f1", "exact_match", "matthews", "pearson")
_TITLES = {
    "train/loss": "Training loss (nats per label token)",
    "train/learning_rate": "Learning rate",
    "train/gradient_norm": "Gradient norm",
    "train/accuracy": "Training accuracy (single labels)",
}


def learning_curves(history: Sequence[Mapping[str, Any]]) -> str:
    """The lines of metrics.jsonl as an SVG image in a data URI; "" where there is nothing to draw.

    One panel for each train/ figure and one for the main metrics on dev.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in history for name in row))
    train = [name for name in dict.fromkeys([*_TITLES, *names]) if name.startswith("train/")]
    panels = [(_TITLES.get(name, name), [name]) for name in train if name in names]
    dev = [name for name in names if name.startswith("dev/") and name.endswith(_SHOWN)]
    if dev:
        panels.insert(1, ("Dev metrics", dev))
    if not panels:
        return ""
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(11.5, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, drawn) in zip(axes, panels, strict=False):
        axis.set_title(title, fontsize=10, loc="left", parse_math=False)
        _style(axis, "step")
        for name in drawn:
            points = [(row["step"], row[name]) for row in history if name in row]
            steps = [step for step, _ in points]
            values = [math.nan if value is None else value for _, value in points]
            _draw(axis, steps, values, name, name.removeprefix("dev/") if drawn == dev else "")
        if drawn == dev:
            axis.set_ylim(0, 1.02)
            legend = axis.legend(fontsize=8, frameon=False, loc="lower right")
            for entry in legend.get_texts():
                entry.set_parse_math(False)
    return _image(figure)


def over_k(curves: Mapping[str, Mapping[int, float | None]]) -> str:
    """A line a task over the number of modules, as an SVG image in a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axis = figure.subplots()
    _style(axis, "modules")
    for name, points in curves.items():
        ks = sorted(points)
        values = [points[k] for k in ks]
        found = [math.nan if value is None else value for value in values]
        axis.plot(ks, found, label=name, linewidth=1.6, marker="o", markersize=4)
    axis.set_xticks(sorted({k for points in curves.values() for k in points}))
    for entry in axis.legend(fontsize=8, frameon=False).get_texts():
        entry.set_parse_math(False)
    return _image(figure)


def by_group(points: Mapping[str, Sequence[float]], groups: Sequence[str]) -> str:
    """A panel a metric, a dot a value over its group, as an SVG image in a data URI.

    `groups`: of each value. A line is the group's mean.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(groups))
    figure = Figure(figsize=(11.5, 3.2), layout="constrained")
    axes = figure.subplots(1, len(points), squeeze=False)[0]
    for axis, (title, values) in zip(axes, points.items(), strict=True):
        axis.set_title(title, fontsize=10, loc="left", parse_math=False)
        _style(axis, "")
        for place, name in enumerate(names):
            own = [value for value, group in zip(values, groups, strict=True) if group == name]
            axis.plot([place] * len(own), own, "o", color=_BLUE, alpha=0.6, markersize=5)
            axis.hlines(np.mean(own), place - 0.25, place + 0.25, color=_RED, linewidth=1.6)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.6, len(names) - 0.4)
    return _image(figure)


Point = tuple[int, float, float]  # training examples, mean, deviation (nan: of one run)


def over_examples(curves: Mapping[str, Sequence[Point]]) -> bytes:
    """A line a task over the number of training examples, with a band of one deviation, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axis = figure.subplots()
    _style(axis, "training examples")
    axis.set_xscale("log")
    for name, points in curves.items():
        counts, means, deviations = map(np.array, zip(*points, strict=True))
        (line,) = axis.plot(counts, means, label=name, linewidth=1.6, marker="o", markersize=4)
        low, high = means - deviations, means + deviations
        axis.fill_between(counts, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    counts = sorted({count for points in curves.values() for count, _, _ in points})
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.set_xticks([], minor=True)
    for entry in axis.legend(fontsize=8, frameon=False).get_texts():
        entry.set_parse_math(False)
    return _svg(figure)


def calibration(figures: Mapping[str, Any]) -> str:
    """A task's part of report["calibration"] as an SVG image in a data URI.

    Accuracy by confidence, before a temperature too where there is one, and accuracy over coverage.
    """
    from matplotlib.figure import Figure

    drawn = [("Accuracy by confidence", figures)]
    if before := figures.get("before"):
        drawn = [
            ("Accuracy by confidence, before", before),
            ("The same with the temperature", figures),
        ]
    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    *diagrams, last = figure.subplots(1, len(drawn) + 1)
    for axis, (title, shown) in zip(diagrams, drawn, strict=True):
        axis.set_title(title, fontsize=10, loc="left")
        _style(axis, "confidence")
        _reliability(axis, shown["bins"])
    last.set_title("Accuracy of those answered", fontsize=10, loc="left")
    _style(last, "coverage: share of records answered, the most confident first")
    coverage, accuracy = zip(*figures["coverage"], strict=True)
    marker = "o" if len(coverage) < 10 else ""
    last.plot(coverage, accuracy, color=_BLUE, linewidth=1.6, marker=marker, markersize=3)
    last.set_xlim(0, 1.02)
    kept = figures.get("abstention") or {}
    if kept.get("threshold") is not None:
        last.axhline(kept["wanted"], color=_GREY, linewidth=1, linestyle="--")
        last.plot([kept["coverage"]], [kept["accuracy"]], color=_RED, marker="o", markersize=6)
    return _image(figure)


def _reliability(axis: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    """A bar a bin of equal width: its accuracy, and on top the number of its records."""
    width = 1 / len(bins)
    for place, each in enumerate(bins):
        if each["count"]:
            middle = (place + 0.5) * width
            axis.bar(middle, each["accuracy"], width * 0.92, color=_BLUE, alpha=0.75)
            axis.text(
                middle,
                1.02,
                f"{each['count']:,}",
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=90,
                color="#445",
            )
    axis.plot([0, 1], [0, 1], color=_RED, linewidth=1, linestyle="--")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.16)  # room for the numbers
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])


def _style(axis: Any, unit: str) -> None:
    axis.set_xlabel(unit, fontsize=8, color="#667")
    axis.tick_params(labelsize=8, colors="#445")
    axis.set_axisbelow(True)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#b8c0cc")


def _svg(figure: Any) -> bytes:
    import matplotlib as mpl

    image = io.BytesIO()
    # The salt: the same curves give the same file. A name in a script that the font lacks is drawn
    # as boxes, which is no reason for a warning in the middle of a run.
    with mpl.rc_context({"svg.hashsalt": "jaxclf"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()


def data_uri(svg: bytes) -> str:
    """What an <img> shows without loading anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _image(figure: Any) -> str:
    return data_uri(_svg(figure))


def _draw(axis: Any, steps: list[int], values: list[float], name: str, label: str) -> None:
    """A line; one of many points is drawn pale with its moving mean over it."""
    if label or len(values) < 40 or name == "train/learning_rate":
        marker = "o" if len(values) < 40 else ""
        color = None if label else _BLUE
        axis.plot(
            steps, values, label=label, color=color, linewidth=1.6, marker=marker, markersize=3
        )
        return
    axis.plot(steps, values, color=_GREY, linewidth=0.8)
    found = np.asarray(values, float)
    known = np.isfinite(found)
    around = np.ones(min(2 * (len(values) // 50) + 1, len(values)))
    # At the ends the mean is over as many neighbours as there are.
    sums = np.convolve(np.where(known, found, 0.0), around, mode="same")
    counts = np.convolve(known, around, mode="same")
    means = np.divide(sums, counts, out=np.full(len(found), np.nan), where=counts > 0)
    axis.plot(steps, means, color=_BLUE, linewidth=1.6)


def heat_map(matrix: np.ndarray, labels: Sequence[str], unseen: Sequence[str] = ()) -> str:
    """Counts [C + U, C + 1] as an SVG element: gold in rows, the U `unseen` labels last; predicted
    in columns, the last UNPARSED.

    Shades are the share of a row: blue on the diagonal, red off it, the root of the share so that
    a few errors of many records can still be seen. Drawn by hand, since a picture of 60 classes
    needs names on hovering and letters of every script, which browsers have and plots have not.
    """
    count = len(labels)
    cell = max(9, min(42, 960 // max(1, count + 1)))
    font = max(7.5, min(12, cell * 0.72))
    gold = [*labels, *unseen]
    longest = max(len(label) for label in [*gold, "UNPARSED"])
    margin = max(140, int(min(longest, _LONGEST) * font * 0.6) + 24)  # the axes' names need 140
    gap = cell // 3  # before the column UNPARSED
    width, height = margin + (count + 1) * cell + gap + 12, margin + len(gold) * cell + 8
    rows = matrix.sum(axis=1)
    parts = [
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="confusion matrix" font-size="{font:g}" class="heat">'
        f'<text x="{margin - 8}" y="{margin - 22}" text-anchor="end" class="axis">'
        "gold ↓  predicted →</text>"
        f'<rect x="{margin}" y="{margin}" width="{count * cell}" height="{len(gold) * cell}" '
        'class="ground"/>'
        f'<rect x="{margin + count * cell + gap}" y="{margin}" width="{cell}" '
        f'height="{len(gold) * cell}" class="ground"/>'
    ]
    for place, label in enumerate([*labels, "UNPARSED"]):
        middle = margin + place * cell + cell / 2 + font * 0.35
        name = f"{text(label, _LONGEST)}<title>{text(label)}</title>"
        if place < count:
            parts.append(f'<text x="{margin - 5}" y="{middle:g}" text-anchor="end">{name}</text>')
        x = middle + (gap if place == count else 0)
        parts.append(f'<text transform="translate({x:g} {margin - 5}) rotate(-90)">{name}</text>')
        if place < count:  # a hairline every five classes guides the eye
            style = "rule5" if place % 5 == 0 else "rule"
            offset = margin + place * cell
            parts.append(
                f'<path d="M{margin} {offset}h{count * cell}M{offset} {margin}v{len(gold) * cell}" '
                f'class="{style}"/>'
            )
    for place, label in enumerate(unseen, count):
        middle = margin + place * cell + cell / 2 + font * 0.35
        name = f"{text(label, _LONGEST)}<title>{text(label)} (not in training)</title>"
        parts.append(f'<text x="{margin - 5}" y="{middle:g}" text-anchor="end">{name}</text>')
    for row, column in np.argwhere(matrix):
        value, share = matrix[row, column], matrix[row, column] / rows[row]
        depth = math.sqrt(share)
        hue = "47,109,181" if row == column else "205,62,40"
        x = margin + column * cell + (gap if column == count else 0)
        y = margin + row * cell
        predicted = "UNPARSED" if column == count else labels[column]
        hint = text(f"{gold[row]} → {predicted}: {value} of {rows[row]}")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" '
            f'fill="rgba({hue},{0.12 + 0.88 * depth:.2f})"><title>{hint}</title></rect>'
        )
        size = min(11, cell * 0.62, 1.55 * cell / len(str(value)))
        if size >= 6:
            parts.append(
                f'<text x="{x + cell / 2:g}" y="{y + cell / 2 + size * 0.36:.1f}" '
                f'font-size="{size:.1f}" text-anchor="middle" pointer-events="none" '
                f'fill="{"#fff" if depth > 0.6 else "#223"}">{value}</text>'
            )
    parts.append("</svg>")
    return "".join(parts)
