"""How fast the variants of a study run and how much memory they take, measured after training, with nothing else going on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpt2_ablate.benchmarks.decoding import greedy, read_weights_fast, take
from gpt2_ablate.benchmarks.timing import OnProgress, rates, ratio, time_interleaved
from gpt2_ablate.benchmarks.training import peak_memory, training_step
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.utils.system import auto_precision, keep_freed_memory, matmul_peak, release_freed_memory

ROUNDS = 11
DECODED = 32  # tokens
REFERENCE = "baseline"

Speeds = dict[str, dict[str, float]]


def speed(configs: dict[str, dict[str, Any]], batch_size: int, on_progress: OnProgress) -> Speeds:
    """Metrics of each variant: training and decoding tokens/s, see `_speeds`, and the machine's matrix-product peak."""
    models = {name: GPT2Config(**fields) for name, fields in configs.items()}
    device, precision = _device(), auto_precision()
    peak = matmul_peak(precision, device)
    training = training_speed(models, batch_size, precision, device, on_progress)
    decoding = decoding_speed(models, device, on_progress)
    return {name: {**training[name], **decoding[name], "matmul_peak_flops_per_second": peak} for name in configs}


def memory(config: dict[str, Any], batch_size: int, on_progress: OnProgress) -> int:
    """Bytes that the tensors in training one variant take at their peak; call it in a fresh process."""
    on_progress("memory")
    release_freed_memory()
    device = _device()
    return peak_memory(partial(training_step, GPT2Config(**config), batch_size, auto_precision(), device), device)["added"]


def training_speed(
    configs: dict[str, GPT2Config], batch_size: int, precision: str, device: torch.device, on_progress: OnProgress
) -> Speeds:
    """Speed of a whole training step of each variant, see `_speeds`."""
    keep_freed_memory()  # as training does
    steps = {name: training_step(config, batch_size, precision, device) for name, config in configs.items()}
    seconds = time_interleaved(steps, device, ROUNDS, "training speed", on_progress)
    return _speeds("training", seconds, {name: batch_size * config.block_size for name, config in configs.items()})


@torch.inference_mode()
def decoding_speed(configs: dict[str, GPT2Config], device: torch.device, on_progress: OnProgress) -> Speeds:
    """Speed of generating one text with the cache nearly full, see `_speeds`: of block_size tokens the last 32 are generated.

    Reading the others is not part of the time.
    """
    models = {name: GPT2(config).to(device).eval() for name, config in configs.items()}
    # There has to be room for a prompt of one token at least.
    tokens = {name: min(DECODED, config.block_size - 1) for name, config in configs.items()}
    with read_weights_fast(models.values(), batch_size=1):
        candidates = {name: _decoding(model, tokens[name]) for name, model in models.items()}
        seconds = time_interleaved(candidates, device, ROUNDS, "decoding speed", on_progress)
    return _speeds("decoding", seconds, tokens)


def _decoding(model: GPT2, new: int) -> Callable[[], None]:
    prompt = torch.randint(model.config.vocab_size, (1, model.config.block_size - new), device=model.device)
    filled = model.make_cache()
    model.hidden(prompt, filled)
    return lambda: take(greedy(model, prompt[:, -1:], copy.deepcopy(filled)), new)


def _speeds(what: str, seconds: dict[str, list[float]], tokens: dict[str, int]) -> Speeds:
    """name -> `what`_tokens_per_second (median of the rounds) with its quartiles _low and _high; and `what`_speed_ratio to the
    baseline (or else the first variant), with the smallest and the largest as _low and _high, see `ratio`."""
    reference = REFERENCE if REFERENCE in seconds else next(iter(seconds))
    found = {}
    for name, own in seconds.items():
        against = ratio(own, seconds[reference], tokens[name] / tokens[reference])
        metrics = {"tokens_per_second": rates(own, tokens[name]), "speed_ratio": against}
        ends = {"": "median", "_low": "low", "_high": "high"}
        found[name] = {f"{what}_{key}{end}": metric[of] for key, metric in metrics.items() for end, of in ends.items()}
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
