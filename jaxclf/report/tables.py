"""A table with our figures in it, a paper's or ours: for a terminal, as CSV, Markdown and HTML."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxclf.core.files import write_text
from jaxclf.report.markup import document, text
from jaxclf.report.markup import table as html_table
from jaxclf.report.names import metric_name

SMOKE = (
    "SMOKE: tiny random models on a few records, to show that every row works. No comparison with "
    "the published figures is meant"
)


class Entry(NamedTuple):
    """A cell. Figures are shares or correlations; None where there is none.

    deviation: of several seeds. published is None where the paper's table has no figure. reason:
    why a figure of ours is missing, or not of every seed. folders: of the runs. best: not told
    apart from the best of its column.
    """

    row: str
    column: str
    metric: str
    ours: float | None
    deviation: float | None
    low: float | None
    high: float | None
    seeds: int
    published: float | None
    difference: float | None
    reason: str
    folders: tuple[str, ...]
    best: bool = False


class Filled(NamedTuple):
    """A table: rows and columns by slug with their titles, and an entry for each pair.

    notes: sentences that stand below, on what the figures are. costs: of a table of ours, further
    columns, title → row → text.
    """

    name: str
    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    entries: Sequence[Entry]
    percent: bool
    smoke: bool
    notes: Sequence[str]
    costs: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    @property
    def is_published(self) -> bool:
        """Whether it is a paper's: only a table of ours says what its rows cost."""
        return not self.costs

    def figure(self, value: float | None, signed: bool = False) -> str:
        """As the paper prints it; "-" for None."""
        if value is None:
            return "-"
        value, digits = (100 * value, 1) if self.percent else (value, 4)
        shown = f"{value:{'+' if signed else ''}.{digits}f}"
        return f"+{0:.{digits}f}" if signed and float(shown) == 0 else shown

    def at(self, row: str, column: str) -> Entry:
        return next(each for each in self.entries if (each.row, each.column) == (row, column))

    @property
    def reasons(self) -> list[str]:
        """Each reason once; a cell refers to its place, from 1."""
        return list(dict.fromkeys(each.reason for each in self.entries if each.reason))

    def mark(self, entry: Entry) -> str:
        """`[2]`, the number of the cell's reason, or nothing."""
        return f"[{self.reasons.index(entry.reason) + 1}]" if entry.reason else ""

    def ours(self, entry: Entry) -> str:
        """`91.2 ± 0.3 [2]`."""
        if entry.ours is None:
            return self.mark(entry)
        spread = "" if entry.deviation is None else f" ± {self.figure(entry.deviation)}"
        return f"{self.figure(entry.ours)}{spread} {self.mark(entry)}".strip()

    def published(self, entry: Entry) -> str:
        return "not published" if entry.published is None else self.figure(entry.published)

    def interval(self, entry: Entry) -> str:
        if entry.low is None or entry.high is None:
            return ""
        return f"{self.figure(entry.low)} to {self.figure(entry.high)}"


def write(folder: Path, table: Filled) -> None:
    """Write NAME.csv, NAME.md and NAME.html, each in one step."""
    for ending, content in (("csv", as_csv), ("md", markdown), ("html", page)):
        write_text(folder / f"{table.name}.{ending}", content(table))


