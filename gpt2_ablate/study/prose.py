"""Sentences from numbers. None claims a difference whose interval contains zero, and none has a number typed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpt2_ablate.study.statistics import Estimate


def signed(value: float, digits: int = 3) -> str:
    """-0.123 with a real minus sign, +0.123 with its plus; a dash for what is no number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(estimate: Estimate, digits: int = 3) -> str:
    """[low, high], or a dash where there is none."""
    if estimate.low is None or estimate.high is None:
        return "–"
    return f"[{signed(estimate.low, digits)}, {signed(estimate.high, digits)}]"


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits with k, M, G; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_three(value / factor)} {prefix}{unit}".strip()
    return f"{_three(value)} {unit}".strip()


def bytes_(value: float | None) -> str:
    """Bytes in KiB, MiB or GiB."""
    if value is None or not math.isfinite(value):
        return "–"
    for factor, prefix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if abs(value) >= factor:
            return f"{_three(value / factor)} {prefix}B"
    return f"{_three(value)} B"


def _three(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return f"{int(value)}"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1)
    return f"{value:.{digits}f}"


def percent_change(value: float, reference: float) -> str:
    """How far from the reference, or that it is the same."""
    change = 100 * (value - reference) / reference
    return "unchanged" if abs(change) < 0.05 else f"{signed(change, 1)} %"


def verdict(estimate: Estimate, subject: str, where: str = "the validation loss") -> str:
    """A sentence about a difference in loss, as strong as its interval allows."""
    if math.isnan(estimate.value):
        return f"{subject} shares too few seeds with the others to say what it does to {where}."
    if estimate.low is None:
        return (
            f"{subject} moved {where} by {signed(estimate.value)} nats; with these runs there is no telling whether that is "
            "more than chance."
        )
    if not estimate.is_clear:
        return (
            f"{subject} shows no clear effect on {where}: the estimate of {signed(estimate.value)} nats has the interval "
            f"{interval(estimate)}, which contains zero."
        )
    word = "lowers" if estimate.value < 0 else "raises"
    size = f"{abs(estimate.value):.3f}"
    return f"{subject} {word} {where} by {size} nats (interval {interval(estimate)})."


def listing(items: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
