"""How metrics are called and written wherever a person reads them."""

from collections.abc import Mapping
from typing import Any

# Counts of records or words; every other metric is a share in [0, 1] or stands in _NUMBERS.
COUNTS = {
    "support": "records",
    "unparsed": "unparsed outputs",
    "unknown_slots": "words with an unknown slot",
}
_SHARES = {
    "accuracy": "accuracy",
    "f1": "F1 of the positive class",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "slot_f1": "slot F1",
    "slot_precision": "slot precision",
    "slot_recall": "slot recall",
    "slot_f1_iob2": "slot F1, strict IOB2",
    "exact_match": "exact match",
    "unparsed_rate": "unparsed rate",
}
_NUMBERS = {
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mse": "mean squared error",
}


def metric_name(name: str) -> str:
    """`slot_f1_iob2 → slot F1, strict IOB2`."""
    return (COUNTS | _SHARES | _NUMBERS).get(name) or name.replace("_", " ")


def show(name: str, value: Any) -> str:
    """A metric's value: `0.95319 → 95.32 %`, a count as it is."""
    if value is None:
        return "-"
    if name in _NUMBERS:
        return f"{value:.4f}"
    return f"{value:,.0f}" if name in COUNTS else f"{100 * value:.2f} %"


def show_difference(name: str, value: Any) -> str:
    """A difference of two values, with its sign; of shares in percentage points: `+1.25`."""
    if value is None:
        return "-"
    return f"{value:+.4f}" if name in _NUMBERS else f"{100 * value:+.2f}"


def spread(name: str, point: Mapping[str, Any]) -> str:
    """Mean and standard deviation over seeds: `88.10 % ± 1.25`; of one run its value."""
    if point["deviation"] is None:
        return show(name, point["mean"])
    return f"{show(name, point['mean'])} ± {show_difference(name, point['deviation'])[1:]}"


def cost_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """What each of two compared runs takes, and how many times B takes it: a row for each cost that
    both reports know."""
    a, b = (comparison["runs"][run].get("costs", {}) for run in "ab")
    return [
        [
            name,
            *(f"{value:,.{0 if isinstance(value, int) else 1}f}" for value in (a[name], b[name])),
            f"{b[name] / a[name]:.2f}" if a[name] else "-",
        ]
        for name in a
        if name in b
    ]
