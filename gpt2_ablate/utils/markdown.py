"""Markdown from templates: how numbers are written, and how a template's lines become paragraphs.

A template may break its lines anywhere, so that each sentence can have a line of its own: lines of one paragraph are joined,
and empty places leave no trace. Texts in records come from strangers, so all templates run in Jinja2's sandbox.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

DASH = "–"
RAW = ("```", "---")  # what stands between two such lines stays as it is
ALONE = ("|", "#", "!", *RAW)  # lines that begin so are no part of a paragraph


def number(value: float | None) -> str:
    """Three significant digits with k, M, G, T; a dash where there is none."""
    return _scaled(value, ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")), "")


def bytes_(value: float | None) -> str:
    """Bytes in KiB, MiB or GiB."""
    return _scaled(value, ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")), " B")


def _scaled(value: float | None, units: Iterable[tuple[float, str]], small: str) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    for size, unit in units:
        if abs(value) >= size:
            return _three(value / size) + unit
    return _three(value) + small


def _three(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return f"{int(value)}"
    return f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f}"


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with so many digits; a dash where there is none."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """-0.123 with a real minus sign, +0.123 with its plus; a dash where there is none."""
    return DASH if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def interval(estimate: Any, digits: int = 3, sign: bool = True, unit: float = 1.0) -> str:
    """[low, high] of anything that has them, in some unit; or a dash."""
    if estimate.low is None or estimate.high is None:
        return DASH
    low, high = ((signed if sign else fixed)(end / unit, digits) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def plus_minus(estimate: Any, digits: int = 3) -> str:
    """The value with half of its interval, if it has one."""
    if estimate.low is None or estimate.high is None:
        return fixed(estimate.value, digits)
    return f"{fixed(estimate.value, digits)} ± {fixed((estimate.high - estimate.low) / 2, digits)}"


def percent(share: float, digits: int = 1) -> str:
    """0.125 as 12.5 %."""
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def change(share: float | None) -> str:
    """-0.125 as −12.5 %, a trace as under 0.1 %, 0 as unchanged, None as new."""
    if not share:
        return "new" if share is None else "unchanged"
    return f"{signed(100 * share, 1)} %" if abs(share) >= 0.0005 else f"under 0.1 % {'more' if share > 0 else 'less'}"


def listing(items: Iterable[Any]) -> str:
    """a, b and c."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def flat(value: Any) -> str:
    """Nested keys and values in one line."""
    if isinstance(value, dict):
        return ", ".join(flat(v) if isinstance(v, dict) else f"{k} {v}" for k, v in value.items())
    return str(value)


def paragraph(text: str) -> str:
    """In one line, with no space before the punctuation that a template put on a line of its own."""
    return re.sub(r" (?=[.,;:](?: |$))", "", " ".join(text.split()))


FILTERS = {
    "number": number, "bytes": bytes_, "fixed": fixed, "signed": signed, "interval": interval, "percent": percent,
    "change": change, "plus_minus": plus_minus, "listing": listing, "flat": flat, "paragraph": paragraph,
    "significant": lambda value, digits=3: f"{value:.{digits}g}",
    "thousands": lambda value: f"{int(value):,}",
    "sentence": lambda text: text[:1].upper() + text[1:],
    "cell": lambda value: str(value).replace("|", r"\|").replace("\n", " "),
    "unfenced": lambda text: text.replace("```", "ʼʼʼ").strip(),
}  # fmt: skip


def sandbox() -> ImmutableSandboxedEnvironment:
    """Jinja2 for a text with places to fill in, with the filters that the reports have."""
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    made.filters |= FILTERS
    return made


def environment(templates: Path) -> SandboxedEnvironment:
    """Jinja2 for the templates of a folder; a name that is not there is an error."""
    made = SandboxedEnvironment(
        loader=FileSystemLoader(templates), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    made.filters |= FILTERS
    return made


def render(templates: SandboxedEnvironment, name: str, **values: Any) -> str:
    """A template, filled in and tidied."""
    return tidy(templates.get_template(name).render(values))


def tidy(text: str) -> str:
    """Join the lines of each paragraph and list item, and leave one empty line where there are several."""
    lines, fence = [""], ""
    for line in text.split("\n"):
        marker = next((m for m in RAW if line.startswith(m)), "")
        stripped = line.strip() if line.startswith("|") else paragraph(line)
        if fence or marker:
            lines.append(line)
            fence = ("" if marker == fence else fence) if fence else marker
        elif stripped and lines[-1] and not stripped.startswith((*ALONE, "- ")) and not lines[-1].startswith(ALONE):
            lines[-1] = paragraph(f"{lines[-1]} {stripped}")
        elif stripped or lines[-1]:
            if stripped.startswith("- ") and not lines[-1] and lines[-2:-1] and lines[-2].startswith("- "):
                lines.pop()  # a list stays together
            lines.append(stripped)
    return "\n".join(lines).strip("\n") + "\n"
