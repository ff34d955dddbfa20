"""The same runs at equal tokens, at equal FLOPs and in equal time; and how many times the baseline's training buys the same loss.

A run in the middle of its training is not the end of a shorter one: its learning rate has yet to fall, and it has fallen less so
far. So no loss is read off a curve. What a curve gives is a slope: by how many nats the *final* loss would be lower if training
were e times as long, schedule and all. It is that of the law of Tissue et al. (2408.11029), which fits the whole curve of a run,

    L(s) = a - g ln S1(s) - c S2(s),

where S1 is the sum of the learning rates up to step s, and S2 that of their falls, each of which goes on to work for some
thousand steps. (The paper has a power of S1; over the few steps that are used here a logarithm is as good, and can be fitted.)
Of a run whose rate is constant S2 is zero, and each loss is the final one of a shorter run.

Intervals hold for the slope being wrong by `TRUST` besides, and combine their parts end by end, so they are rather too wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import scipy.signal

from gpt2_ablate.records import Record, is_number
from gpt2_ablate.report import statistics
from gpt2_ablate.report.facts import EqualCost, EqualCosts, SpeedUp
from gpt2_ablate.report.statistics import BASELINE, Estimate, Runs

# The report's template has these numbers in words.
FIRST = 0.2  # of the training: before that a loss falls by other laws
POINTS = 6  # validations after it, at least
MEMORY = 0.999  # of how a fall of the rate works, what is left of it a step later
LONGER = 1.1  # by how much training is imagined to be longer
TRUST = 1.5  # in real trainings of 240 to 1,920 steps slopes were 0.7 to 1.2 times those of the final losses (single ones 0.6)
REACH = 3.0  # longer or shorter trainings than this are beyond the curves


def equal_costs(runs: Runs) -> EqualCosts:
    """What the finished runs of a study come to at equal cost, or why they cannot tell."""
    if reason := _obstacle(runs):
        return EqualCosts(reason, {}, {})
    of_run = {(run.variant, run.seed): final_slope(run) for run in runs}
    slopes = {name: _distrusted(e) for name, e in statistics.means(runs, lambda run: of_run[run.variant, run.seed]).items()}
    if not all(slope.low is not None and slope.low > 0 for slope in slopes.values()):
        return EqualCosts("slope", {}, {})
    costs = _costs(runs)
    found = {kind: _differences(runs, cost, slopes) for kind, cost in costs.items()}
    return EqualCosts("", slopes, {
        name: EqualCost(
            costs={kind: cost[name] for kind, cost in costs.items()},
            differences={kind: differences[name] for kind, differences in found.items()},
            speed_ups={
                kind: _speed_up(found["tokens"][name], slopes[name], slopes[BASELINE], cost[name])
                for kind, cost in costs.items() if kind != "tokens"
            },
        )
        for name in statistics.variants(runs) if name != BASELINE
    })  # fmt: skip


def _obstacle(runs: Runs) -> str:
    """Why these runs allow no such comparison; empty where they do."""
    names = {run.variant for run in runs}
    if BASELINE not in names or len(names) < 2:
        return "alone"
    if any("validation_loss_before" in run.metrics for run in runs):
        return "checkpoint"
    if statistics.fit(runs).freedom < 1 or any(math.isnan(e.value) for e in statistics.differences(runs).values()):
        return "seeds"
    if not all(is_number(flops := run.metrics.get("training_flops_per_token")) and flops > 0 for run in runs):
        return "costs"
    if not all(any(rate > 0 for _, rate in _points(run, "learning_rate")) for run in runs):
        return "schedule"
    return "points" if min(len(_used(run)) for run in runs) < POINTS else ""


def final_slope(run: Record) -> float:
    """By how many nats the final loss falls with each e-fold of training, near the length of this run."""
    rates = _rates(run)
    length, steps = round(LONGER * len(rates)), np.arange(1, len(rates) + 1)
    longer = np.interp(np.arange(1, length + 1) * len(rates) / length, steps, rates)
    s1, s2 = _areas(rates)
    ends = [areas[-1] for areas in _areas(longer)]
    used, losses = np.array(_used(run)).T
    at = used.astype(int) - 1
    design = np.column_stack([np.ones(len(at)), -np.log(s1[at]), -s2[at]])
    falls = s2[at[-1]] > 0.01 * s1[at[-1]]  # a trace of a fall would be fitted to noise
    a, g, *c = np.linalg.lstsq(design if falls else design[:, :2], losses, rcond=None)[0]
    gained = g * math.log(ends[0] / s1[-1]) + sum(c) * (ends[1] - s2[-1])
    return float(gained / math.log(length / len(rates)))


def _rates(run: Record) -> np.ndarray:
    """[steps]: the learning rate of each, as a share of the highest."""
    steps, rates = np.array([(0, 0.0), *_points(run, "learning_rate")]).T
    last = int(max(steps[-1], *(step for step, _ in _points(run, "validation")), 1))
    found = np.interp(np.arange(1, last + 1), steps, rates)
    return found / found.max()


def _areas(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 after each step."""
    falls = np.maximum(0, -np.diff(rates, prepend=rates[0]))
    return np.cumsum(rates), np.cumsum(scipy.signal.lfilter([1], [1, -MEMORY], falls))


