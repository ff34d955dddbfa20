"""Timing things against each other: all of them warm, in one process, a turn of each in every round.

Machines are shared, and what one run measures at noon another does not at night; but what two neighbours in one round have
to do with each other changes little. So ratios are taken within rounds, and medians are given with their spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from gpt2_ablate.utils.system import synchronise

Turns = Mapping[str, Callable[[], object]]


def take_turns(
    turns: Turns,
    device: torch.device,
    rounds: int,
    warm_up: int = 2,
    on_progress: Callable[[int, int], None] = lambda n, of: None,
) -> dict[str, list[float]]:
    """Seconds of every measured turn, one turn of each in every round.

    Args:
        warm_up: rounds that come first and do not count.
        on_progress: called after every round with its number and how many there are.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for n in range(warm_up + rounds):
        for name, turn in turns.items():
            synchronise(device)
            start = time.perf_counter()
            turn()
            synchronise(device)
            if n >= warm_up:
                seconds[name].append(time.perf_counter() - start)
        on_progress(n + 1, warm_up + rounds)
    return seconds


def rates(seconds: list[float], amount: float) -> dict[str, float]:
    """amount / seconds: median, and the quartiles as low and high."""
    speeds = [amount / s for s in seconds]
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    return {"median": median, "low": low, "high": high}


def ratio(ours: list[float], theirs: list[float], weight: float = 1.0) -> dict[str, float]:
    """How many times faster `ours` is, times a weight: the median of the rounds' ratios with their smallest and largest.

    The range of n rounds misses their true median once in 2^(n - 1) times.
    """
    ratios = [weight * b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def report_round(on_progress: Callable[[str], None], what: str, n: int, of: int) -> None:
    """What `take_turns` calls, with its first two arguments bound."""
    on_progress(f"{what}, round {n}/{of}")
