"""report.html: one file with everything about a run, which loads nothing and runs no script.

Whatever a user or a model wrote (labels, texts, outputs, settings) goes through `markup.text`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclf.core import tree
from jaxclf.data.datasets import NO_SPLIT
from jaxclf.data.predictions import UNPARSED, Prediction
from jaxclf.data.tasks import Task, unseen_labels, words
from jaxclf.metrics import metrics
from jaxclf.report import calibration, ensemble, plots, spread
from jaxclf.report.markup import document, number, table, text
from jaxclf.report.names import COUNTS, metric_name, show

_PAIRS, _TEXTS, _UNPARSED, _CELLS = 15, 3, 30, 200  # how many of each are shown


def page(
    report: Mapping[str, Any],
    predictions: Sequence[Prediction],
    tasks: Sequence[Task],
    history: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page. `predictions` are of the split that `report["eval"]` was computed on."""
    slot_format = tree.at(report, "config", "prompt", "slots") or "names"
    split = report.get("eval_split", "test")
    sections = [
        ("Results", _results(report["eval"], tasks)),
        *ensemble.sections(report, tasks),
        ("Ways of asking", spread.section(report, tasks)),
        ("Learning curves", _curves(history)),
        *((f"Task {task.name}", _task(predictions, task, slot_format)) for task in tasks),
        ("Calibration", calibration.section(report)),
        ("Unparsed outputs", _unparsed(predictions, tasks)),
        ("Data", _data(report["data"])),
        ("Settings", _settings(report)),
        ("Provenance", _facts(report.get("provenance", {}), leave_out=("seal",))),
        ("Versions", _facts(report["versions"])),
    ]
    names = [
        tree.at(report, part, "name") or tree.at(report, "config", part, "name")
        for part in ("data", "model")
    ]
    title = " · ".join(str(name) for name in names if name) or "Report"
    header = (
        f"<p>{_summary(report, len(predictions), split)}<br>{_main_settings(report['config'])}</p>"
        f"{_headline(report['eval'], tasks)}"
    )
    return document(title, header, sections)


# Sections


def _summary(report: Mapping[str, Any], count: int, split: str) -> str:
    """One line on what was trained and scored."""
    facts = ["no split was scored" if split == NO_SPLIT else f"{count:,} records of {split}"]
    if parameters := tree.at(report, "model", "parameters"):
        trained = tree.at(report, "model", "trained_parameters") or parameters
        share = "" if trained == parameters else f", {trained:,} of them trained"
        facts.append(f"{parameters:,} parameters{share}")
    if steps := tree.at(report, "train", "steps"):
        facts.append(f"{steps:,} steps")
    if seconds := tree.at(report, "train", "seconds"):
        facts.append(f"{seconds / 60:,.1f} minutes of training")
    if texts := tree.at(report, "cost", "texts_per_second"):
        facts.append(f"{texts:,.0f} texts a second scored")
    if peak := tree.at(report, "cost", "peak_bytes"):
        facts.append(f"{peak / 2**30:,.1f} GiB at most")
    if device := tree.at(report, "train", "device"):
        facts.append(str(device))
    return text(" · ".join(facts))


def _main_settings(config: Mapping[str, Any]) -> str:
    """One line of the settings that one would ask for first."""
    names = {
        "task": ("data", "task"),
        "shots": ("prompt", "shots"),
        "tune": ("tune",),
        "trained": ("train", "trained"),
        "learning rate": ("train", "learning_rate"),
        "batch": ("train", "batch_size"),
        "tokens": ("train", "max_length"),
        "seed": ("seed",),
    }
    found = {name: tree.at(config, *path) for name, path in names.items()}
    facts = [f"{name} {_fact(value)}" for name, value in found.items() if value is not None]
    return text(" · ".join(facts))


