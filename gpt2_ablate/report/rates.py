"""What the learning rate does to a study: each variant at several, its best one, and whether that changes a verdict.

Such a study holds three kinds of runs (`Record.stage`): the comparison at one common rate, which is the study that there would
be anyway; trials at each rate, with seeds of their own; and the comparison again, each variant at its best rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpt2_ablate.records import Record
from gpt2_ablate.report import statistics
from gpt2_ablate.report.intervals import Estimate, Fit
from gpt2_ablate.report.statistics import BASELINE, LOSS
from gpt2_ablate.utils.log_parabola import lowest


@dataclass(frozen=True)
class Trial:
    """A learning rate and the mean validation loss with it, in nats; None where a run with it has no result."""

    rate: float
    loss: float | None


@dataclass(frozen=True)
class Best:
    """The chosen rate, and the loss that the parabola promises there."""

    rate: float
    loss: float


@dataclass(frozen=True)
class Tuned:
    """A variant and its learning rate.

    Attributes:
        best: by a parabola in log(rate) through the lowest trials; None where no trial has a result.
        common: the rate of the comparison at one rate.
        regret: the loss at the common rate minus that at the best one, with the comparison's seeds; None where these are missing.
    """

    name: str
    trials: list[Trial]
    best: Best | None
    common: float | None
    regret: Estimate | None

    @property
    def edge(self) -> Literal["lowest", "highest"] | None:
        """Whether the best rate is the lowest or the highest that was tried, so that a better one may lie beyond."""
        rate = self.best.rate if self.best else None
        return "lowest" if rate == self.trials[0].rate else "highest" if rate == self.trials[-1].rate else None

    def loss_at(self, rate: float) -> float | None:
        return next((trial.loss for trial in self.trials if trial.rate == rate), None)

    @property
    def beyond(self) -> float | None:
        """The rate to try next where the best is at an edge: as far from it as its neighbour is."""
        rates = [trial.rate for trial in self.trials]
        if not self.edge or len(rates) < 2:
            return None
        edge, neighbour = (rates[0], rates[1]) if self.edge == "lowest" else (rates[-1], rates[-2])
        return float(f"{edge / neighbour * edge:.3g}")


@dataclass(frozen=True)
class Changed:
    """A verdict that is another at each variant's best learning rate than at the common one.

    Attributes:
        shift: from the common rate to the best ones, within seeds: a verdict near its border changes by chance.
    """

    what: str
    common: Estimate
    best: Estimate
    shift: Estimate


@dataclass(frozen=True)
class Rates:
    """What a study at several learning rates found.

    Attributes:
        seeds: of the trials.
        own: variants that set a learning rate of their own -> that rate; they are compared at it on both sides.
        left_out: variants without a best rate, of which nothing is said here.
        judged: how many verdicts, with an interval at the common rate and at the best ones, were compared.
        changed: those that differ.
    """

    seeds: list[int]
    variants: list[Tuned]
    own: dict[str, float]
    left_out: list[str]
    judged: int
    changed: list[Changed]

    @property
    def tried(self) -> list[float]:
        return sorted({trial.rate for variant in self.variants for trial in variant.trials})

    @property
    def common(self) -> list[float]:
        """The common rate; several only where records of different studies were put together."""
        return sorted({variant.common for variant in self.variants if variant.common})

    @property
    def clear(self) -> list[Changed]:
        """Changes that are no chance."""
        return [change for change in self.changed if change.shift.is_clear]

    @property
    def at_edge(self) -> list[Tuned]:
        return [variant for variant in self.variants if variant.edge]


def comparison(records: Sequence[Record], stage: str = "common") -> list[Record]:
    """The runs that compare variants at one rate, or "best", each at its best."""
    return [record for record in records if record.stage == stage]


def different_runs(records: Sequence[Record]) -> list[Record]:
    """Each run once: where a variant's best rate is the common one, one run is in both comparisons."""
    common = {(r.variant, r.seed, r.config.learning_rate) for r in comparison(records)}
    return [r for r in records if r.stage != "best" or (r.variant, r.seed, r.config.learning_rate) not in common]


