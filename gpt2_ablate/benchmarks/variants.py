"""The dedicated pass after training: speed of all variants in one process, memory of each in its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpt2_ablate.benchmarks.speed import decoding_speed, training_memory, training_speed
from gpt2_ablate.model import GPT2Config
from gpt2_ablate.utils.system import auto_precision, matmul_peak


def speed(configs: dict[str, dict[str, Any]], batch_size: int, on_progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Metrics of each variant: training and decoding tokens/s with quartiles, and the machine's matrix-product peak."""
    models = {name: GPT2Config(**fields) for name, fields in configs.items()}
    device, precision = _device(), auto_precision()
    peak = matmul_peak(precision, device)
    training = training_speed(models, batch_size, precision, device, lambda n, of: on_progress(f"training speed, round {n}/{of}"))
    decoding = decoding_speed(models, device, lambda n, of: on_progress(f"decoding speed, round {n}/{of}"))
    return {
        name: {
            **{f"training_{key}": value for key, value in training[name].items()},
            **{f"decoding_{key}": value for key, value in decoding[name].items()},
            "matmul_peak_flops_per_second": peak,
        }
        for name in configs
    }


def memory(config: dict[str, Any], batch_size: int, on_progress: Callable[[str], None]) -> int:
    """Bytes that training the variant takes at its peak."""
    on_progress("memory")
    return training_memory(GPT2Config(**config), batch_size, auto_precision(), _device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
