"""Least squares of a metric on variant and seed, and intervals of its contrasts that hold all at once.

Runs with the same seed share their batches and, where shapes allow, their first weights, so the seed is a block:
loss = variant + seed + what is left. What is left is the noise that intervals are made from (Montgomery, Design and Analysis of
Experiments, chapters 3 and 4).

A family of contrasts, such as a column of a table, is right as a whole with 95 % confidence: its intervals are as wide as the
largest of its t statistics is in 95 of 100 studies. For the differences to a control that is Dunnett's method, for all pairs
Tukey's, and for contrasts that are independent the studentised maximum modulus; here all three are one computation, which holds
for incomplete studies too. A report has several families. So that a study of changes that do nothing stays silent as a whole, no
contrast is claimed unless the F test of all variants finds a difference: where it does not, intervals are Scheffé's, all of which
then contain zero.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import scipy.stats
import statsmodels.api as sm

CONFIDENCE = 0.95
RESOLUTION = 1e-9  # nats: below this, floating point and not a seed makes the difference
SAME = 0.01  # nats: two losses that differ by less than this are the same for any purpose that we know of
POWER = 0.8  # of the effect that a study is said to find
UNEQUAL = 0.02  # of p: noise that is equal is called unequal in 3 to 4 of 100 studies, because variances are judged by few runs
DRAWS = 100_000  # of the largest t statistic of a family; its 95 % point is then right to half a percent

Verdict = Literal["lower", "higher", "equivalent", "unclear", "untested", "unknown"]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; without an interval nothing is claimed about it.

    Attributes:
        value, low, high: in the unit of the metric; low and high are None where the runs cannot tell how sure they are,
            and value is not a number where they cannot tell it at all (two variants that share no seed).
        neutral: what it is where nothing differs: 0 for a difference, 1 for a ratio.
        margin: what lies within this of neutral is no difference that matters; None: any may matter.
        detectable: the smallest true difference that four of five such studies would find.
    """

    value: float
    low: float | None = None
    high: float | None = None
    neutral: float = 0.0
    margin: float | None = None
    detectable: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What may be said of it. Every comparing sentence of a report depends on this and on nothing else."""
        if math.isnan(self.value):
            return "unknown"
        if self.low is None or self.high is None:
            return "untested"
        if self.high < self.neutral or self.low > self.neutral:
            return "lower" if self.high < self.neutral else "higher"
        inside = self.margin is not None and max(self.high - self.neutral, self.neutral - self.low) <= self.margin
        return "equivalent" if inside else "unclear"

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval, and the neutral value is not in it."""
        return self.verdict in ("lower", "higher")


