"""The proof of fidelity as it is shown: a table that grows in a terminal, lines elsewhere, and a report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpt2_ablate.evaluation.fidelity import STEPS, Check, Pair

HEADINGS = ("check", "found", "wanted", "")


def verify(pair: Pair, console: Console | None = None) -> list[Check]:
    """Carry out all steps, saying each result as it comes, and show them as a table."""
    console = console or Console(highlight=False)
    console.print(f"Weights: {pair.weights}", markup=False, soft_wrap=True)
    checks = []
    for n, step in enumerate(STEPS, 1):
        with console.status(f"{n} of {len(STEPS)}: {step.__name__.replace('_', ' ')}"):  # shown in a terminal only
            checks.append(step(pair))
        if not console.is_terminal:
            console.print(f"{n} of {len(STEPS)}: {checks[-1].name}: {verdict(checks[-1])}", markup=False, soft_wrap=True)
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")  # a long name is worth a second line
    for check in checks:
        table.add_row(*map(escape, (check.name, check.found, check.wanted, verdict(check))))
    console.print(table)
    return checks


def passed(checks: Sequence[Check]) -> bool:
    """Whether nothing failed; what could not be checked did not."""
    return all(check.passed is not False for check in checks)


def verdict(check: Check) -> str:
    return {True: "passed", False: "FAILED", None: "not checked"}[check.passed]


def markdown(pair: Pair, checks: Sequence[Check], environment: Mapping[str, Any]) -> str:
    """The report.

    Args:
        environment: what the study's records say of the machine and the versions.
    """
    failed = [check.name for check in checks if check.passed is False]
    unchecked = [check.name for check in checks if check.passed is None]
    count = sum(check.passed is True for check in checks)
    answer = (
        f"**Failed: {', '.join(failed)}.**"
        if failed
        else f"**The model is GPT-2: all {count} checks that could be made passed.**"
    )
    if unchecked:
        answer += f" Not checked: {', '.join(unchecked)}."
    rows = [HEADINGS, ("---",) * 4, *((c.name, c.found, c.wanted, verdict(c)) for c in checks)]
    facts = {
        "weights": pair.weights,
        **{key: environment.get(key) for key in ("hardware", "platform", "cores", "threads", "python", "git_commit")},
        **environment.get("packages", {}),
    }
    return "\n".join([
        "# Verification", "", answer, "",
        "The same weights, here and in `GPT2LMHeadModel` of transformers (eager attention), on the same tokens. Relative "
        "differences are of the largest number of their tensor.", "",
        *(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows), "",
        "## Setting", "", *(f"- {name}: {_escaped(str(value))}" for name, value in facts.items() if value is not None), "",
    ])  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