def rates_found(records: Sequence[Record]) -> Rates | None:
    """None for a study at one learning rate."""
    trials, common = comparison(records, "tuning"), comparison(records)
    if not trials:
        return None
    best = statistics.finished(comparison(records, "best"))
    names = statistics.variants(trials)
    shared = {run.config.learning_rate for run in common if run.variant in names}
    own = {
        run.variant: rate
        for run in common
        if run.variant not in names and (rate := run.config.learning_rate) is not None and rate not in shared
    }
    at_best = [*best, *(run for run in statistics.finished(common) if run.variant in own)]
    cells = {(run.variant, run.seed) for run in at_best}
    at_common = [run for run in statistics.finished(common) if (run.variant, run.seed) in cells]
    moved = _Moved(at_common, at_best)
    regrets = moved.regrets()
    before, after = _estimates(at_common), _estimates(at_best)
    judged = [what for what in before if what in after and before[what].low is not None and after[what].low is not None]
    shifts = moved.shifts(judged)
    changed = [what for what in judged if before[what].verdict != after[what].verdict]
    return Rates(
        seeds=sorted({run.seed for run in trials}),
        variants=[_tuned(name, trials, common, regrets.get(name)) for name in names],
        own=own,
        left_out=[name for name in statistics.variants(common) if name not in {name for name, _ in cells}],
        judged=len(judged),
        changed=[Changed(what, before[what], after[what], shifts[what]) for what in changed],
    )


def _tuned(name: str, trials: Sequence[Record], common: Sequence[Record], regret: Estimate | None) -> Tuned:
    losses: dict[float, list[float]] = {}
    for run in trials:
        rate = run.config.learning_rate
        if run.variant == name and rate is not None:
            losses.setdefault(rate, []).append(run.metrics[LOSS] if statistics.finished([run]) else math.nan)
    means = {rate: float(np.mean(losses[rate])) for rate in sorted(losses)}
    shared = next((run.config.learning_rate for run in common if run.variant == name), None)
    found = [Trial(rate, loss if math.isfinite(loss) else None) for rate, loss in means.items()]
    best = lowest(means)
    return Tuned(name, found, Best(best.x, best.y) if best else None, shared, regret)


class _Moved:
    """How losses move from the common rate to each variant's best, within variant and seed."""

    def __init__(self, at_common: Sequence[Record], at_best: Sequence[Record]):
        self.at_common, best = at_common, {(run.variant, run.seed): run for run in at_best}
        pairs = [(run, best[run.variant, run.seed]) for run in at_common]
        # A variant whose best rate is the common one does not move, and says nothing about the noise of those that do.
        pairs = [(one, other) for one, other in pairs if one.config.learning_rate != other.config.learning_rate]
        self.still = {run.variant for run in at_common} - {one.variant for one, _ in pairs}
        self.names = statistics.variants([one for one, _ in pairs])
        moves = [other.metrics[LOSS] - one.metrics[LOSS] for one, other in pairs]
        variants, seeds = [one.variant for one, _ in pairs], [one.seed for one, _ in pairs]
        self.fit = Fit(self.names, variants, seeds, moves, with_seeds=False) if pairs else None

    def regrets(self) -> dict[str, Estimate]:
        """variant -> loss at the common rate minus loss at its best, intervals simultaneous."""
        found = self.fit.from_zero(-np.eye(len(self.names))) if self.fit else []
        return dict.fromkeys(self.still, Estimate(0.0)) | dict(zip(self.names, found, strict=True))

    def shifts(self, judged: Sequence[str]) -> dict[str, Estimate]:
        """By how much each of these estimates moves, intervals simultaneous."""
        # An estimate is a weighted sum of means; the weight of a variant is what it is for a loss of 1 there and 0 elsewhere.
        units = [_estimates(self.at_common, _is(name)) for name in self.names]
        weights = {what: np.array([unit[what].value for unit in units]) for what in judged}
        moving = [what for what in judged if np.abs(weights[what]).any()]
        found = self.fit.from_zero(np.array([weights[what] for what in moving])) if self.fit and moving else []
        return dict.fromkeys(judged, Estimate(0.0)) | dict(zip(moving, found, strict=True))


def _is(name: str) -> Callable[[Record], float]:
    return lambda run: float(run.variant == name)


def _estimates(runs: Sequence[Record], metric: statistics.Metric = LOSS) -> dict[str, Estimate]:
    """What a report gives verdicts on: the differences to the baseline, main effects and interactions."""
    if not runs:
        return {}
    found = {f"{name} against the {BASELINE}": e for name, e in statistics.differences(runs, metric).items()}
    effects = statistics.effects(runs, metric)
    if len(effects) > 1:  # of one change, its difference says the same
        for effect in effects:
            kind = "main effect of" if len(effect.factors) == 1 else "interaction"
            found[f"the {kind} {effect.name}"] = effect.estimate
    return found
