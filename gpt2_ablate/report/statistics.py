"""From the losses of single runs to means, differences and effects, with the intervals of `gpt2_ablate.report.intervals`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_ablate.records import Record, is_number
from gpt2_ablate.report.intervals import SAME, Estimate, Fit, Verdict, largest_t

__all__ = ["BASELINE", "SAME", "Course", "Effect", "Estimate", "Verdict"]

BASELINE = "baseline"
LOSS = "validation_loss"

Runs = Sequence[Record]
Metric = str | Callable[[Record], float]  # a name among a record's metrics, or how it is read


@dataclass(frozen=True)
class Effect:
    """What a set of changes does together, beyond what its parts do.

    Attributes:
        estimate: of a main effect, mean loss with the change minus mean loss without it; of an interaction, how much the
            effect of one change differs with the other from what it is without.
    """

    factors: tuple[str, ...]  # one for a main effect, two or more for an interaction
    variant: str  # the one of just these factors
    estimate: Estimate

    @property
    def name(self) -> str:
        return " x ".join(self.factors)


def finished(runs: Runs, metric: str = LOSS) -> list[Record]:
    """The runs that have a result."""
    return [run for run in runs if run.status == "finished" and is_number(run.metrics.get(metric))]


def variants(runs: Runs) -> list[str]:
    """Names of the variants in the order of the report: the baseline, then as their YAML says, then as they come."""
    order: dict[str, tuple] = {}
    for n, run in enumerate(runs):
        order.setdefault(run.variant, (run.variant != BASELINE, run.order, n))
    return sorted(order, key=lambda name: order[name])


def factors_of(runs: Runs) -> dict[str, tuple[str, ...]]:
    """variant -> the changes it is made of. Where the record does not say: the pieces of its name, if each of them stands in
    another variant's name too."""
    pieces = {run.variant: tuple(run.variant.split("-")) for run in runs}
    count = Counter(piece for name in pieces for piece in set(pieces[name]))
    found: dict[str, tuple[str, ...]] = {}
    for run in runs:
        name, known = run.variant, all(count[piece] > 1 for piece in pieces[run.variant])
        guess = () if name == BASELINE else pieces[name] if known else (name,)
        found[name] = guess if run.factors is None else tuple(run.factors)
    return found


def means(runs: Runs, metric: Metric = LOSS) -> dict[str, Estimate]:
    """Mean of each variant over all seeds of the study, each with a 95 % interval of its own for how other seeds would vary.

    Where a variant misses a seed, its mean is what it would be with it, judging by the others.
    """
    blocked, plain = fit(runs, metric), fit(runs, metric, with_seeds=False)
    found = {}
    for name, unit in zip(blocked.names, np.eye(len(blocked.names)), strict=True):
        mean, spread = blocked.mean(unit), plain.own_interval(unit)
        shift = 0.0 if math.isnan(mean) else mean - spread.value
        low, high = (None if end is None else end + shift for end in (spread.low, spread.high))
        found[name] = Estimate(spread.value + shift, low, high)
    return found


def differences(runs: Runs, metric: Metric = LOSS, reference: str = BASELINE) -> dict[str, Estimate]:
    """Each variant's mean minus that of the reference variant, intervals simultaneous over all of them (Dunnett)."""
    fitted = fit(runs, metric)
    if reference not in fitted.names:
        return {}
    others = [name for name in fitted.names if name != reference]
    contrasts = [fitted.unit(name) - fitted.unit(reference) for name in others]
    return dict(zip(others, fitted.estimates(contrasts, SAME), strict=True))


def to_the_best(runs: Runs, best: str, metric: Metric = LOSS) -> dict[str, Estimate]:
    """Each variant's mean minus that of the best, intervals simultaneous over all pairs (Tukey): which variant came out best was
    not known before."""
    fitted = fit(runs, metric)
    others = [name for name in fitted.names if name != best]
    pairs = [fitted.unit(name) - fitted.unit(best) for name in others]
    rest = [fitted.unit(a) - fitted.unit(b) for a, b in itertools.combinations(others, 2)]
    return dict(zip(others, fitted.estimates(pairs + rest, SAME), strict=False))


def beyond_parts(runs: Runs, metric: Metric = LOSS, reference: str = BASELINE) -> dict[str, Estimate]:
    """How far each combination is from what its changes, made one at a time, add up to; intervals simultaneous.

    Zero means that the changes do not get in each other's way; below zero they help each other.
    """
    fitted, of = fit(runs, metric), factors_of(runs)
    if reference not in fitted.names:
        return {}
    single: dict[str, str] = {}
    for name in fitted.names:
        if len(of[name]) == 1:
            single.setdefault(of[name][0], name)
    combined = [name for name in fitted.names if len(of[name]) > 1 and all(factor in single for factor in of[name])]
    unit = fitted.unit
    contrasts = [
        unit(name) - unit(reference) - sum(unit(single[factor]) - unit(reference) for factor in of[name]) for name in combined
    ]
    return dict(zip(combined, fitted.estimates(contrasts, SAME), strict=True))


