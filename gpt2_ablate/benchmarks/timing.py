"""Timing candidates against each other: all of them warm, in one process, each once in every round.

Machines are shared, and what one run measures at noon another does not at night; but the ratio of two neighbours in one round
changes little. So ratios are taken within rounds, and medians are given with their intervals. What runs before a candidate leaves
it caches and clock rates of its own, so the order changes from round to round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import scipy.stats
import torch

from gpt2_ablate.utils.system import synchronise

OnProgress = Callable[[str], None]


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    what: str = "",
    on_progress: OnProgress = lambda text: None,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Seconds of each candidate in every round; `on_progress` is told of `what`, and the round, after each.

    Args:
        warm_up: rounds that come first and do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for n in range(warm_up + rounds):
        for name in balanced_order(list(candidates), n):
            synchronise(device)
            start = time.perf_counter()
            candidates[name]()
            synchronise(device)
            if n >= warm_up:
                seconds[name].append(time.perf_counter() - start)
        on_progress(f"{what}, round {n + 1}/{warm_up + rounds}")
    return seconds


def balanced_order(names: Sequence[str], n: int) -> list[str]:
    """Of round n: row n of Williams' square (1949, Australian Journal of Scientific Research 2, 149), in which each takes every
    place, and follows each other one, equally often: in so many rounds as there are names, or twice that where those are odd."""
    k = len(names)
    zigzag = [(j + 1) // 2 if j % 2 else k - j // 2 for j in range(k)]
    row = [names[(place + n) % k] for place in zigzag]
    return row[::-1] if k % 2 and n // k % 2 else row


def rates(seconds: list[float], amount: float) -> dict[str, float]:
    """amount / seconds: median, and the quartiles as low and high."""
    speeds = [amount / s for s in seconds]
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    return {"median": median, "low": low, "high": high}


def ratio(own: list[float], other: list[float], weight: float = 1.0) -> dict[str, float | None]:
    """How many times faster `own` is, times a weight: the median of the rounds' ratios with its 95 % interval.

    The interval is that of the sign test, two of the ordered ratios, whatever their distribution (scipy.stats.quantile_test); it
    has no ends with fewer than 6 rounds, of which even the smallest and the largest miss the median once in 16 times.
    """
    ratios = [weight * b / a for a, b in zip(own, other, strict=True)]
    interval = scipy.stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    low, high = (None if math.isnan(end) else float(end) for end in (interval.low, interval.high))
    return {"median": statistics.median(ratios), "low": low, "high": high}
