"""Attention forward and backward against the length of the text: does a window's cost grow as it should?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from gpt2_ablate.benchmarks.timing import OnProgress, rates, ratio, time_interleaved
from gpt2_ablate.ops.attention import attention
from gpt2_ablate.ops.mask import AttentionMask
from gpt2_ablate.utils.system import current_bytes, peak_bytes, synchronise

TOKENS = 16384  # in each step, as one long text or several short ones: steps take alike long, and less is left to chance
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
    n_head: int, head_dim: int, lengths: list[int], rounds: int, device: torch.device, on_progress: OnProgress
) -> dict[str, Any]:
    """Seconds per token of every pattern at every length, in bf16, and how they grow.

    Returns:
        "seconds_per_token": pattern -> length -> median, low, high; "times_sdpa": pattern -> length -> how many times
        faster than torch's full causal attention; "exponent": pattern -> p of time ~ length ** p (1 is linear), fitted
        from 1,024 tokens on.
    """
    masks: dict[str, AttentionMask | None] = {**patterns(n_head), SDPA: None}
    seconds_per_token: dict[str, dict[str, Any]] = {name: {} for name in masks}
    times_sdpa: dict[str, dict[str, Any]] = {name: {} for name in masks}
    for length in lengths:
        texts = max(1, TOKENS // length)
        steps = {name: _step(mask, (texts, n_head, length, head_dim), device) for name, mask in masks.items()}
        seconds = time_interleaved(steps, device, rounds, f"attention, {length:,} tokens", on_progress, warm_up=1)
        for name, own in seconds.items():
            speed = rates(own, texts * length)
            per_token = {"median": 1 / speed["median"], "low": 1 / speed["high"], "high": 1 / speed["low"]}
            seconds_per_token[name][str(length)] = per_token
            times_sdpa[name][str(length)] = ratio(own, seconds[SDPA])
    exponents = {name: _exponent(by_length) for name, by_length in seconds_per_token.items()}
    return {"seconds_per_token": seconds_per_token, "times_sdpa": times_sdpa, "exponent": exponents}


def attention_peak(n_head: int, head_dim: int, name: str, length: int, device: torch.device, on_progress: OnProgress) -> int:
    """Bytes that one text's forward and backward pass add at their peak; call it in a fresh process."""
    on_progress(f"memory of {name}, {length:,} tokens")
    mask = patterns(n_head)[name]
    _step(mask, (1, n_head, 1024, head_dim), device)()  # libraries warm up
    before = current_bytes(device)
    _step(mask, (1, n_head, length, head_dim), device)()
    synchronise(device)
    return max(0, peak_bytes(device) - before)


def _step(mask: AttentionMask | None, shape: tuple[int, ...], device: torch.device) -> Callable[[], None]:
    """One forward and backward pass of queries, keys and values [B, H, T, D]; None is torch's own causal attention."""
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    upstream = torch.randn(shape, device=device, dtype=torch.bfloat16)

    def step() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True) if mask is None else attention(q, k, v, mask)
        torch.autograd.grad(y, (q, k, v), upstream)

    return step


def _exponent(by_length: dict[str, dict[str, float]]) -> float | None:
    points = [(math.log(n), math.log(n * by_length[str(n)]["median"])) for n in map(int, by_length) if n >= 1024]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None
