"""`gpt2-ablate bench`: measure speed and memory side by side with transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gpt2_ablate.benchmarks import measurements
from gpt2_ablate.benchmarks.timing import OnProgress
from gpt2_ablate.errors import UserError
from gpt2_ablate.records import environment
from gpt2_ablate.utils import process
from gpt2_ablate.utils.io import make_folder, write_json

BENCHMARKS = "gpt2_ablate.benchmarks"

LEAST_ROUNDS = 6  # for a 95 % interval of a ratio, see `gpt2_ablate.benchmarks.timing.ratio`

Configs = dict[str, dict[str, Any]]
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 512}  # the cpu preset's model
GPT2_SMALL: dict[str, Any] = {}  # GPT2Config's defaults
ALL_THREE = {"positions": "rotary", "n_kv_head": 4, "window": 256}


def run_benchmarks(out: Path, quick: bool, cpu: Configs, batch_size: int, gpt2_small: Configs) -> dict[str, Any]:
    """Measure everything, and leave the numbers in reports/benchmarks.json below `out`.

    Args:
        quick: fewer sizes and rounds, for a look in three minutes.
        cpu: the variants of the default study, by name: fields of each GPT2Config.
        batch_size: of that study.
        gpt2_small: the same variants at the size of GPT-2 small.

    Raises:
        UserError: transformers is not installed, or something could not be measured or written.
    """
    process.prepare([f"{BENCHMARKS}.{name}" for name in ("training", "attention", "decoding", "hardware")])
    reports = out / "reports"
    make_folder(reports)
    log = reports / "benchmarks.log"
    device = measurements.default_device()
    rounds = 3 if quick else 7
    console = Console(highlight=False, soft_wrap=True)
    results: dict[str, Any] = {"schema": 1, "quick": quick, "device": device.type}
    began = time.monotonic()

    with console.status("starting") as status:

        def show(text: str) -> None:
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            status.update(f"{text} ({minutes}:{seconds:02d})")

        def call(function: str, *args: Any) -> Any:
            try:
                return process.run_in_child(f"{BENCHMARKS}.{function}", *args, log=log, on_progress=show, tick=lambda: None)
            except process.Failure as failure:
                raise UserError(f"bench: {function} could not be measured: {failure}; see {log}") from None

        parts: list[tuple[str, str, Callable[[], Any]]] = [
            ("limits", "the machine", lambda: call("hardware:machine_limits", device, rounds)),
            ("variants", "all variants of the default study", lambda: _variants(out, quick, log, cpu, batch_size, show)),
            ("training", "training steps", lambda: _training(call, quick, device, rounds)),
            ("attention", "attention against length", lambda: _attention(call, quick, device, rounds)),
            ("decoding", "generation", lambda: _decoding(call, quick, device, rounds, gpt2_small)),
        ]
        for name, title, measure in parts:
            console.print(f"Measuring {title} ...")
            results[name] = measure()
    results |= {"seconds": time.monotonic() - began, "environment": environment()}
    write_json(reports / "benchmarks.json", results)
    return results


def _variants(out: Path, quick: bool, log: Path, configs: Configs, batch_size: int, on_progress: OnProgress) -> dict[str, Any]:
    """The very numbers that the report of the default study has: whichever is there first, the other takes its numbers."""
    found = measurements.earlier(measurements.file_of(out, "cpu"), configs, batch_size)
    if found is not None:
        return {"key": measurements.key_of(configs, batch_size), "variants": found}
    processes = 1 if quick else measurements.PROCESSES
    try:
        return measurements.measure(configs, batch_size, log, on_progress, lambda: None, processes)
    except process.Failure as failure:
        raise UserError(f"bench: the variants could not be measured: {failure}; see {log}") from None


def _training(call: Callable, quick: bool, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Each size against transformers: speed, then memory of either side in a process of its own."""
    many = (16, rounds) if device.type == "cuda" else (1, LEAST_ROUNDS)
    sizes: list[tuple[str, dict[str, Any], int, int]] = [
        ("cpu preset, baseline", SMALL, 2, 3 * rounds),
        ("cpu preset, rope-gqa-swa", {**SMALL, "positions": "rotary", "n_kv_head": 1, "window": 64}, 2, 3 * rounds),
        ("GPT-2 small, baseline", GPT2_SMALL, *many),
        ("GPT-2 small, rope-gqa-swa", {**GPT2_SMALL, **ALL_THREE}, *many),
    ]
    found = []
    for name, config, batch_size, n in sizes[:2] if quick else sizes:
        # Compiling takes a minute, and tells no more of one variant than of another.
        compiled = not quick and "positions" not in config
        row = call("training:training_speeds", config, batch_size, compiled, n, device)
        peaks = {side: call("training:training_peak", config, batch_size, side, device) for side in ("ours", "transformers")}
        found.append({"name": name, "config": config, "batch_size": batch_size, **row, "peak_bytes": peaks})
    return found


def _attention(call: Callable, quick: bool, device: torch.device, rounds: int) -> dict[str, Any]:
    lengths = [1024, 4096, 8192] if quick else [512, 1024, 2048, 4096, 8192, 16384]
    # GPT-2's own heads take six times as long: on a CPU fewer rounds, and no 16k.
    wide = (lengths, rounds) if device.type == "cuda" else (lengths[:-1], LEAST_ROUNDS)
    shapes = {"4 heads of 32": (4, 32, lengths, min(rounds, LEAST_ROUNDS)), "12 heads of 64": (12, 64, *wide)}
    if quick:
        del shapes["12 heads of 64"]
    found = {}
    for name, (n_head, head_dim, of, n) in shapes.items():
        speeds = call("attention:attention_speeds", n_head, head_dim, of, n, device)
        peaks = {
            pattern: {str(T): call("attention:attention_peak", n_head, head_dim, pattern, T, device) for T in of if T >= 4096}
            for pattern in ("full", "window 128")
        }
        found[name] = {**speeds, "peak_bytes": peaks}
    return found


def _decoding(call: Callable, quick: bool, device: torch.device, rounds: int, variants: Configs) -> dict[str, Any]:
    pairs = [("baseline", GPT2_SMALL, "bfloat16")]
    if not quick:
        pairs = [("baseline", GPT2_SMALL, "float32"), *pairs, ("rope-gqa-swa", {**GPT2_SMALL, **ALL_THREE}, "bfloat16")]
    contexts = {1: [256, 1024] if quick else [256, 1024, 4096], 8: [256, 1024], 64: [256, 1024]}
    batches = [1] if quick else [1, 8] if device.type == "cpu" else [1, 8, 64]
    new = 32 if quick else 128
    window = {**SMALL, "positions": "rotary", "window": 64}
    return {
        "against_generate": [
            {"name": name, "dtype": dtype, **call("decoding:against_generate", config, dtype, 128, new, rounds, device)}
            for name, config, dtype in pairs
        ],
        "by_context": {
            str(batch_size): call("decoding:by_context", variants, contexts[batch_size], batch_size, rounds, device)
            for batch_size in batches
        },
        "long_text": call("decoding:far_past_the_window", window, *((2048, 256, 3) if quick else (16384, 1024, 12)), device),
    }  # fmt: skip
