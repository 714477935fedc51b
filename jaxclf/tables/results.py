"""From finished runs to a filled table: ours beside the published figures, and how sure ours is.

The 95 % interval of one seed is of the test texts: Wilson's for an accuracy, Fisher's for a
correlation, a bootstrap over texts for F1 of slots. Of several seeds it is Student's, of their
mean. What has no run has a reason instead of a figure: nothing is filled in from the paper.

A table of ours also says what each row costs, and marks what is as good as the best of its column:
the paired bootstrap over the texts, of the runs with the first seed, does not tell them apart.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclf import report
from jaxclf.core import tree
from jaxclf.core.errors import ArtifactError, JaxclfError
from jaxclf.metrics import significance
from jaxclf.report.tables import Entry, Filled
from jaxclf.runs import comparison
from jaxclf.tables.definitions import Cell, Table
from jaxclf.tables.runs import TableRun, finished

INTERVALS = (
    "95 % intervals of one seed are of the scored texts (accuracy: Wilson's; correlations: "
    "Fisher's; slot F1: bootstrap), of several seeds Student's, of their mean"
)
BEST = (
    "Underlined: not told apart from the best of its column by a paired bootstrap over the texts "
    "(95 %, first seed)"
)
COSTS = (
    "Minutes: of training, all runs of a row in turn, of one seed each; texts/s: scored, the "
    "median over runs; GiB: the most that a run took at any time"
)
_LEVEL, _Z = 0.95, 1.959964
_RESAMPLES = 2_000


def filled(
    table: Table,
    jobs: Sequence[TableRun],
    failed: Mapping[TableRun, str],
    notes: Sequence[str] = (),
) -> Filled:
    """The table with an entry for every cell, from the reports of its jobs as they lie on disk.

    failed: jobs that have no figures, and why. notes: what is said below the table besides.
    """
    reports: dict[TableRun, dict[str, Any]] = {}
    reasons = dict(failed)
    for job in jobs:
        if job in reasons:
            continue
        try:
            found = finished(job)
        except JaxclfError as error:
            reasons[job] = str(error)
            continue
        if found is None:
            reasons[job] = "not finished"
        else:
            reports[job] = found
    entries = [
        _entry(cell, [job for job in jobs if job.run == cell.run], reports, reasons)
        for cell in table.cells
    ]
    costs: dict[str, dict[str, str]] = {}
    if table.own:
        entries = _marked(table, entries, jobs, reports)
        costs = _costs(table, reports)
        notes = [*notes, BEST, COSTS]
    return Filled(
        name=table.name,
        title=table.title,
        rows=table.rows,
        columns=table.columns,
        entries=entries,
        percent=table.percent,
        smoke=table.smoke,
        notes=[INTERVALS, *notes],
        costs=costs,
    )


def _marked(
    table: Table,
    entries: Sequence[Entry],
    jobs: Sequence[TableRun],
    reports: Mapping[TableRun, Mapping[str, Any]],
) -> list[Entry]:
    """The entries, with those marked that are as good as the best of their column."""
    firsts = {job.run: job for job in reversed(jobs) if job in reports}
    read = {job: comparison.read(job.folder) for job in firsts.values()}
    runs = {(cell.row, cell.column): cell for cell in table.cells}
    best: dict[str, Entry] = {}
    for each in sorted(entries, key=lambda entry: entry.ours or 0.0):
        if each.ours is not None:
            best[each.column] = each

    def as_good(entry: Entry) -> bool:
        if entry.ours is None or entry is best[entry.column]:
            return entry.ours is not None
        cells = [runs[each.row, each.column] for each in (entry, best[entry.column])]
        a, b = (read[firsts[cell.run]] for cell in cells)
        task = cells[0].path[-1]
        found = comparison.compare(a, b, task, samples=_RESAMPLES)["tasks"][task]
        return found["difference"]["low"] <= 0

    return [each._replace(best=as_good(each)) for each in entries]


def _costs(
    table: Table, reports: Mapping[TableRun, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Title → row → what it takes; "-" where no report tells."""
    shown: dict[str, dict[str, str]] = {"trained": {}, "minutes": {}, "texts/s": {}, "GiB": {}}
    for row in table.rows:
        runs = list(dict.fromkeys(cell.run for cell in table.cells if cell.row == row))
        found = {run: [each for job, each in reports.items() if job.run == run] for run in runs}
        seconds = [
            statistics.fmean(map(_training_seconds, each)) for each in found.values() if each
        ]
        shown["minutes"][row] = f"{sum(seconds) / 60:,.0f}" if len(seconds) == len(runs) else "-"
        for title, path, of_all, form in (
            ("trained", ("model", "trained_parameters"), max, "{:,.0f}"),
            ("texts/s", ("cost", "texts_per_second"), statistics.median, "{:,.1f}"),
            ("GiB", ("cost", "peak_bytes"), lambda values: max(values) / 2**30, "{:,.1f}"),
        ):
            values = [tree.at(each, *path) for of_run in found.values() for each in of_run]
            values = [value for value in values if value is not None]
            shown[title][row] = form.format(of_all(values)) if values else "-"
    return shown


