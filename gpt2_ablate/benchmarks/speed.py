"""How fast variants run and how much memory they take, measured apart from training, with nothing else going on: all
variants are built first and take turns (see `gpt2_ablate.benchmarks.timing`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch

from gpt2_ablate.benchmarks.timing import rates, ratio, take_turns
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.ops.gemv import fast_gemv, is_profitable
from gpt2_ablate.utils.system import autocast, current_bytes, keep_freed_memory, peak_bytes, release_freed_memory, synchronise

ROUNDS = 11
DECODED = 32  # tokens
REFERENCE = "baseline"

Speed = dict[str, float]


def training_speed(
    configs: dict[str, GPT2Config], batch_size: int, precision: str, device: torch.device, on_progress: Callable[[int, int], None]
) -> dict[str, Speed]:
    """Speed of a whole training step (forward, backward, clip, AdamW) of each variant, see `_speeds`."""
    keep_freed_memory()  # as training does
    steps = {name: training_step(config, batch_size, precision, device) for name, config in configs.items()}
    tokens = {name: batch_size * config.block_size for name, config in configs.items()}
    return _speeds(take_turns(steps, device, ROUNDS, on_progress=on_progress), tokens)


def decoding_speed(
    configs: dict[str, GPT2Config], device: torch.device, on_progress: Callable[[int, int], None]
) -> dict[str, Speed]:
    """Speed of generating one text with the cache nearly full: block_size - 32 tokens are read, 32 more generated.

    Reading is not part of the time. Returned as `_speeds` says.
    """
    with ExitStack() as stack:
        turns = {name: _decoding(config, device, stack) for name, config in configs.items()}
        seconds = take_turns(turns, device, ROUNDS, on_progress=on_progress)
    return _speeds(seconds, {name: _decoded(config) for name, config in configs.items()})


def training_memory(config: GPT2Config, batch_size: int, precision: str, device: torch.device) -> int:
    """Bytes that the tensors in training one variant take at their peak.

    Call it in a fresh process: on a CPU the peak of a process never falls.
    """
    release_freed_memory()
    before = current_bytes(device)
    step = training_step(config, batch_size, precision, device)
    for _ in range(3):
        step()
    synchronise(device)
    return peak_bytes(device) - before


def training_step(
    config: GPT2Config, batch_size: int, precision: str, device: torch.device, compiled: bool = False
) -> Callable[[], None]:
    """A function that does one step (forward, backward, clip, AdamW) of a new model on one batch of random tokens."""
    model = GPT2(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(config.vocab_size, (batch_size, config.block_size), device=device)
    loss_of = torch.compile(model.loss) if compiled else model.loss

    def step() -> None:
        with autocast(precision, device):
            loss = loss_of(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _decoding(config: GPT2Config, device: torch.device, stack: ExitStack) -> Callable[[], None]:
    model = GPT2(config).to(device).eval()
    if is_profitable(model, 1, DECODED):  # as `generate` does
        stack.enter_context(fast_gemv())
    prompt = torch.randint(config.vocab_size, (1, config.block_size - _decoded(config)), device=device)
    filled = model.make_cache()
    with torch.inference_mode():
        model.hidden(prompt, filled)

    @torch.inference_mode()
    def decode() -> None:
        cache, new = copy.deepcopy(filled), prompt[:, -1:]
        for _ in range(_decoded(config)):
            new = model.embedding.logits(model.hidden(new, cache)[:, -1]).argmax(-1, keepdim=True)

    return decode


def _decoded(config: GPT2Config) -> int:
    """How many tokens are generated: there has to be room for them behind a prompt of one at least."""
    return min(DECODED, config.block_size - 1)


def _speeds(seconds: dict[str, list[float]], tokens: dict[str, int]) -> dict[str, Speed]:
    """name -> tokens_per_second (median of the rounds) with its quartiles _low and _high; and speed_ratio, the median of the
    rounds' ratios to the baseline (or else the first variant), with the smallest and the largest as _low and _high: the
    range of n rounds misses their true median once in 2^(n - 1) times."""
    reference = REFERENCE if REFERENCE in seconds else next(iter(seconds))
    found = {}
    for name, own in seconds.items():
        speed = rates(own, tokens[name])
        against = ratio(own, seconds[reference], tokens[name] / tokens[reference])
        found[name] = {
            "tokens_per_second": speed["median"],
            "tokens_per_second_low": speed["low"],
            "tokens_per_second_high": speed["high"],
            "speed_ratio": against["median"],
            "speed_ratio_low": against["low"],
            "speed_ratio_high": against["high"],
        }
    return found
