"""Speed and memory of all variants, measured with nothing else going on; once for the study and the benchmark report."""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpt2_ablate.benchmarks.decoding import greedy, read_weights_fast, take
from gpt2_ablate.benchmarks.timing import OnProgress, rates, ratio, time_interleaved
from gpt2_ablate.benchmarks.training import peak_memory, training_step
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.records import environment
from gpt2_ablate.utils import process
from gpt2_ablate.utils.system import auto_precision, keep_freed_memory, matmul_peak, release_freed_memory

MEASURE = __name__  # what children import
PROCESSES = 3  # that memory is measured in
ROUNDS = 12  # the 95 % interval of a median is then the third of the ordered ratios to the tenth
DECODED = 32  # tokens
REFERENCE = "baseline"

Configs = dict[str, dict[str, Any]]
Measured = dict[str, dict[str, Any]]


def measure(
    configs: Configs, batch_size: int, log: Path, on_progress: OnProgress, tick: Callable[[], None], processes: int = PROCESSES
) -> dict[str, Any]:
    """{"key", "variants": {name: metrics}} of these models: what they were measured for, and what was found.

    Args:
        processes: that the memory of each is measured in.

    Raises:
        process.Failure: one of them could not be measured.
    """
    call = partial(process.run_in_child, log=log, on_progress=on_progress, tick=tick)
    speeds = call(f"{MEASURE}:speed", configs, batch_size)
    for name, config in configs.items():
        # Each in a fresh process, because the peak of a process never falls; several, because it is never the same.
        peaks = sorted(call(f"{MEASURE}:memory", config, batch_size) for _ in range(processes))
        ends = {"": statistics.median(peaks), "_low": peaks[0], "_high": peaks[-1]}
        speeds[name] |= {f"training_peak_bytes{end}": value for end, value in ends.items()}
    return {"key": key_of(configs, batch_size, processes), "variants": speeds}


def file_of(out: Path, preset: str) -> Path:
    """Where the study of a preset keeps what it has measured."""
    return out / "checkpoints" / preset / "measurements.json"


def key_of(configs: Configs, batch_size: int, processes: int = PROCESSES) -> str:
    """Changes when what is measured does: the models, this code, its libraries or the machine."""
    models = {name: GPT2Config(**fields).to_dict() for name, fields in configs.items()}
    measured = [models, batch_size, processes, environment()]
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:16]


def earlier(file: Path, configs: Configs, batch_size: int, *path: str) -> Measured | None:
    """What was measured for these models, in a JSON file at this path of keys; None where it is not there, or not whole."""
    try:
        found = json.loads(file.read_text())
        for step in path:
            found = found[step]
        if found["key"] != key_of(configs, batch_size):
            return None
        return {name: {**found["variants"][name]} for name in configs}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def speed(configs: Configs, batch_size: int, on_progress: OnProgress) -> Measured:
    """Metrics of each variant: training and decoding tokens/s, see `_speeds`, and the machine's matrix-product peak."""
    models = {name: GPT2Config(**fields) for name, fields in configs.items()}
    device, precision = default_device(), auto_precision()
    peak = matmul_peak(precision, device)
    training = training_speed(models, batch_size, precision, device, on_progress)
    decoding = decoding_speed(models, device, on_progress)
    return {name: {**training[name], **decoding[name], "matmul_peak_flops_per_second": peak} for name in configs}


def memory(config: dict[str, Any], batch_size: int, on_progress: OnProgress) -> int:
    """Bytes that the tensors in training one variant take at their peak; call it in a fresh process."""
    on_progress("memory")
    release_freed_memory()
    device = default_device()
    return peak_memory(partial(training_step, GPT2Config(**config), batch_size, auto_precision(), device), device)["added"]


def training_speed(
    configs: dict[str, GPT2Config], batch_size: int, precision: str, device: torch.device, on_progress: OnProgress
) -> Measured:
    """Speed of a whole training step of each variant, see `_speeds`."""
    keep_freed_memory()  # as training does
    steps = {name: training_step(config, batch_size, precision, device) for name, config in configs.items()}
    seconds = time_interleaved(steps, device, ROUNDS, "training speed", on_progress)
    return _speeds("training", seconds, {name: batch_size * config.block_size for name, config in configs.items()})


@torch.inference_mode()
def decoding_speed(configs: dict[str, GPT2Config], device: torch.device, on_progress: OnProgress) -> Measured:
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


def _speeds(what: str, seconds: dict[str, list[float]], tokens: dict[str, int]) -> Measured:
    """name -> `what`_tokens_per_second (median of the rounds) with its quartiles _low and _high; and `what`_speed_ratio to the
    baseline (or else the first variant) with its 95 % interval, _low and _high, see `ratio`."""
    reference = REFERENCE if REFERENCE in seconds else next(iter(seconds))
    found = {}
    for name, own in seconds.items():
        against = ratio(own, seconds[reference], tokens[name] / tokens[reference])
        metrics: dict[str, Any] = {"tokens_per_second": rates(own, tokens[name]), "speed_ratio": against}
        ends = {"": "median", "_low": "low", "_high": "high"}
        found[name] = {f"{what}_{key}{end}": metric[of] for key, metric in metrics.items() for end, of in ends.items()}
    return found


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
