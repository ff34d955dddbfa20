"""A whole training step (forward, backward, clip, AdamW) beside that of transformers, at the same size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpt2_ablate.benchmarks import hf_baseline
from gpt2_ablate.benchmarks.timing import OnProgress, rates, ratio, time_interleaved
from gpt2_ablate.evaluation.flops import training_flops_per_token
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.utils import system
from gpt2_ablate.weights.export import architecture_of

RATIOS = {
    "ratio": ("ours", "transformers"),
    "kept_ratio": ("ours", "transformers kept"),
    "compiled_ratio": ("compiled", "ours"),
    "compiled_against_transformers": ("compiled", "transformers"),
}


def training_step(
    config: GPT2Config, batch_size: int, precision: str, device: torch.device, compiled: bool = False
) -> Callable[[], None]:
    """A function that does one step of a new model of ours on one batch of random tokens."""
    model = GPT2(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(config.vocab_size, (batch_size, config.block_size), device=device)
    loss_of = torch.compile(model.loss) if compiled else model.loss

    def step() -> None:
        with system.autocast(precision, device):
            loss = loss_of(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def training_speeds(
    fields: dict[str, Any], batch_size: int, compiled: bool, rounds: int, device: torch.device, on_progress: OnProgress
) -> dict[str, Any]:
    """tokens/s of our step and of transformers' for the same model, and our share of the matrix-product peak.

    The peak is measured in the same rounds as the steps: a shared machine is not equally fast at all times.

    Args:
        fields: of the GPT2Config; with rotary positions the baseline is Starcoder2, else GPT-2.
        compiled: also time our step under torch.compile, its warm-up counted apart.
    """
    config, precision = GPT2Config(**fields), system.auto_precision()
    a = system.random_square(torch.bfloat16 if precision == "bf16-mixed" else torch.float32, device)
    hf_step = hf_baseline.training_step(config, batch_size, device)
    candidates: dict[str, Callable[[], object]] = {
        "ours": partial(_run, training_step(config, batch_size, precision, device), True),
        "transformers": partial(_run, hf_step, False),
        "transformers kept": partial(_run, hf_step, True),
        "matmul": lambda: a @ a,
    }
    tokens = batch_size * config.block_size
    flops = training_flops_per_token(config, config.block_size) * tokens
    result: dict[str, Any] = {"architecture": architecture_of(config).class_name, "flops_per_step": flops}
    if compiled:
        candidates["compiled"] = partial(_run, training_step(config, batch_size, precision, device, compiled=True), True)
        first = time_interleaved({"compiled": candidates["compiled"]}, device, rounds=1, warm_up=0)
        result["compile_seconds"] = first["compiled"][0]
    seconds = time_interleaved(candidates, device, rounds, "training steps", on_progress)
    result |= {name: rates(seconds[name], tokens) for name in candidates if name != "matmul"}
    result |= {name: ratio(seconds[own], seconds[other]) for name, (own, other) in RATIOS.items() if own in seconds}
    return {**result, "share_of_peak": ratio(seconds["ours"], seconds["matmul"], flops / (2 * len(a) ** 3))}


def _run(step: Callable[[], None], keep: bool) -> None:
    """With freed memory kept or not: ours keeps it in training, transformers documents nothing of the kind."""
    system.keep_freed_memory(keep)
    step()


def training_peak(
    fields: dict[str, Any], batch_size: int, side: str, device: torch.device, on_progress: OnProgress
) -> dict[str, int]:
    """`peak_memory` of a step of one side, "ours" or "transformers"."""
    config = GPT2Config(**fields)
    with torch.device("meta"):
        hf_baseline.build(config)  # both sides pay for the same imports before counting begins
    on_progress(f"peak memory of {side}")
    system.keep_freed_memory(side == "ours")
    if side == "ours":
        return peak_memory(lambda: training_step(config, batch_size, system.auto_precision(), device), device)
    return peak_memory(lambda: hf_baseline.training_step(config, batch_size, device), device)


def peak_memory(make_step: Callable[[], Callable[[], None]], device: torch.device) -> dict[str, int]:
    """Bytes that making a step and doing it three times adds at its peak, and that the whole process then takes.

    Call it in a fresh process: on a CPU the peak of a process never falls.
    """
    before = system.current_bytes(device)
    step = make_step()
    for _ in range(3):
        step()
    system.synchronise(device)
    peak = system.peak_bytes(device)
    return {"added": peak - before, "process": peak}
