"""Speed and memory of all variants, measured with nothing else going on; once for the study and the benchmark report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2_ablate.study import child

MEASURE = "gpt2_ablate.study.measure"

Configs = dict[str, dict[str, Any]]
Measured = dict[str, dict[str, Any]]


def measure(
    configs: Configs, batch_size: int, log: Path, tell: Callable[[str], None], tick: Callable[[], None]
) -> dict[str, Any]:
    """{"key", "variants": {name: metrics}} of these models: what they were measured for, and what was found.

    Raises:
        child.Failure: one of them could not be measured.
    """
    speeds = child.run_in_child(f"{MEASURE}:speed", configs, batch_size, log=log, tell=tell, tick=tick)
    for name, config in configs.items():
        # Each in a fresh process: the peak of a process never falls.
        peak = child.run_in_child(f"{MEASURE}:memory", config, batch_size, log=log, tell=tell, tick=tick)
        speeds[name]["training_peak_bytes"] = peak
    return {"key": key_of(configs, batch_size), "variants": speeds}


def key_of(configs: Configs, batch_size: int) -> str:
    """Changes when what is measured does."""
    return hashlib.sha256(json.dumps([configs, batch_size], sort_keys=True).encode()).hexdigest()[:16]


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