class Fit:
    """metric = variant + seed + noise.

    Args:
        names: the variants, in the order of a contrast's weights.
        variants, seeds, values: of each run.
        groups: other ways to group the variants, in which noise may differ: name -> the variants in it.
        with_seeds: False leaves the seeds in the noise.
    """

    def __init__(
        self,
        names: Sequence[str],
        variants: Sequence[str],
        seeds: Sequence[int],
        values: Sequence[float],
        groups: Mapping[str, set[str]] | None = None,
        with_seeds: bool = True,
    ):
        self.names, self.variants, self.groups = list(names), np.array(variants), groups or {}
        ordered = sorted(set(seeds)) if with_seeds else []
        columns = [(self.variants == name).astype(float) for name in names]
        # Sum-to-zero coding: a variant's coefficient is its mean over all seeds of the study.
        blocks = [[float(seed == s) - float(seed == ordered[-1]) for seed in seeds] for s in ordered[:-1]]
        design, metric = np.array([*columns, *blocks], dtype=float).T, np.array(values, dtype=float)
        with warnings.catch_warnings():
            # Not every study can tell variants and seeds apart; `estimates` finds out what it can.
            warnings.filterwarnings("ignore", message=".*rank-deficient")
            self.ols = sm.OLS(metric, design).fit()
            nothing = np.column_stack([np.ones(len(values)), *blocks])
            self.without_variants = sm.OLS(metric, nothing).fit()
        self.freedom = int(self.ols.df_resid)
        self.variance = float(self.ols.scale) if self.freedom > 0 else math.nan  # of what variant and seed leave unexplained
        self.projection = np.linalg.pinv(design) @ design
        self.covariance = np.linalg.pinv(design.T @ design)
        hat = design @ self.covariance @ design.T
        own = np.array([self.variants == name for name in names], dtype=float)
        self.freedom_of = own @ (1 - np.diag(hat))  # each variant's share of the degrees of freedom
        self.squares_of = own @ np.asarray(self.ols.resid) ** 2
        # What each variant's noise adds to the expected squares of each: a seed's mean carries noise of one to all others.
        self.leakage = own @ (np.eye(len(values)) - hat) ** 2 @ own.T

    @property
    def noise(self) -> float:
        """Standard deviation of what variant and seed leave unexplained."""
        return math.sqrt(self.variance)

    @cached_property
    def any_difference(self) -> bool:
        """Whether the F test finds a difference among the variants."""
        with np.errstate(divide="ignore", invalid="ignore"):
            _, p, _ = self.ols.compare_f_test(self.without_variants)
        return self.ols.ssr <= len(self.variants) * RESOLUTION**2 or bool(p < 1 - CONFIDENCE)

    @cached_property
    def unequal(self) -> str | None:
        """The group of variants whose noise differs from that of the rest (Bartlett's test), if there is one."""
        found = {}
        for group, members in self.groups.items():
            inside = np.array([name in members for name in self.names], dtype=float)
            split = np.array([inside, 1 - inside])
            if (p := _bartlett(self.noise_in(split), split @ self.freedom_of)) is not None:
                found[group] = p * len(self.groups)
        return min((group for group in found if found[group] < UNEQUAL), key=lambda group: found[group], default=None)

    @cached_property
    def split(self) -> np.ndarray:
        """[groups, variants]: those whose noise is taken to be alike."""
        members = self.groups.get(self.unequal, set()) if self.unequal else set()
        kinds = [name if name in self.two_kinds else name in members for name in self.names]
        return np.array([[kind == k for kind in kinds] for k in dict.fromkeys(kinds)], dtype=float)

    @cached_property
    def two_kinds(self) -> list[str]:
        """Variants whose own runs differ far more from each other than those of all others do: runs of two kinds, as of a model
        that has learned something suddenly in some of them. Their mean describes no run."""
        found = []
        for n, name in enumerate(self.names):
            freedom, rest = self.freedom_of[n], self.freedom - self.freedom_of[n]
            squares, others = self.squares_of[n], self.ols.ssr - self.squares_of[n]
            if freedom < 0.5 or rest < 2 or squares / freedom < SAME**2:
                continue
            ratio = squares / freedom / max(others / rest, RESOLUTION**2)
            if scipy.stats.f.sf(ratio, freedom, rest) * len(self.names) < 0.01:
                found.append(name)
        return found

    def unit(self, name: str) -> np.ndarray:
        """The contrast that is the mean of one variant."""
        return np.eye(len(self.names))[self.names.index(name)]

    def mean(self, weights: np.ndarray) -> float:
        """A weighted sum of the variants' means; not a number where the runs cannot tell it."""
        padded = np.concatenate((weights, np.zeros(len(self.ols.params) - len(weights))))
        return float(padded @ self.ols.params) if np.allclose(padded @ self.projection, padded) else math.nan

    def own_interval(self, weights: np.ndarray) -> Estimate:
        """The mean with an interval of its own, which makes no comparison."""
        value = self.mean(weights)
        if self.freedom < 1:
            return Estimate(value)
        (error,), (freedom,) = self._errors(weights[None])
        half = max(RESOLUTION, error * scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
        return Estimate(value, value - half, value + half)

    def from_zero(self, family: np.ndarray) -> list[Estimate]:
        """Weighted sums of the variants' means, with intervals that hold all at once; of a metric that is itself a difference, so
        that zero means something for each of them, and no F test among variants has to come first.

        Args:
            family: [sums, variants], the weights.
        """
        family = np.pad(family, ((0, 0), (0, len(self.ols.params) - len(self.names))))
        values = (family @ self.ols.params).tolist()
        if self.freedom < 1:
            return [Estimate(value) for value in values]
        errors, freedoms = self._errors(family)
        halves = np.maximum(self._critical(family, freedoms) * errors, RESOLUTION).tolist()
        return [Estimate(value, value - half, value + half) for value, half in zip(values, halves, strict=True)]

    def estimates(self, contrasts: Sequence[np.ndarray], margin: float | None = None) -> list[Estimate]:
        """Weighted sums of the variants' means, with intervals that hold all at once."""
        padded = [np.concatenate((weights, np.zeros(len(self.ols.params) - len(weights)))) for weights in contrasts]
        known = [bool(np.allclose(weights @ self.projection, weights)) for weights in padded]
        values = [self.mean(weights) for weights in contrasts]
        if self.freedom < 1:
            return [Estimate(value, margin=margin) for value in values]
        family = np.array([weights for weights, k in zip(padded, known, strict=True) if k])
        ends = iter(self._half_widths(family) if len(family) else [])
        found = []
        for value, k in zip(values, known, strict=True):
            half, detectable = next(ends) if k else (None, None)
            low, high = (None, None) if half is None else (value - max(half, RESOLUTION), value + max(half, RESOLUTION))
            found.append(Estimate(value, low, high, margin=margin, detectable=detectable))
        return found

    def _half_widths(self, family: np.ndarray) -> list[tuple[float, float]]:
        """Of the interval of each contrast of a family, and the smallest effect that most such studies would find."""
        errors, freedoms = self._errors(family)
        covariance, critical = family @ self.covariance @ family.T, self._critical(family, freedoms)
        found = errors * (critical + scipy.stats.t.ppf(POWER, freedoms))
        if not self.any_difference:
            critical = np.maximum(critical, self._scheffe * np.sqrt(np.diag(covariance) * self.variance) / errors)
        return list(zip((critical * errors).tolist(), found.tolist(), strict=True))

    def _critical(self, family: np.ndarray, freedoms: np.ndarray) -> np.ndarray:
        """How many standard errors an interval of each contrast is wide to either side, so that all hold at once."""
        if len(self.split) == 1:
            return np.full(len(family), largest_t(family @ self.covariance @ family.T, self.freedom))
        return scipy.stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / len(family), freedoms)  # Bonferroni's

    def _errors(self, family: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors of contrasts and their degrees of freedom; where noise is unequal, Welch's and Satterthwaite's."""
        weights = family @ self.covariance[: family.shape[1]] @ self.ols.model.exog.T  # of the runs
        of_group = self.split @ (self.variants == np.array(self.names)[:, None])
        parts = weights**2 @ of_group.T * self.noise_in(self.split)
        variances = parts.sum(1)
        freedoms = variances**2 / np.maximum((parts**2 / np.maximum(self.split @ self.freedom_of, 0.5)).sum(1), 1e-300)
        return np.sqrt(variances), np.where(variances > 0, freedoms, self.freedom)

    @property
    def _scheffe(self) -> float:
        rank = self.ols.df_model - self.without_variants.df_model
        return math.sqrt(rank * scipy.stats.f.ppf(CONFIDENCE, rank, self.freedom))

    def noise_in(self, split: np.ndarray) -> np.ndarray:
        """The variance of the noise in each group of variants, so that their squares come out as expected; in a group without a
        repetition that of all. Not below a tenth of what its own squares say.

        Args:
            split: [groups, variants], 1 where a variant is in a group.
        """
        squares, freedoms = split @ self.squares_of, split @ self.freedom_of
        if len(split) == 1:
            return np.array([self.variance])
        plain = np.where(freedoms > 0.1, squares / np.maximum(freedoms, 0.1), self.variance)
        found = np.linalg.lstsq(split @ self.leakage @ split.T, squares, rcond=None)[0]
        return np.where(freedoms > 0.1, np.maximum(found, 0.1 * plain), plain)


def largest_t(covariance: np.ndarray, freedom: int) -> float:
    """The 95 % point of the largest absolute value of t statistics whose numerators have this covariance (up to a factor) and
    whose noise has so many degrees of freedom."""
    deviations = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviations, deviations)
    return _largest_t(tuple(map(tuple, np.round(correlation, 6))), freedom)


@lru_cache
def _largest_t(correlation: tuple[tuple[float, ...], ...], freedom: int) -> float:
    if len(correlation) == 1:
        return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    random = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(np.array(correlation))
    draws = random.standard_normal((DRAWS, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    draws /= np.sqrt(random.chisquare(freedom, (DRAWS, 1)) / freedom)
    return float(np.quantile(np.abs(draws).max(1), CONFIDENCE))


def _bartlett(variances: np.ndarray, freedoms: np.ndarray) -> float | None:
    """The p value of Bartlett's test that these are equal; None where it cannot be made."""
    variances, freedoms = variances[freedoms > 0.5], freedoms[freedoms > 0.5]
    if len(variances) < 2 or not (variances > RESOLUTION**2).all():
        return None
    total, k = freedoms.sum(), len(variances)
    statistic = total * math.log((variances * freedoms).sum() / total) - (freedoms * np.log(variances)).sum()
    correction = 1 + ((1 / freedoms).sum() - 1 / total) / (3 * (k - 1))
    return float(scipy.stats.chi2.sf(statistic / correction, k - 1))
