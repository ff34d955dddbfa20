"""What the machine itself can do: nothing that runs on it is faster than this."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from gpt2_ablate.benchmarks.timing import OnProgress, rates, time_interleaved
from gpt2_ablate.utils.system import random_square


def machine_limits(device: torch.device, rounds: int, on_progress: OnProgress) -> dict[str, dict[str, float]]:
    """FLOP/s of large matrix products by dtype; bytes/s of copying (read and written) and of reading large tensors."""
    size = 2**30 if device.type == "cuda" else 2**28
    source, target = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    squares = {name: random_square(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    candidates: dict[str, Callable[[], object]] = {name: partial(torch.matmul, a, a) for name, a in squares.items()}
    candidates |= {"copy": partial(target.copy_, source), "read": source.sum}
    amounts = {name: 2.0 * len(a) ** 3 for name, a in squares.items()} | {"copy": 2.0 * size, "read": 1.0 * size}
    seconds = time_interleaved(candidates, device, rounds, "machine limits", on_progress)
    return {name: rates(seconds[name], amount) for name, amount in amounts.items()}
