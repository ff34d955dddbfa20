"""The benchmark report's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_ablate.study.figures import COLOURS, MARKERS, binary_thousands, plt, save

Numbers = dict[str, Any]


def attention(results: dict[str, Numbers], file: Path) -> None:
    """Time per token against length, a panel for each head shape; a flat line is linear cost."""
    fig, axes = plt.subplots(1, len(results), figsize=(5.2 * len(results) + 1.8, 4.4), squeeze=False)
    for ax, (shape, found) in zip(axes[0], results.items(), strict=True):
        for n, (name, by_length) in enumerate(found["seconds_per_token"].items()):
            lengths = [int(length) for length in by_length]
            middle, low, high = ([1e6 * entry[key] for entry in by_length.values()] for key in ("median", "low", "high"))
            ax.plot(lengths, middle, label=name, color=COLOURS[n], marker=MARKERS[n], markersize=5)
            ax.fill_between(lengths, low, high, color=COLOURS[n], alpha=0.15, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(binary_thousands)
        ax.set(xlabel="length (tokens)", ylabel="microseconds per token", title=shape)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(fig, file)


def decoding(results: Numbers, file: Path) -> None:
    """tokens/s of every variant against the context that has been read, a panel for each batch size."""
    batches = results["by_context"]
    fig, axes = plt.subplots(1, len(batches), figsize=(5.2 * len(batches) + 1.8, 4.4), squeeze=False)
    for ax, (batch_size, by_variant) in zip(axes[0], batches.items(), strict=True):
        for n, (name, by_context) in enumerate(by_variant.items()):
            contexts = [int(context) for context in by_context]
            ax.plot(contexts, [entry["median"] for entry in by_context.values()], label=name, color=COLOURS[n % len(COLOURS)],
                    marker=MARKERS[n % len(MARKERS)], markersize=5)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(binary_thousands)
        ax.set_ylim(bottom=0)
        ax.set(xlabel="context read (tokens)", ylabel="tokens/s", title=f"batch {batch_size}")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(fig, file)