def _used(run: Record) -> list[tuple[float, float]]:
    """The (step, loss) of the validations that the slope comes from: after the warm-up, and the first part of the training."""
    rates = _rates(run)
    first = max(FIRST * len(rates), int(rates.argmax()) + 1)
    return [(step, loss) for step, loss in _points(run, "validation") if step >= first]


def _points(run: Record, curve: str) -> list[tuple[float, float]]:
    """Those of a curve that are numbers."""
    return [(step, value) for step, value in run.curves.get(curve, []) if is_number(step) and is_number(value)]


def _distrusted(slope: Estimate) -> Estimate:
    low, high = (slope.value if end is None else end for end in (slope.low, slope.high))
    return Estimate(slope.value, low / TRUST, high * TRUST)


def _tokens(run: Record) -> float:
    """Of the whole training; in steps where the record does not say."""
    return len(_rates(run)) * (run.config.tokens_per_step or 1)


def _costs(runs: Runs) -> dict[str, dict[str, Estimate]]:
    """What a token of each variant costs as a multiple of the baseline's: in tokens (one), in FLOPs and, if measured, in time."""
    flops = statistics.by_variant(runs, "training_flops_per_token")
    found = {"tokens": dict.fromkeys(flops, _exactly(1.0)), "flops": {k: _exactly(v / flops[BASELINE]) for k, v in flops.items()}}
    speed, low, high = (statistics.by_variant(runs, f"training_speed_ratio{end}") for end in ("", "_low", "_high"))
    if speed.keys() == low.keys() == high.keys() == flops.keys() and min(low.values()) > 0:
        found["time"] = {k: Estimate(1 / speed[k], 1 / high[k], 1 / low[k], neutral=1.0) for k in speed}
    return found


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value, neutral=1.0)


def _differences(runs: Runs, costs: Mapping[str, Estimate], slopes: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Each variant's final loss minus the baseline's, had the dearer of the two cost what the cheaper did; intervals simultaneous
    (Dunnett)."""
    tokens, found = {run.variant: _tokens(run) for run in runs}, {}
    for name, e in statistics.differences(runs).items():
        (low, high), shift = _ends(e), _shift(tokens[name] / tokens[BASELINE], costs[name], slopes[name], slopes[BASELINE])
        below, above = _ends(shift)
        found[name] = Estimate(e.value + shift.value, low + below, high + above, margin=e.margin)
    return found


def _shift(length: float, cost: Estimate, slope: Estimate, baseline: Estimate) -> Estimate:
    """Nats by which the difference rises if the dearer training is cut: that of the variant, or else that of the baseline.

    Args:
        length: of the variant's training, in tokens, as a multiple of the baseline's.
    """

    def nats(multiple: float, along: tuple[float, float]) -> float:
        folds = math.log(length * multiple)
        return folds * along[0] if folds > 0 else folds * along[1]

    (cheap, dear), (flat, steep), (own_flat, own_steep) = _ends(cost), _ends(baseline), _ends(slope)
    return Estimate(
        nats(cost.value, (slope.value, baseline.value)), nats(cheap, (own_flat, steep)), nats(dear, (own_steep, flat))
    )


def _speed_up(difference: Estimate, slope: Estimate, baseline: Estimate, cost: Estimate) -> SpeedUp:
    """From a difference at equal tokens: the better of the two would have reached the final loss of the other with less training.

    Args:
        slope, baseline: along which a better variant goes back, and along which the baseline does.
        cost: of one of its tokens, as a multiple of the baseline's.
    """

    def folds(nats: float, end: int) -> float:
        along = slope if nats < 0 else baseline
        exact = -nats / (along.value, *_ends(along))[end]
        return float(np.clip(exact, -math.log(REACH), math.log(REACH)))

    low, high = _ends(difference)
    # A steep slope makes little of a difference, a flat one much: 1 is the flat end of a slope's interval, 2 the steep one.
    value, least, most = folds(difference.value, 0), folds(high, 2 if high < 0 else 1), folds(low, 1 if low < 0 else 2)
    cheap, dear = _ends(cost)
    ends = round(math.exp(least) / dear, 2), round(math.exp(most) / cheap, 2)
    return SpeedUp(
        Estimate(math.exp(value) / cost.value, *ends, neutral=1.0),
        beyond=tuple(abs(x) >= math.log(REACH) for x in (value, least, most)),
    )


def _ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high
