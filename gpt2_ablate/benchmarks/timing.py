"""Timing candidates against each other: all of them warm, in one process, each once in every round.

Machines are shared, and what one run measures at noon another does not at night; but the ratio of two neighbours in one round
changes little. So ratios are taken within rounds, and medians are given with their spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

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
        for name, run in candidates.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if n >= warm_up:
                seconds[name].append(time.perf_counter() - start)
        on_progress(f"{what}, round {n + 1}/{warm_up + rounds}")
    return seconds


def rates(seconds: list[float], amount: float) -> dict[str, float]:
    """amount / seconds: median, and the quartiles as low and high."""
    speeds = [amount / s for s in seconds]
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    return {"median": median, "low": low, "high": high}


def ratio(own: list[float], other: list[float], weight: float = 1.0) -> dict[str, float]:
    """How many times faster `own` is, times a weight: the median of the rounds' ratios with their smallest and largest.

    The range of n rounds misses their true median once in 2^(n - 1) times.
    """
    ratios = [weight * b / a for a, b in zip(own, other, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
