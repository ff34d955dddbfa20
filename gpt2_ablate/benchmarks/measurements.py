"""Speed and memory of all variants, measured with nothing else going on; once for the study and the benchmark report."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2_ablate.records import environment
from gpt2_ablate.utils import process

MEASURE = "gpt2_ablate.benchmarks.variants"
PROCESSES = 3  # that memory is measured in

Configs = dict[str, dict[str, Any]]
Measured = dict[str, dict[str, Any]]


def measure(
    configs: Configs,
    batch_size: int,
    log: Path,
    on_progress: Callable[[str], None],
    tick: Callable[[], None],
    processes: int = PROCESSES,
) -> dict[str, Any]:
    """{"key", "variants": {name: metrics}} of these models: what they were measured for, and what was found.

    Args:
        processes: that the memory of each is measured in.

    Raises:
        process.Failure: one of them could not be measured.
    """
    speeds = process.run_in_child(f"{MEASURE}:speed", configs, batch_size, log=log, on_progress=on_progress, tick=tick)
    for name, config in configs.items():
        # Each in a fresh process, because the peak of a process never falls; several, because it is never the same.
        peaks = sorted(
            process.run_in_child(f"{MEASURE}:memory", config, batch_size, log=log, on_progress=on_progress, tick=tick)
            for _ in range(processes)
        )
        speeds[name] |= {
            "training_peak_bytes": statistics.median(peaks),
            "training_peak_bytes_low": peaks[0],
            "training_peak_bytes_high": peaks[-1],
        }
    return {"key": key_of(configs, batch_size, processes), "variants": speeds}


def file_of(out: Path, preset: str) -> Path:
    """Where the study of a preset keeps what it has measured."""
    return out / "checkpoints" / preset / "measurements.json"


def key_of(configs: Configs, batch_size: int, processes: int = PROCESSES) -> str:
    """Changes when what is measured does: the models, this code, its libraries or the machine."""
    from gpt2_ablate.model.config import GPT2Config  # which imports torch

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
