"""A whole training step (forward, backward, clip, AdamW) beside that of transformers, at the same size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpt2_ablate.benchmarks import hf_baseline
from gpt2_ablate.benchmarks.speed import training_step
from gpt2_ablate.benchmarks.timing import rates, ratio, report_round, take_turns
from gpt2_ablate.evaluation.flops import training_flops_per_token
from gpt2_ablate.model import GPT2Config
from gpt2_ablate.utils.system import auto_precision, current_bytes, keep_freed_memory, peak_bytes, random_square, synchronise

OnProgress = Callable[[str], None]


def training_speeds(
    config: dict[str, Any], batch_size: int, compiled: bool, rounds: int, device_name: str, on_progress: OnProgress
) -> dict[str, Any]:
    """tokens/s of our step and of transformers' for the same model, and our share of the matrix-product peak.

    The peak is measured in turns with the steps: a shared machine is not equally fast at all times.

    Args:
        config: fields of the GPT2Config; with rotary positions the other side is Starcoder2, else GPT-2.
        compiled: also time our step under torch.compile, its warm-up counted apart.
    """
    ours, device, precision = GPT2Config(**config), torch.device(device_name), auto_precision()
    a = random_square(torch.bfloat16 if precision == "bf16-mixed" else torch.float32, device)
    other = hf_baseline.training_step(ours, batch_size, device)
    turns = {
        "ours": _keeping(training_step(ours, batch_size, precision, device), True),
        "transformers": _keeping(other, False),
        "transformers kept": _keeping(other, True),
        "matmul": lambda: a @ a,
    }
    result: dict[str, Any] = {}
    if compiled:
        turns["compiled"] = _keeping(training_step(ours, batch_size, precision, device, compiled=True), True)
        first = take_turns({"compiled": turns["compiled"]}, device, 1, 0)
        result["compile_seconds"] = first["compiled"][0]
    seconds = take_turns(turns, device, rounds, on_progress=partial(report_round, on_progress, "training steps"))
    tokens = batch_size * ours.block_size
    flops = training_flops_per_token(ours, ours.block_size) * tokens
    result |= {name: rates(seconds[name], tokens) for name in turns if name != "matmul"}
    result["ratio"] = ratio(seconds["ours"], seconds["transformers"])
    result["kept_ratio"] = ratio(seconds["ours"], seconds["transformers kept"])
    result["share_of_peak"] = ratio(seconds["ours"], seconds["matmul"], flops / (2 * len(a) ** 3))
    if compiled:
        result["compiled_ratio"] = ratio(seconds["compiled"], seconds["ours"])
        result["compiled_against_transformers"] = ratio(seconds["compiled"], seconds["transformers"])
    return {**result, "architecture": hf_baseline.architecture(ours), "flops_per_step": flops}


def training_peak(
    config: dict[str, Any], batch_size: int, side: str, device_name: str, on_progress: OnProgress
) -> dict[str, int]:
    """Bytes that training adds at its peak, and that the whole process then takes; call it in a fresh process.

    Args:
        side: "ours" or "transformers".
    """
    ours, device = GPT2Config(**config), torch.device(device_name)
    hf_baseline.architecture(ours)  # both sides pay for the same imports before counting begins
    on_progress(f"peak memory of {side}")
    keep_freed_memory(side == "ours")
    before = current_bytes(device)
    step = (
        training_step(ours, batch_size, auto_precision(), device)
        if side == "ours"
        else hf_baseline.training_step(ours, batch_size, device)
    )
    for _ in range(3):
        step()
    synchronise(device)
    peak = peak_bytes(device)
    return {"added": peak - before, "process": peak}


def _keeping(step: Callable[[], None], keep: bool) -> Callable[[], None]:
    """The step with `keep_freed_memory` as its side has it: ours trains so, transformers documents nothing of the kind."""

    def kept() -> None:
        keep_freed_memory(keep)
        step()

    return kept