def effects(runs: Runs, metric: Metric = LOSS) -> list[Effect]:
    """Main effects and interactions of the largest complete factorial among the runs, intervals simultaneous."""
    fitted, of = fit(runs, metric), factors_of(runs)
    factors = complete_factorial(runs)
    cells: dict[frozenset[str], int] = {}
    for n, name in enumerate(fitted.names):
        cells.setdefault(frozenset(of[name]), n)
    sets = [chosen for k in range(1, len(factors) + 1) for chosen in itertools.combinations(factors, k)]
    contrasts = []
    for chosen in sets:
        weights = np.zeros(len(fitted.names))
        for k in range(len(factors) + 1):
            for present in itertools.combinations(factors, k):
                # +1 or -1 for each factor of the effect, averaged over all levels of the others.
                sign = (-1) ** sum(factor not in present for factor in chosen)
                weights[cells[frozenset(present)]] = sign / 2 ** (len(factors) - len(chosen))
        contrasts.append(weights)
    estimates = fitted.estimates(contrasts, SAME)
    return [Effect(c, fitted.names[cells[frozenset(c)]], e) for c, e in zip(sets, estimates, strict=True)]


@dataclass(frozen=True)
class Course:
    """An effect on the validation loss over training.

    Attributes:
        trend: how far it has moved since half of the training, with an interval of its own.
    """

    tokens: list[int]  # of training, at which it is known
    estimates: list[Estimate]  # at each of these
    trend: Estimate

    @property
    def turn(self) -> str:
        """What becomes of it: "turned" (clear now, and clear the other way before), "faded" (clear before, and no longer),
        "growing" or "shrinking" (by its trend), or "steady"."""
        now, before = self.estimates[-1], {e.verdict for e in self.estimates[:-1] if e.is_clear}
        if before - {now.verdict}:
            return "turned" if now.is_clear else "faded"
        if not self.trend.is_clear:
            return "steady"
        return "growing" if (self.trend.value > 0) == (now.value > 0) else "shrinking"


def courses(runs: Runs, of: Callable[[Runs, Metric], dict[str, Estimate]]) -> dict[str, Course]:
    """The course of each estimate that `of` makes of (runs, metric); none where fewer than three validations are shared."""
    curves = {(run.variant, run.seed): dict(map(_point, run.curves.get("validation", []))) for run in runs}
    steps = sorted(set.intersection(*map(set, curves.values()))) if curves else []
    per_step = {run.config.tokens_per_step for run in runs}
    if len(steps) < 3 or len(per_step) > 1 or 0 in per_step:
        return {}

    def at(step: float) -> Callable[[Record], float]:
        return lambda run: curves[run.variant, run.seed][step]

    found = [of(runs, at(step)) for step in steps]
    half = min(steps, key=lambda step: abs(step - steps[-1] / 2))
    trends = of(runs, lambda run: at(steps[-1])(run) - at(half)(run))
    tokens = [int(step * per_step.copy().pop()) for step in steps]
    return {name: Course(tokens, [estimates[name] for estimates in found], trends[name]) for name in found[-1]}


def _point(pair: Sequence[float | None]) -> tuple[float, float]:
    step, loss = (math.nan if value is None else value for value in pair)
    return step, loss


def main_effects(runs: Runs, metric: Metric = LOSS) -> dict[str, Estimate]:
    """Those of the factorial by their factor; of a study without one, the differences to the baseline by variant."""
    found = [effect for effect in effects(runs, metric) if len(effect.factors) == 1]
    return {effect.variant: effect.estimate for effect in found} if len(found) > 1 else differences(runs, metric)


def complete_factorial(runs: Runs) -> tuple[str, ...]:
    """The largest set of changes of which every combination has a finished run."""
    of = factors_of(runs)
    cells = {frozenset(factors) for factors in of.values()}
    known = list(dict.fromkeys(factor for name in variants(runs) for factor in of[name]))
    for k in range(len(known), 0, -1):
        for chosen in itertools.combinations(known, k):
            if all(frozenset(s) in cells for n in range(k + 1) for s in itertools.combinations(chosen, n)):
                return chosen
    return ()


def noise(runs: Runs, metric: Metric = LOSS) -> tuple[float, int] | None:
    """Standard deviation of what variant and seed leave unexplained, and its degrees of freedom; None without any."""
    fitted = fit(runs, metric)
    return (fitted.noise, fitted.freedom) if fitted.freedom > 0 else None


def pairing(runs: Runs, metric: Metric = LOSS) -> float | None:
    """By what share intervals of differences are narrower because runs with the same seed share batches and first weights; below
    zero it costs more degrees of freedom than it gains. None without repetition."""
    blocked, plain = fit(runs, metric), fit(runs, metric, with_seeds=False)
    if min(blocked.freedom, plain.freedom) < 1 or not plain.noise:
        return None
    first, second = (fitted.noise * largest_t(np.eye(1), fitted.freedom) for fitted in (blocked, plain))
    return 1 - first / second


def fit(runs: Runs, metric: Metric = LOSS, with_seeds: bool = True) -> Fit:
    """Least squares of the metric on variant, and seed."""
    members: dict[str, set[str]] = {}
    for name, factors in factors_of(runs).items():
        for factor in factors:
            members.setdefault(factor, set()).add(name)
    values = [run.metrics[metric] if isinstance(metric, str) else metric(run) for run in runs]
    return Fit(variants(runs), [run.variant for run in runs], [run.seed for run in runs], values, members, with_seeds)


def by_variant(runs: Iterable[Record], metric: str) -> dict[str, float]:
    """variant -> mean of a metric over its seeds, where it has it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if is_number(value):
            values.setdefault(run.variant, []).append(value)
    return {name: float(np.mean(v)) for name, v in values.items()}
