"""From the losses of single runs to differences and effects with intervals.

Runs with the same seed share their batches and, where shapes allow, their first weights, so the seed is a block:
loss = variant + seed + what is left. What is left, pooled over all variants, is the noise that intervals are made from
(Montgomery, Design and Analysis of Experiments, chapters 4 and 6).

A table of several intervals is right as a whole with 95 % confidence (Bonferroni): each one is as much wider as the table is
longer. So where nothing differs, all of the study's comparisons of one table stay silent in 95 of 100 studies.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import statsmodels.api as sm

from gpt2_ablate.records import Record, is_number

CONFIDENCE = 0.95
BASELINE = "baseline"
RESOLUTION = 1e-9  # nats: below this, floating point and not a seed makes the difference

Runs = Sequence[Record]
Verdict = Literal["lower", "higher", "unclear", "untested", "unknown"]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; without an interval nothing is claimed about it.

    Attributes:
        value, low, high: in the unit of the metric; low and high are None where the runs cannot tell how sure they are,
            and value is not a number where they cannot tell it at all (two variants that share no seed).
    """

    value: float
    low: float | None = None
    high: float | None = None
    neutral: float = 0.0  # what it is where nothing differs: 0 for a difference, 1 for a ratio

    @property
    def verdict(self) -> Verdict:
        """What may be said of it. Every comparing sentence of a report depends on this and on nothing else."""
        if math.isnan(self.value):
            return "unknown"
        if self.low is None or self.high is None:
            return "untested"
        return "lower" if self.high < self.neutral else "higher" if self.low > self.neutral else "unclear"

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval, and the neutral value is not in it."""
        return self.verdict in ("lower", "higher")


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


def finished(runs: Runs, metric: str = "validation_loss") -> list[Record]:
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


def means(runs: Runs, metric: str = "validation_loss") -> dict[str, Estimate]:
    """Mean of each variant over all seeds of the study, each with a 95 % interval of its own for how other seeds would vary.

    Where a variant misses a seed, its mean is what it would be with it, judging by the others.
    """
    names = variants(runs)
    blocked, plain = _fit(runs, names, metric), _fit(runs, names, metric, with_seeds=False)
    found = {}
    for n, name in enumerate(names):
        mean, spread = _contrast(blocked, np.eye(len(names))[n], 1), _contrast(plain, np.eye(len(names))[n], 1)
        if math.isnan(mean.value):
            mean = spread
        if spread.low is None or spread.high is None:
            found[name] = Estimate(mean.value)
        else:
            found[name] = Estimate(mean.value, mean.value + spread.low - spread.value, mean.value + spread.high - spread.value)
    return found


def differences(runs: Runs, metric: str = "validation_loss", reference: str = BASELINE) -> dict[str, Estimate]:
    """Each variant's mean minus that of the reference variant, intervals simultaneous over all of them."""
    names = variants(runs)
    if reference not in names:
        return {}
    fit = _fit(runs, names, metric)
    unit = np.eye(len(names))
    others = [name for name in names if name != reference]
    return {name: _contrast(fit, unit[names.index(name)] - unit[names.index(reference)], len(others)) for name in others}


def beyond_parts(runs: Runs, metric: str = "validation_loss", reference: str = BASELINE) -> dict[str, Estimate]:
    """How far each combination is from what its changes, made one at a time, add up to; intervals simultaneous.

    Zero means that the changes do not get in each other's way; below zero they help each other.
    """
    names, of = variants(runs), factors_of(runs)
    single: dict[str, str] = {}
    for name in names:
        if len(of[name]) == 1:
            single.setdefault(of[name][0], name)
    combined = [name for name in names if len(of[name]) > 1 and all(factor in single for factor in of[name])]
    if reference not in names:
        return {}
    fit = _fit(runs, names, metric)
    unit = dict(zip(names, np.eye(len(names)), strict=True))
    found = {}
    for name in combined:
        parts = sum(unit[single[factor]] - unit[reference] for factor in of[name])
        found[name] = _contrast(fit, unit[name] - unit[reference] - parts, len(combined))
    return found


def effects(runs: Runs, metric: str = "validation_loss") -> list[Effect]:
    """Main effects and interactions of the largest complete factorial among the runs, intervals simultaneous."""
    names, of = variants(runs), factors_of(runs)
    factors = complete_factorial(runs)
    cells: dict[frozenset[str], int] = {}
    for n, name in enumerate(names):
        cells.setdefault(frozenset(of[name]), n)
    fit = _fit(runs, names, metric)
    found = []
    sets = [chosen for k in range(1, len(factors) + 1) for chosen in itertools.combinations(factors, k)]
    for chosen in sets:
        weights = np.zeros(len(names))
        for k in range(len(factors) + 1):
            for present in itertools.combinations(factors, k):
                # +1 or -1 for each factor of the effect, averaged over all levels of the others.
                sign = (-1) ** sum(factor not in present for factor in chosen)
                weights[cells[frozenset(present)]] = sign / 2 ** (len(factors) - len(chosen))
        found.append(Effect(chosen, names[cells[frozenset(chosen)]], _contrast(fit, weights, len(sets))))
    return found


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


def noise(runs: Runs, metric: str = "validation_loss") -> tuple[float, int] | None:
    """Standard deviation of what variant and seed leave unexplained, and its degrees of freedom; None without any."""
    fit = _fit(runs, variants(runs), metric)
    return (float(np.sqrt(fit.scale)), int(fit.df_resid)) if fit.df_resid > 0 else None


def _fit(runs: Runs, names: list[str], metric: str, with_seeds: bool = True):
    """Least squares of the metric on variant, and seed."""
    seeds = sorted({run.seed for run in runs})
    columns = [[float(run.variant == name) for run in runs] for name in names]
    if with_seeds:
        # Sum-to-zero coding: a variant's coefficient is its mean over all seeds of the study.
        columns += [[float(run.seed == s) - float(run.seed == seeds[-1]) for run in runs] for s in seeds[:-1]]
    with warnings.catch_warnings():
        # Not every study can tell variants and seeds apart; _contrast finds out what it can estimate.
        warnings.filterwarnings("ignore", message=".*rank-deficient")
        return sm.OLS(np.array([run.metrics[metric] for run in runs]), np.array(columns).T).fit()


def _contrast(fit, weights: np.ndarray, comparisons: int) -> Estimate:
    """A weighted sum of the variants' coefficients, its interval one of `comparisons`."""
    padded = np.concatenate((weights, np.zeros(len(fit.params) - len(weights))))
    design = fit.model.exog
    if not np.allclose(padded @ np.linalg.pinv(design) @ design, padded):
        return Estimate(math.nan)
    value = float(padded @ fit.params)
    if fit.df_resid < 1:
        return Estimate(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = fit.t_test(padded).conf_int(alpha=(1 - CONFIDENCE) / comparisons)[0]
    return Estimate(value, min(float(low), value - RESOLUTION), max(float(high), value + RESOLUTION))


def by_variant(runs: Iterable[Record], metric: str) -> dict[str, float]:
    """variant -> mean of a metric over its seeds, where it has it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if is_number(value):
            values.setdefault(run.variant, []).append(value)
    return {name: float(np.mean(v)) for name, v in values.items()}
