"""The benchmark report, written from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2_ablate.study.prose import bytes_, number, table
from gpt2_ablate.study.statistics import BASELINE

Numbers = dict[str, Any]
ENDS = {"median": "", "low": "_low", "high": "_high"}


def write_benchmarks(results: Numbers, figures: Path) -> str:
    """The text of benchmarks.md; its figures are drawn into a folder."""
    from gpt2_ablate.study import bench_figures

    bench_figures.attention(results["attention"], figures / "bench_attention.png")
    bench_figures.decoding(results["decoding"], figures / "bench_decoding.png")
    parts = [
        _head(results),
        _limits(results),
        _variants(results),
        _training(results),
        _attention(results),
        _decoding(results),
        _setting(results),
    ]
    return "\n\n".join(parts) + "\n"


def _head(results: Numbers) -> str:
    quick = " This was a quick look: fewer sizes and fewer rounds than `gpt2-ablate bench` takes." if results["quick"] else ""
    return (
        "# Benchmarks\n\nWhat is compared was timed side by side: all of it warm, in one process, a turn of each in every round. "
        "Speeds are medians with quartiles in brackets; ratios are taken within rounds, as medians with the smallest and the "
        f"largest.{quick}"
    )


def _limits(results: Numbers) -> str:
    limits = results["limits"]
    rows = [
        ["matrix product, fp32", _spread(limits["float32"], 1e9), "GFLOP/s"],
        ["matrix product, bf16", _spread(limits["bfloat16"], 1e9), "GFLOP/s"],
        ["copying memory (bytes read and written)", _spread(limits["copy"], 1e9), "GB/s"],
        ["reading memory", _spread(limits["read"], 1e9), "GB/s"],
    ]
    return _section("What the machine can do", table(["", "measured", "unit"], rows))


def _variants(results: Numbers) -> str:
    rows = []
    for name, found in results["variants"]["variants"].items():
        row = [name]
        for what in ("training", "decoding"):
            values = {end: found[f"{what}_tokens_per_second{suffix}"] for end, suffix in ENDS.items()}
            against = {end: found[f"{what}_speed_ratio{suffix}"] for end, suffix in ENDS.items()}
            row += [_spread(values), "" if name == BASELINE else times(against, "it", "the baseline")]
        rows.append([*row, bytes_(found["training_peak_bytes"])])
    head = ["variant", "training tokens/s", "against the baseline", "decoding tokens/s", "against the baseline", "memory"]
    return _section(
        "The variants of the default study",
        table(head, rows),
        "A report of the default study that is written after this, on the same machine and of the same code, shows these very "
        "numbers. Decoding is that of one text at nearly full context; memory is what the tensors of training take at their "
        "peak.",
    )


def _training(results: Numbers) -> str:
    head = ["step", "ours, tokens/s", "transformers, tokens/s", "speed", "our memory", "theirs", "memory", "share of peak"]
    rows, kept, compiled = [], [], []
    for row in results["training"]:
        ours, theirs = (row["peak_bytes"][side]["added"] for side in ("ours", "transformers"))
        rows.append([
            f"{row['name']}, {row['batch_size']} x {_context(row)}",
            _spread(row["ours"]), f"{_spread(row['transformers'])} ({row['architecture']})", times(row["ratio"]),
            bytes_(ours), bytes_(theirs),
            f"{ours / theirs:.2f}x, {'ours' if ours < theirs else 'transformers'} takes less", _percent(row["share_of_peak"]),
        ])  # fmt: skip
        if results["device"] == "cpu":
            kept.append(f"- {row['name']}: {times(row['kept_ratio'])}.")
        if "compiled_ratio" in row:
            compiled.append(
                f"- {row['name']}: {times(row['compiled_ratio'], 'compiled', 'the plain step')}; against transformers "
                f"{times(row['compiled_against_transformers'])}; the first step took {row['compile_seconds']:.0f} s."
            )
    how = (
        "fp32, as its documentation shows" if results["device"] == "cpu" else "under bf16 autocast and torch.compile, plain AdamW"
    )
    note = (
        f"A step is forward, backward, clipping and AdamW. transformers runs {how}; ours in bf16 autocast where the hardware has "
        "bf16, and on a CPU in a process that keeps freed memory, as it trains. Memory is what training adds to a process that "
        "has imported both. The share is that of the bf16 matrix product, measured in turns with the steps, which the step's "
        "FLOPs would need at that peak."
    )
    parts = [table(head, rows), note]
    if kept:
        parts += ["If transformers is given our setting of freed memory, which is not what it documents:", "\n".join(kept)]
    if compiled:
        parts += ["`torch.compile` on our step:", "\n".join(compiled)]
    return _section("Training steps", *parts)


def _attention(results: Numbers) -> str:
    parts: list[str] = []
    for shape, found in results["attention"].items():
        lengths = list(next(iter(found["seconds_per_token"].values())))
        head = ["microseconds per token", *(f"{int(n):,}" for n in lengths), "exponent"]
        rows = [
            [name, *(f"{1e6 * by_length[n]['median']:.2f}" for n in lengths), _exponent(found["exponent"][name])]
            for name, by_length in found["seconds_per_token"].items()
        ]
        against = [
            [name, *(f"{by_length[n]['median']:.2f} [{by_length[n]['low']:.2f}, {by_length[n]['high']:.2f}]" for n in lengths)]
            for name, by_length in found["times_sdpa"].items()
            if not name.startswith("torch")
        ]
        parts += [f"**{shape}**", table(head, rows), "Times as fast as torch's causal attention; above 1 it is faster:",
                  table(["", *(f"{int(n):,}" for n in lengths)], against), _memory(found["peak_bytes"])]  # fmt: skip
    note = (
        "Forward and backward in bf16. The exponent is p of time ~ length^p, fitted from 1,024 tokens on: 1 is linear, 2 "
        "quadratic."
    )
    return _section("Attention against length", note, *parts, "![Attention against length](figures/bench_attention.png)")


def _memory(peaks: Numbers) -> str:
    lengths = list(next(iter(peaks.values())))
    rows = [[name, *(bytes_(by_length[n]) for n in lengths)] for name, by_length in peaks.items()]
    return table(["peak memory of one text", *(f"{int(n):,}" for n in lengths)], rows)


def _decoding(results: Numbers) -> str:
    found = results["decoding"]
    rows = [
        [f"generate, {row['name']}, {row['dtype']}", _spread(row["ours"]),
         f"{_spread(row['transformers'])} ({row['architecture']})", times(row["ratio"]), _percent(row["share_of_read"])]
        for row in found["against_generate"]
    ] + [
        [f"read the prompt, {row['name']}, {row['dtype']}", _spread(row["our_prompt"]), _spread(row["their_prompt"]),
         times(row["prompt_ratio"]), ""]
        for row in found["against_generate"]
    ]  # fmt: skip
    parts = [
        "GPT-2 small, one text, greedy, tokens/s; the share is that of the bandwidth at which the machine reads memory, every "
        "weight being read once for each token:",
        table(["", "ours", "transformers", "speed", "share of reading"], rows),
    ]
    for batch_size, by_variant in found["by_context"].items():
        contexts = list(next(iter(by_variant.values())))
        head = ["variant", *(f"{int(c):,} tokens" for c in contexts), *(f"cache at {int(c):,}" for c in contexts)]
        body = [
            [name, *(_spread(row[c]) for c in contexts), *(bytes_(row[c]["cache_bytes"]) for c in contexts)]
            for name, row in by_variant.items()
        ]
        parts += [f"All variants at GPT-2 small's size, batch {batch_size}, bf16, tokens/s and bytes of the cache:",
                  table(head, body)]  # fmt: skip
    parts += ["![Decoding against context](figures/bench_decoding.png)", _long_text(found["long_text"])]
    return _section("Generation", *parts)


def _long_text(found: Numbers) -> str:
    first, last = found["stretches"][0], found["stretches"][-1]
    grown = last["process_bytes"] - first["process_bytes"]
    return (
        f"One text of {last['tokens']:,} tokens through a window of 64: a token behind them takes "
        f"{_percent(found['late_against_early'])} of the time of one behind {first['tokens']:,} to {found['early_tokens']:,} (in "
        f"turns), the cache holds {bytes_(last['cache_bytes'])}, as it did after {first['tokens']:,} "
        f"({bytes_(first['cache_bytes'])}), and the process has grown by {bytes_(max(0, grown))} since."
    )


def _setting(results: Numbers) -> str:
    e = results["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in (e.get("packages") or {}).items())
    return _section(
        "Setting",
        f"{e['hardware']}, {e['cores']} cores, {e['threads']} threads, Python {e['python']}, {packages}, commit "
        f"{e.get('git_commit')}. It took {results['seconds'] / 60:.1f} minutes. All numbers stand in `benchmarks.json` beside "
        f"this file. To do it again:\n\n```sh\nmake bench{' QUICK=1' if results['quick'] else ''}\n```",
    )


def times(ratio: Numbers, ours: str = "ours", theirs: str = "transformers") -> str:
    """Which side is better, and how sure that is: "3.51x [3.2, 3.8], ours is faster"."""
    ends = f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    if ratio["low"] > 1:
        return f"{ends}, {ours} is faster"
    if ratio["high"] < 1:
        return f"{ends}, {theirs} is faster"
    return f"{ends}, not clear which is faster"


def _context(row: Numbers) -> int:
    return row["config"].get("block_size", 1024)


def _spread(rate: Numbers, unit: float = 1.0) -> str:
    return f"{number(rate['median'] / unit)} [{number(rate['low'] / unit)}, {number(rate['high'] / unit)}]"


def _percent(share: Numbers) -> str:
    return f"{100 * share['median']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def _exponent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _section(title: str, *parts: str) -> str:
    return "\n\n".join(_kept([f"## {title}", *parts]))


def _kept(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if part]
