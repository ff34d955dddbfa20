"""What the machine itself can do: nothing that runs on it is faster than this."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from gpt2_ablate.benchmarks.timing import rates, report_round, take_turns
from gpt2_ablate.utils.system import random_square

OnProgress = Callable[[str], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def machine_limits(device_name: str, rounds: int, on_progress: OnProgress) -> dict[str, dict[str, float]]:
    """FLOP/s of large matrix products by dtype; bytes/s of copying (read and written) and of reading large tensors."""
    device = torch.device(device_name)
    size = 2**30 if device.type == "cuda" else 2**28
    turns: dict[str, Callable[[], object]] = {}
    for name, dtype in DTYPES.items():
        a = random_square(dtype, device)
        turns[name] = lambda a=a: a @ a  # type: ignore[misc]
    source, target = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    turns["copy"] = lambda: target.copy_(source)
    turns["read"] = lambda: source.sum()
    seconds = take_turns(turns, device, rounds, on_progress=partial(report_round, on_progress, "machine limits"))
    amounts = {**dict.fromkeys(DTYPES, 2.0 * len(a) ** 3), "copy": 2.0 * size, "read": 1.0 * size}
    return {name: rates(seconds[name], amounts[name]) for name in turns}
