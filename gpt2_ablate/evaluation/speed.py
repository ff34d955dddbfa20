"""How fast variants run and how much memory they take, measured apart from training, with nothing else going on.

Speeds compare only within one process run: machines are shared, and what one run measures at noon another does not at
night. So all variants are built first and take turns, and medians are given with their spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import torch

from gpt2_ablate.machine import autocast, current_bytes, peak_bytes, synchronise
from gpt2_ablate.model import GPT2, GPT2Config, KVCache

WARM_UP, ROUNDS = 2, 7
DECODED = 32  # tokens

Spread = dict[str, float]


def training_speed(
    configs: dict[str, GPT2Config], batch_size: int, precision: str, device: torch.device, tell: Callable[[int, int], None]
) -> dict[str, Spread]:
    """Tokens/s of a whole training step (forward, backward, clip, AdamW) of each variant.

    Returns:
        name -> {"median", "low", "high"}: the median over rounds, and the quartiles.
    """
    steps = {name: _training_step(config, batch_size, precision, device) for name, config in configs.items()}
    tokens = {name: batch_size * config.block_size for name, config in configs.items()}
    return {name: _spread(tokens[name] / s for s in seconds) for name, seconds in _take_turns(steps, device, tell).items()}


def decoding_speed(
    configs: dict[str, GPT2Config], device: torch.device, tell: Callable[[int, int], None]
) -> dict[str, Spread]:
    """Tokens/s of generating one text with the cache nearly full: prompt of block_size - 32 tokens, 32 more decoded.

    The prompt is not part of the time. Returned as by `training_speed`.
    """
    turns = {name: _decoding(config, device) for name, config in configs.items()}
    return {name: _spread(DECODED / s for s in seconds) for name, seconds in _take_turns(turns, device, tell).items()}


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
    prompt = torch.randint(config.vocab_size, (1, max(1, config.block_size - DECODED)), device=device)
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
        for _ in range(min(DECODED, config.block_size - prompt.shape[1])):
            new = model.head(model.hidden(new, cache)[:, -1]).argmax(-1, keepdim=True)

    return decode


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


def _spread(values: Iterable[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high}
