"""What each variant gains from its context, and when in training that begins.

Models learn to use their context suddenly, some runs long before others of the same variant (Olsson et al. 2209.11895). A study
that ends in the middle compares runs of two kinds; so when each run begins is an outcome of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_ablate.records import Record, is_number
from gpt2_ablate.report import statistics
from gpt2_ablate.report.statistics import Estimate

BEGUN = 0.05  # nats per token: a gain of more is one of the context, not of the noise of a validation
CURVE = "context_gain"


@dataclass(frozen=True)
class ContextUse:
    """Of one variant.

    Attributes:
        gain: nats per token at the end of training.
        begins: of each run, by seed, the training tokens after which the gain is above `BEGUN` for good; None: it never is.
        mean_begin: over the runs, where all have begun; in training tokens.
    """

    gain: Estimate
    begins: list[float | None]
    mean_begin: Estimate | None

    @property
    def begun(self) -> int:
        """How many runs have."""
        return sum(begin is not None for begin in self.begins)

    @property
    def is_split(self) -> bool:
        """Whether some runs have and others have not."""
        return 0 < self.begun < len(self.begins)


def context_use(runs: Sequence[Record]) -> dict[str, ContextUse]:
    """variant -> its use of the context; none where a run's record does not say."""
    curves = [[(step, gain) for step, gain in run.curves.get(CURVE, []) if is_number(step) and is_number(gain)] for run in runs]
    if not curves or not all(len(curve) > 1 for curve in curves):
        return {}
    begins = {(run.variant, run.seed): _begin(run.config.tokens_per_step, curve) for run, curve in zip(runs, curves, strict=True)}
    gains = statistics.means(runs, lambda run: float(run.curves[CURVE][-1][1] or 0.0))
    whole = {run.variant for run in runs} - {name for (name, _), begin in begins.items() if begin is None}
    kept = [run for run in runs if run.variant in whole]
    means = statistics.means(kept, lambda run: begins[run.variant, run.seed] or 0.0) if kept else {}
    return {
        name: ContextUse(gain, [begin for (n, _), begin in sorted(begins.items()) if n == name], means.get(name))
        for name, gain in gains.items()
    }


def _begin(tokens_per_step: int, curve: list[tuple[float, float]]) -> float | None:
    """Where a curve crosses `BEGUN` for the last time, on a straight line between two validations; None if it ends below."""
    steps, gains = np.array(curve).T
    if gains[-1] <= BEGUN:
        return None
    below = np.flatnonzero(gains <= BEGUN)
    if not len(below):
        return float(steps[0] * tokens_per_step)
    n = below[-1]
    share = (BEGUN - gains[n]) / (gains[n + 1] - gains[n])
    return float((steps[n] + share * (steps[n + 1] - steps[n])) * tokens_per_step)