def terminal(table: Filled, width: int = 0) -> str:
    """Plain text: in each cell ours, its interval, then the published figure and the difference."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, show_lines=True)
    published = "\npublished, difference" if table.is_published else ""
    found.add_column(f"ours\n95 %{published}", no_wrap=True)
    for title in (*table.columns.values(), *table.costs):
        found.add_column(Text(title), justify="right", no_wrap=True)
    for row, title in table.rows.items():
        cells = []
        for column in table.columns:
            entry = table.at(row, column)
            below = "n. p." if entry.published is None else table.figure(entry.published)
            below = below if table.is_published else ""
            if entry.difference is not None:
                below += f" {table.figure(entry.difference, signed=True)}"
            middle = table.interval(entry).replace(" to ", "-")
            ours = Text(table.ours(entry), "underline" if entry.best else "")
            cells.append(Text("\n").join([ours, *map(Text, filter(None, (middle, below)))]))
        found.add_row(Text(title), *cells, *(costs[row] for costs in table.costs.values()))
    width = width or 40 + 17 * len(table.columns) + 13 * len(table.costs)
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(found)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    head = [table.title, *([SMOKE] if table.smoke else [])]
    return "\n".join([*head, "", *lines, "", *_below(table)])


def _below(table: Filled) -> list[str]:
    reasons = [f"[{number}] {reason}" for number, reason in enumerate(table.reasons, 1)]
    unknown = table.is_published and any(each.published is None for each in table.entries)
    return [*reasons, *table.notes, *(["n. p.: not published here"] if unknown else [])]


def as_csv(table: Filled) -> str:
    """A line a cell; figures in the paper's unit, which `unit` names."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            *("table", "scale", "row", "column", "metric", "unit", "ours", "deviation", "low"),
            *("high", "seeds", "published", "difference", "runs", "note"),
        ]
    )
    factor, unit = (100, "per cent") if table.percent else (1, "share or correlation")
    for each in table.entries:
        ours, deviation, low, high, published, difference = (
            "" if value is None else f"{factor * value:.6g}"
            for value in (*each[3:7], each.published, each.difference)
        )
        writer.writerow(
            [
                *(table.name, "smoke" if table.smoke else "full", each.row, each.column),
                *(each.metric, unit, ours, deviation, low, high, each.seeds),
                *(published or "not published here", difference, " ".join(each.folders)),
                each.reason,
            ]
        )
    return file.getvalue()


def markdown(table: Filled) -> str:
    """The table with `ours (interval); published, difference` in each cell."""
    lines = [f"# {table.title}", ""]
    if table.smoke:
        lines += [f"**{SMOKE}.**", ""]
    theirs = ", then the published figure and the difference" if table.is_published else ""
    lines += [f"Each cell: ours (95 % interval){theirs}.", ""]
    titles = [*table.columns.values(), *table.costs]
    lines.append(f"| | {' | '.join(map(_plain, titles))} |")
    lines.append("|---|" + "---|" * len(titles))
    for row, title in table.rows.items():
        cells = []
        for column in table.columns:
            entry = table.at(row, column)
            ours = f"**{_plain(table.ours(entry))}**"
            ours = f"<u>{ours}</u>" if entry.best else ours
            if interval := table.interval(entry):
                ours += f" ({interval})"
            theirs = f"; {table.published(entry)}" if table.is_published else ""
            if entry.difference is not None:
                theirs += f", {table.figure(entry.difference, signed=True)}"
            cells.append(f"{ours}{theirs}")
        cells += [_plain(costs[row]) for costs in table.costs.values()]
        lines.append(f"| {_plain(title)} | {' | '.join(cells)} |")
    below = [f"- {_plain(line)}" for line in _below(table)]
    return "\n".join([*lines, "", *below]) + "\n"


def _plain(value: Any) -> str:
    """Text of which Markdown makes no markup."""
    escaped = str(value).replace("\\", "\\\\")
    for character in "|*_<`[":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def page(table: Filled) -> str:
    """One file that loads nothing and runs no script."""
    rows = [
        [
            f"<b>{text(title)}</b>",
            *(_cell(table, table.at(row, column)) for column in table.columns),
            *(f'<td class="number">{text(costs[row])}</td>' for costs in table.costs.values()),
        ]
        for row, title in table.rows.items()
    ]
    titles = [*table.columns.values(), *table.costs]
    body = html_table(["", *map(text, titles)], rows, "classes")
    published = ", the published figure and the difference" if table.is_published else ""
    done = sum(each.ours is not None for each in table.entries)
    header = (
        f"<p>{done:,} of {len(table.entries):,} cells have a figure of ours, in bold; below it its "
        f"95 % interval{published}.</p>"
    )
    if table.smoke:
        header += f"<p><mark>{text(SMOKE)}.</mark></p>"
    below = "".join(f"<p>{text(line)}</p>" for line in _below(table))
    sections = [("Figures", f'<div class="wide">{body}</div>'), ("Notes", below)]
    return document(table.title, header, sections)


def _cell(table: Filled, entry: Entry) -> str:
    ours = f"<b>{text(table.ours(entry))}</b>"
    parts = [f"<u>{ours}</u>" if entry.best else ours]
    if interval := table.interval(entry):
        parts.append(f"<small>{text(interval)}</small>")
    theirs = table.published(entry) if table.is_published else ""
    if entry.difference is not None:
        theirs += f", {table.figure(entry.difference, signed=True)}"
    parts += [text(theirs)] if theirs else []
    name = metric_name(entry.metric)
    return f'<td class="number" title="{text(name)}">{"<br>".join(parts)}</td>'
