"""What a converted checkpoint lost, and how much of it a little more training brought back (Ainslie et al. 2305.13245,
section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2_ablate.study import statistics
from gpt2_ablate.study.prose import signed, table
from gpt2_ablate.study.statistics import BASELINE, Estimate

BEFORE = "validation_loss_before"


@dataclass(frozen=True)
class Recovery:
    """One variant of a warm-started study; losses in nats per token, means over seeds.

    Attributes:
        before: right after the conversion.
        after: after the training that followed.
        lost: how far the conversion set it back, against the checkpoint as it was.
        gap: how far it is behind the baseline that was trained on for as long.
        recovered: 1 - gap / lost; None where the conversion cost next to nothing.
    """

    before: float
    after: float
    lost: float
    gap: Estimate
    recovered: Estimate | None


def recoveries(runs: list[dict[str, Any]]) -> dict[str, Recovery]:
    """variant -> what it lost and recovered; empty where the runs did not start from a checkpoint, or have no baseline."""
    runs = statistics.finished(runs, BEFORE)
    before, after = statistics.by_variant(runs, BEFORE), statistics.by_variant(runs, "validation_loss")
    if BASELINE not in before:
        return {}
    gaps = statistics.differences(runs)
    found = {}
    for name in statistics.variants(runs):
        lost = before[name] - before[BASELINE]
        gap = gaps.get(name, Estimate(0.0))
        found[name] = Recovery(before[name], after[name], lost, gap, _recovered(gap, lost))
    return found


def _recovered(gap: Estimate, lost: float) -> Estimate | None:
    if lost < 0.01:  # nats: a share of next to nothing says nothing
        return None
    low, high = (None if end is None else 1 - end / lost for end in (gap.high, gap.low))
    return Estimate(1 - gap.value / lost, low, high)


def section(found: dict[str, Recovery], run: dict[str, Any], figure: str) -> str:
    """The part of the report about it, with the setting from any of the runs; empty where nothing was converted."""
    if not found:
        return ""
    config = run.get("config") or {}
    start = (config.get("model") or {}).get("init", "a checkpoint")
    steps = (config.get("trainer") or {}).get("max_steps", "some")
    head = ["variant", "right after conversion", "lost by it", "after uptraining", "behind the control", "recovered"]
    rows = [
        [name, f"{r.before:.3f}", signed(r.lost), f"{r.after:.3f}", "" if name == BASELINE else signed(r.gap.value),
         "" if name == BASELINE else _percent(r.recovered)]
        for name, r in found.items()
    ]  # fmt: skip
    parts = (
        "## From the checkpoint",
        f"Every variant started from `{start}`, converted to what it is, and was trained for {steps} steps; the baseline, which "
        "needs no conversion, was trained on for as long and is the control. Recovered is the share of what the conversion lost "
        "that is no longer missing against the control, with the interval of that gap. Seeds differ in their batches; all start "
        "from the same weights, so intervals do not cover another checkpoint.",
        table(head, rows),
        figure,
    )
    return "\n\n".join(part for part in parts if part)


def _percent(share: Estimate | None) -> str:
    if share is None:
        return "next to nothing was lost"
    ends = "" if share.low is None or share.high is None else f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return f"{100 * share.value:.1f} %{ends}"