def _training_seconds(found: Mapping[str, Any]) -> float:
    """Of a run that was resumed, those of its last part for all its steps."""
    train = found["train"]
    here = train.get("steps_by_this_process")
    return train["seconds"] * train["steps"] / here if here else 0.0


def _entry(
    cell: Cell,
    jobs: Sequence[TableRun],
    reports: Mapping[TableRun, Mapping[str, Any]],
    reasons: Mapping[TableRun, str],
) -> Entry:
    values, why, used = [], [], []
    low = high = None
    for job in jobs:
        if job not in reports:
            why.append(reasons[job] if len(jobs) == 1 else f"seed {job.seed}: {reasons[job]}")
            continue
        try:
            figures = _figures(reports[job], cell, job)
            low, high = interval(reports[job], figures, cell, job)
        except ArtifactError as error:
            why.append(str(error))
            continue
        values.append(float(figures[cell.metric]))
        used.append(job.folder.name)
    ours = statistics.fmean(values) if values else None
    if len(values) > 1:
        low, high = _student(values)
    return Entry(
        row=cell.row,
        column=cell.column,
        metric=cell.metric,
        ours=ours,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        low=low,
        high=high,
        seeds=len(values),
        published=cell.published,
        difference=None if ours is None or cell.published is None else ours - cell.published,
        reason="; ".join(why),
        folders=tuple(used),
    )


def _figures(found: Mapping[str, Any], cell: Cell, job: TableRun) -> Mapping[str, Any]:
    """The metrics in the report that the cell names; raises ArtifactError where they are not."""
    value = tree.at(found, *cell.path)
    if not isinstance(value, Mapping) or not isinstance(value.get(cell.metric), int | float):
        raise ArtifactError(
            f"{job.folder / report.REPORT} has no {'.'.join((*cell.path, cell.metric))}"
        )
    return value


def interval(
    found: Mapping[str, Any], figures: Mapping[str, Any], cell: Cell, job: TableRun
) -> tuple[float | None, float | None]:
    """The 95 % interval of one run's figure; (None, None) of too few texts."""
    value, count = float(figures[cell.metric]), int(figures.get("support", 0))
    if cell.metric == "accuracy":
        return wilson(value, count)
    if cell.metric != "slot_f1":
        return fisher(value, count)
    (task,) = (task for task in report.tasks_of(found) if task.name == cell.path[-1])
    predictions = report.read_predictions(job.folder / report.PREDICTIONS)
    estimate = significance.estimate(
        significance.figure(predictions, task, found["config"]["prompt"]["slots"])
    )
    return estimate.low, estimate.high


def wilson(share: float, count: int) -> tuple[float | None, float | None]:
    """Source: Wilson 1927, the score interval of a share of `count` texts."""
    if not count:
        return None, None
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    return middle - half, middle + half


def fisher(correlation: float, count: int) -> tuple[float | None, float | None]:
    """Source: Fisher 1921; Matthews' correlation is Pearson's of two indicators."""
    if count <= 3 or abs(correlation) >= 1:
        return None, None
    middle, half = math.atanh(correlation), _Z / math.sqrt(count - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def _student(values: Sequence[float]) -> tuple[float, float]:
    from scipy import stats

    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean + half
