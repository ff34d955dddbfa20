"""Attention forward and backward against the length of the text: does a window's cost grow as it should?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpt2_ablate.benchmarks.timing import rates, ratio, report_round, take_turns
from gpt2_ablate.ops.attention import attention
from gpt2_ablate.ops.mask import AttentionMask
from gpt2_ablate.utils.system import current_bytes, peak_bytes, synchronise

OnProgress = Callable[[str], None]
TOKENS = 16384  # in each turn, as one long text or several short ones: turns take alike long, and less is left to chance
SDPA = "torch's SDPA, causal"


def patterns(n_head: int) -> dict[str, AttentionMask]:
    """What is compared: names as the report shows them."""
    half = (1,) * (n_head - n_head // 2) + (2,) * (n_head // 2)
    return {
        "full": AttentionMask(),
        "window 128": AttentionMask(window=128),
        "window 512": AttentionMask(window=512),
        "window 128, half the heads dilated by 2": AttentionMask(window=128, dilation=half),
        "window 512, half the heads dilated by 2": AttentionMask(window=512, dilation=half),
        "window 128, 1 global token": AttentionMask(window=128, global_tokens=(0,)),
    }


def attention_speeds(
    n_head: int, head_dim: int, lengths: list[int], rounds: int, device_name: str, on_progress: OnProgress
) -> dict[str, Any]:
    """Seconds per token of every pattern at every length, in bf16, and how they grow.

    Returns:
        "seconds_per_token": pattern -> length -> median, low, high; "times_sdpa": pattern -> length -> how many times
        faster than torch's full causal attention; "exponent": pattern -> p of time ~ length ** p (1 is linear), fitted
        from 1,024 tokens on.
    """
    device = torch.device(device_name)
    seconds_per_token: dict[str, dict[str, Any]] = {}
    times_sdpa: dict[str, dict[str, Any]] = {}
    for length in lengths:
        turns = {name: _turn(pattern, n_head, head_dim, length, device) for name, pattern in patterns(n_head).items()}
        turns[SDPA] = _turn(None, n_head, head_dim, length, device)
        seconds = take_turns(turns, device, rounds, 1, partial(report_round, on_progress, f"attention, {length:,} tokens"))
        tokens = _texts(length) * length
        for name, own in seconds.items():
            speed = rates(own, tokens)
            per_token = {"median": 1 / speed["median"], "low": 1 / speed["high"], "high": 1 / speed["low"]}
            seconds_per_token.setdefault(name, {})[str(length)] = per_token
            times_sdpa.setdefault(name, {})[str(length)] = ratio(own, seconds[SDPA])
    return {
        "seconds_per_token": seconds_per_token, "times_sdpa": times_sdpa,
        "exponent": {name: _exponent(by_length) for name, by_length in seconds_per_token.items()},
    }  # fmt: skip


def attention_peak(n_head: int, head_dim: int, name: str, length: int, device_name: str, on_progress: OnProgress) -> int:
    """Bytes that one text's forward and backward pass add at their peak; call it in a fresh process."""
    on_progress(f"memory of {name}, {length:,} tokens")
    device = torch.device(device_name)
    _turn(patterns(n_head)[name], n_head, head_dim, 1024, device, texts=1)()  # libraries warm up
    before = current_bytes(device)
    _turn(patterns(n_head)[name], n_head, head_dim, length, device, texts=1)()
    synchronise(device)
    return max(0, peak_bytes(device) - before)


def _texts(length: int) -> int:
    return max(1, TOKENS // length)


def _turn(
    pattern: AttentionMask | None, n_head: int, head_dim: int, length: int, device: torch.device, texts: int | None = None
) -> Callable[[], None]:
    """One forward and backward pass; None is torch's own causal attention."""
    shape = (texts or _texts(length), n_head, length, head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    upstream = torch.randn(shape, device=device, dtype=torch.bfloat16)

    def turn() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True) if pattern is None else attention(q, k, v, pattern)
        torch.autograd.grad(y, (q, k, v), upstream)

    return turn


def _exponent(by_length: dict[str, dict[str, float]]) -> float | None:
    points = [(int(length), int(length) * entry["median"]) for length, entry in by_length.items() if int(length) >= 1024]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])
