"""How fast variants run and how much memory they take, measured apart from training, with nothing else going on.

Speeds compare only within one process run: machines are shared, and what one run measures at noon another does not at
night. So all variants are built first and take turns, and medians are given with their spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from gpt2_ablate.machine import autocast, current_bytes, peak_bytes, synchronise
from gpt2_ablate.model import GPT2, GPT2Config, KVCache

WARM_UP, ROUNDS = 2, 11
DECODED = 32  # tokens
REFERENCE = "baseline"

Speed = dict[str, float]


def training_speed(
    configs: dict[str, GPT2Config], batch_size: int, precision: str, device: torch.device, tell: Callable[[int, int], None]
) -> dict[str, Speed]:
    """Speed of a whole training step (forward, backward, clip, AdamW) of each variant, see `_speeds`."""
    steps = {name: _training_step(config, batch_size, precision, device) for name, config in configs.items()}
    tokens = {name: batch_size * config.block_size for name, config in configs.items()}
    return _speeds(_take_turns(steps, device, tell), tokens)


def decoding_speed(configs: dict[str, GPT2Config], device: torch.device, tell: Callable[[int, int], None]) -> dict[str, Speed]:
    """Speed of generating one text with the cache nearly full: block_size - 32 tokens are read, 32 more generated.

    Reading is not part of the time. Returned as `_speeds` says.
    """
    turns = {name: _decoding(config, device) for name, config in configs.items()}
    return _speeds(_take_turns(turns, device, tell), {name: _decoded(config) for name, config in configs.items()})


def training_memory(config: GPT2Config, batch_size: int, precision: str, device: torch.device) -> int:
    """Bytes that training one variant adds to the process (CPU) or takes on the device (CUDA), at their peak.

    Call it in a fresh process: on a CPU the peak of a process never falls.
    """
    before = current_bytes(device)
    step = _training_step(config, batch_size, precision, device)
    for _ in range(3):
        step()
    synchronise(device)
    return peak_bytes(device) - before


def _training_step(config: GPT2Config, batch_size: int, precision: str, device: torch.device) -> Callable[[], None]:
    model = GPT2(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(config.vocab_size, (batch_size, config.block_size), device=device)

    def step() -> None:
        with autocast(precision, device):
            loss = model.loss(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _decoding(config: GPT2Config, device: torch.device) -> Callable[[], None]:
    model = GPT2(config).to(device).eval()
    prompt = torch.randint(config.vocab_size, (1, config.block_size - _decoded(config)), device=device)
    cache = KVCache(config, device=device)
    with torch.inference_mode():
        model.hidden(prompt, cache)
    start = [(layer.seen, layer.positions.clone()) for layer in cache.layers]

    @torch.inference_mode()
    def decode() -> None:
        # Wind the cache back to the end of the prompt; which keys it holds does not matter to the time.
        for layer, (seen, positions) in zip(cache.layers, start, strict=True):
            layer.seen = seen
            layer.positions.copy_(positions)
        new = prompt[:, -1:]
        for _ in range(_decoded(config)):
            new = model.head(model.hidden(new, cache)[:, -1]).argmax(-1, keepdim=True)

    return decode


def _decoded(config: GPT2Config) -> int:
    """How many tokens are generated: there has to be room for them behind a prompt of one at least."""
    return min(DECODED, config.block_size - 1)


def _take_turns(
    turns: dict[str, Callable[[], None]], device: torch.device, tell: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Seconds of every measured turn, one turn of each in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for n in range(WARM_UP + ROUNDS):
        for name, turn in turns.items():
            synchronise(device)
            start = time.perf_counter()
            turn()
            synchronise(device)
            if n >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
        tell(n + 1, WARM_UP + ROUNDS)
    return seconds


def _speeds(seconds: dict[str, list[float]], tokens: dict[str, int]) -> dict[str, Speed]:
    """name -> tokens_per_second (median of the rounds) with its quartiles _low and _high; and speed_ratio, the median of the
    rounds' ratios to the baseline (or else the first variant), with the smallest and the largest as _low and _high: the
    range of n rounds misses their true median once in 2^(n - 1) times."""
    reference = REFERENCE if REFERENCE in seconds else next(iter(seconds))
    base = [tokens[reference] / s for s in seconds[reference]]
    found = {}
    for name, own in seconds.items():
        speeds = [tokens[name] / s for s in own]
        low, median, high = statistics.quantiles(speeds, n=4)
        ratios = [speed / other for speed, other in zip(speeds, base, strict=True)]
        found[name] = {
            "tokens_per_second": median, "tokens_per_second_low": low, "tokens_per_second_high": high,
            "speed_ratio": statistics.median(ratios), "speed_ratio_low": min(ratios), "speed_ratio_high": max(ratios),
        }  # fmt: skip
    return found
