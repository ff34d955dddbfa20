"""From facts to words: the templates of templates/, filled in. Also the short table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

from gpt2_ablate.errors import UserError
from gpt2_ablate.records import Record, write_results
from gpt2_ablate.report import statistics
from gpt2_ablate.report.collect import speed_ratio, study_facts
from gpt2_ablate.report.context import BEGUN
from gpt2_ablate.report.facts import Study, as_json
from gpt2_ablate.report.rates import comparison
from gpt2_ablate.utils import markdown
from gpt2_ablate.utils.io import write_text
from gpt2_ablate.utils.markdown import bytes_, fixed, interval, number, plus_minus, signed

MEASURED = ("median", "low", "high")


@cache
def templates() -> SandboxedEnvironment:
    """Those of the reports, with filters for what benchmarks measure: {"median", "low", "high"}."""
    made = markdown.environment(Path(__file__).parent / "templates")
    made.filters |= {
        "metric": lambda found, name: {"median": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"]},
        "ratio": lambda found: speed_ratio(*(found[key] for key in MEASURED)),
        "spread": _spread,
        "share": _share,
        "lookup": lambda key, found: found[key],
    }
    return made


def _spread(found: Mapping[str, float | None], unit: float = 1.0, digits: int | None = None) -> str:
    """Median [low, high] in some unit, with three significant digits or so many behind the point; no ends if there are none."""
    scaled = [value / unit for key in MEASURED if (value := found[key]) is not None]
    median, *ends = (number(value) if digits is None else fixed(value, digits) for value in scaled)
    return f"{median} [{', '.join(ends)}]" if ends else median


def _share(found: Mapping[str, float | None]) -> str:
    """Median in percent [low, high]."""
    median, *ends = (fixed(100 * value, 0) for key in MEASURED if (value := found[key]) is not None)
    return f"{median} % [{', '.join(ends)}]" if ends else f"{median} %"


def write_report(records: Sequence[Mapping[str, Any] | Record], folder: Path) -> Path:
    """Write analysis.md, figures/ and results.json, with the facts of the report in it, into a folder.

    Args:
        records: of one preset, whatever their status.

    Returns:
        the path of analysis.md.

    Raises:
        UserError: the records cannot be reported together, or the folder cannot be written.
    """
    from gpt2_ablate.report.figures import draw_study  # matplotlib takes a second

    runs = [Record.model_validate(record) for record in records]
    study = study_facts(runs)
    try:
        figures = draw_study(study, statistics.finished(comparison(runs)), folder / "figures")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); free some space, or give another folder as OUT"
        ) from error
    write_text(folder / "analysis.md", analysis(study, figures, (folder / "benchmarks.md").exists()))
    write_results(folder / "results.json", [run.as_json() for run in runs], as_json(study))
    return folder / "analysis.md"


def analysis(study: Study, figures: set[str], benchmarks: bool = False) -> str:
    """The text of analysis.md.

    Args:
        figures: names of those that there are.
        benchmarks: whether there is a benchmark report beside it.
    """
    first = study.variants[0] if study.variants else None
    found = {"study": study, "first": first, "begun": BEGUN, "figures": figures, "benchmarks": benchmarks}
    return markdown.render(templates(), "analysis.md.j2", **found)


def write_benchmarks(results: dict[str, Any], figures: Path) -> str:
    """The text of benchmarks.md; its figures are drawn into a folder."""
    from gpt2_ablate.report.figures import draw_benchmarks

    draw_benchmarks(results, figures)
    return markdown.render(templates(), "benchmarks.md.j2", **results)


def verification(weights: str, checks: Sequence[Any], environment: Mapping[str, Any]) -> str:
    """The text of verification.md.

    Args:
        weights: which model was verified.
        checks: each with name, found, wanted and passed (True, False, or None: not checked).
        environment: the machine and the versions, as in a record.
    """
    return markdown.render(templates(), "verification.md.j2", weights=weights, checks=checks, environment=environment)


def print_summary(records: Sequence[Mapping[str, Any] | Record], file: Path) -> None:
    """The main table on the terminal, what is missing, and where the report is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 96)  # a line that wraps in a narrow terminal still says more than one cut off
    study = study_facts([Record.model_validate(record) for record in records])
    if study.variants:
        view = Table(box=None, padding=(0, 1, 0, 0))
        for title in ("variant", "FLOPs/tok", "KV cache", "tok/s", "val. loss", "ppl", "to baseline"):
            view.add_column(title, justify="left" if title == "variant" else "right", no_wrap=True)
        for v in study.variants:
            get, gap = v.metrics.get, v.difference
            view.add_row(
                v.name, number(get("training_flops_per_token")), bytes_(get("kv_bytes_full")),
                number(get("training_tokens_per_second")), plus_minus(v.loss), fixed(get("validation_perplexity"), 1),
                f"{signed(gap.value)} {interval(gap)}" if gap else "",
            )  # fmt: skip
        console.print(view)
    for problem in study.problems:
        console.print(problem, style="yellow", markup=False, soft_wrap=True)
    for run in study.missing:
        console.print(f"{run.variant} seed {run.seed}: {run.status} {run.error}", style="red", markup=False)
    console.print(f"Report: {file}", soft_wrap=True)