def _headline(values: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> str:
    """The one figure of each task, large."""
    shown = [(task.name, metrics.main_metric(task)) for task in tasks]
    if len(tasks) > 1:
        shown.append(("joint", "exact_match"))
    cards = [
        f'<div class="card"><b>{show(name, values[task].get(name))}</b>'
        f"<span>{text(task)} {metric_name(name)}</span></div>"
        for task, name in shown
        if task in values
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _results(values: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> str:
    main = {task.name: metrics.main_metric(task) for task in tasks}
    tables = []
    for task, figures in values.items():
        ordered = sorted(figures, key=lambda name: (name != main.get(task), name in COUNTS))
        rows = [[text(metric_name(name)), number(show(name, figures[name]))] for name in ordered]
        tables.append(f"<div><h3>{text(task)}</h3>{table([], rows)}</div>")
    note = "An output outside the label set counts as wrong, unless eval.fallback replaces it."
    return f'<div class="grid">{"".join(tables)}</div><p class="note">{note}</p>'


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    image = plots.learning_curves(history)
    return f'<img alt="learning curves" src="{image}">' if image else ""


def _task(predictions: Sequence[Prediction], task: Task, slot_format: Any) -> str:
    per_class = metrics.per_class_report(predictions, task, slot_format)
    if not per_class:
        return ""
    parts = []
    if task.kind == "class":
        parts.append("<h3>Confusion matrix</h3>")
        if len(task.labels) <= _CELLS:
            matrix = metrics.confusion(predictions, task)
            unseen = unseen_labels((each.gold.get(task.name) for each in predictions), task)
            parts.append(
                f'<div class="wide">{plots.heat_map(matrix, task.labels, [*unseen])}</div>'
            )
            parts.append(
                '<p class="note">Blue: right. Red: wrong. The shade is the share of the gold '
                "class, by its square root. Point at a cell for its numbers.</p>"
            )
        else:
            parts.append(f"<p>Not drawn: {len(task.labels)} classes, more than {_CELLS}.</p>")
    confusions = (
        find_confusions(predictions, task, slot_format) if task.kind != "multilabel" else []
    )
    if confusions:
        unit = "records" if task.kind == "class" else "words"
        rows = [
            [text(each.gold), text(each.predicted), number(f"{each.count:,}"), each.texts]
            for each in confusions[:_PAIRS]
        ]
        parts.append("<h3>Worst confusions</h3>")
        parts.append(table(["gold", "predicted", unit, "texts"], rows, "texts"))
        if len(confusions) > _PAIRS:
            parts.append(f'<p class="note">The first {_PAIRS} of {len(confusions):,} pairs.</p>')
    thing = "Slots" if task.kind == "slots" else "Classes"
    parts.append(f"<h3>{thing}, weakest first</h3>{_per_class(per_class)}")
    return "".join(parts)


def _per_class(per_class: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for name, figures in sorted(per_class.items(), key=lambda item: (item[1]["f1"], item[0])):
        shares = [  # of nothing predicted, of nothing in gold: no ratio
            number(f"{100 * figures[key]:.1f}" if figures[of] else "-")
            for key, of in (("precision", "predicted"), ("recall", "support"))
        ]
        bar = f'<i style="width:calc((100% - 84px) * {figures["f1"]:.3f})"></i>'
        f1 = f'<td class="bar">{bar}<span>{100 * figures["f1"]:.1f}</span></td>'
        counts = [number(f"{figures[key]:,.0f}") for key in ("support", "predicted")]
        rows.append([text(name), *shares, f1, *counts])
    head = ["", "precision %", "recall %", "F1 %", "gold", "predicted"]
    return table(head, rows, "classes")


class Confusion(NamedTuple):
    """A gold label that was taken for another one, `count` times; `texts` is HTML."""

    gold: str
    predicted: str
    count: int
    texts: str


def find_confusions(
    predictions: Sequence[Prediction], task: Task, slot_format: Any = "names"
) -> list[Confusion]:
    """Pairs of different labels, most frequent first, with up to three texts each.

    Slots are compared word by word, and the word is marked in its text. Unparsed outputs have a
    section of their own and are in no pair.
    """
    counts: Counter[tuple[str, str]] = Counter()
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in predictions:
        gold, predicted = each.gold.get(task.name), each.predicted.get(task.name)
        if gold is None or predicted is UNPARSED:
            continue
        if task.kind == "class":
            pairs = [(None, str(gold), str(predicted))]
        else:
            names = zip(*metrics.slot_names(each, task, slot_format), strict=True)
            pairs = [(place, *pair) for place, pair in enumerate(names)]
        for place, gold_name, predicted_name in pairs:
            pair = (gold_name, predicted_name)
            if gold_name == predicted_name:
                continue
            counts[pair] += 1
            if len(texts[pair]) < _TEXTS:
                texts[pair].append(f"<p>{_example(each, place)}</p>")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(*pair, count, "".join(texts[pair])) for pair, count in ordered]


def _example(prediction: Prediction, place: int | None) -> str:
    """A record's id and text, the word at `place` marked and kept in sight."""
    id_ = f"<small>{text(prediction.id)}</small> "
    if place is None:
        return id_ + text(prediction.text, 300)
    found = words(prediction.text)
    start, end = max(0, place - 15), place + 16
    before, after = " ".join(found[start:place]), " ".join(found[place + 1 : end])
    return (
        id_
        + ("… " if start else "")
        + f"{text(before)} <mark>{text(' '.join(found[place : place + 1]), 80)}</mark> "
        + text(after)
        + (" …" if end < len(found) else "")
    )


def _unparsed(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> str:
    """Outputs outside the label set as they were generated."""
    found = [each for each in predictions if each.unparsed]
    if not found:
        return "<p>None: every output was in the label set.</p>"
    rows = []
    for each in found[:_UNPARSED]:
        gold = "; ".join(f"{name}: {_label(each.gold.get(name))}" for name in each.unparsed)
        rows.append(
            [
                f"<small>{text(each.id)}</small>",
                text(gold, 200),
                f"<td><code>{text(each.raw, 400) or '<em>nothing</em>'}</code></td>",
                text(each.text, 200),
            ]
        )
    note = f"{len(found):,} of {len(predictions):,} outputs"
    if any(each.guessed for each in found):
        note += ", some replaced by the fallback named in the settings"
    if len(found) > _UNPARSED:
        note += f"; the first {_UNPARSED}"
    head = ["id", "gold", "raw output", "text"]
    return f'<p class="note">{note}.</p>{table(head, rows, "outputs")}'


def _label(value: Any) -> str:
    return (
        " ".join(value) if isinstance(value, tuple) else "hidden" if value is None else str(value)
    )


def _settings(report: Mapping[str, Any]) -> str:
    """Every field of the config by its section, then what is known of model and training."""
    config = report["config"]
    single = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    groups = {
        "run": single,
        **{name: value for name, value in config.items() if isinstance(value, Mapping)},
        "model as built": report["model"],
        "training as it went": report["train"],
        "what a server was asked": report.get("api", {}),
    }
    parts = [
        f"<div><h3>{text(name)}</h3>{_facts(group)}</div>"
        for name, group in groups.items()
        if group
    ]
    return f'<div class="columns">{"".join(parts)}</div>'


def _data(data: Mapping[str, Any]) -> str:
    """What is odd about the data, then what is known of them."""
    notes = "".join(f"<li>{text(line)}</li>" for line in data.get("notes", ()))
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    return notes + _facts(data, leave_out=("tasks", "notes", "defects"))


def _facts(values: Mapping[str, Any], leave_out: Iterable[str] = ()) -> str:
    """Nested values as rows of dotted name and value."""
    kept = {name: value for name, value in values.items() if name not in leave_out}
    rows = [[text(name), text(_fact(value), 300)] for name, value in _leaves(kept)]
    return table([], rows, "facts") if rows else ""


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fact(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return str(value) if value else "-"
