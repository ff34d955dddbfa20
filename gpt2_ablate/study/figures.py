"""The report's figures. Each function draws one, from records and estimates, into one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from gpt2_ablate.study.record import write_bytes
from gpt2_ablate.study.statistics import BASELINE, Effect, Estimate, Runs, by_variant, variants
from gpt2_ablate.study.warm_start import Recovery

# Okabe and Ito's palette, told apart by colour-blind readers (its yellow, lost on white, is a brown here).
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#8C6D31", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = "os^Dvp*X"

plt.rcParams.update({
    "figure.figsize": (7.5, 4.5), "figure.dpi": 130, "figure.constrained_layout.use": True, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
})  # fmt: skip


def _style(n: int) -> dict[str, Any]:
    return {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)]}


def loss_curves(runs: Runs, file: Path) -> bool:
    """Validation loss over tokens seen, mean of the seeds, one line a variant. False if no run has a curve."""
    fig, ax = plt.subplots()
    drawn = False
    for n, name in enumerate(variants(runs)):
        curves = [
            run["curves"]["validation"] for run in runs if run["variant"] == name and (run.get("curves") or {}).get("validation")
        ]
        curves = [curve for curve in curves if len(curve) == len(curves[0])]
        if not curves or not curves[0]:
            continue
        run = next(run for run in runs if run["variant"] == name)
        points = np.mean(np.array(curves, dtype=float), axis=0)
        ax.plot(points[:, 0] * _tokens_per_step(run), points[:, 1], label=name, markersize=5, **_style(n))
        drawn = True
    ax.set(xlabel="training tokens", ylabel="validation loss (nats per token)")
    ax.xaxis.set_major_formatter(_thousands)
    if drawn:
        ax.legend(ncols=2)
    return _save(fig, file, drawn)


def _tokens_per_step(run: dict[str, Any]) -> int:
    config = run.get("config") or {}
    block_size = config.get("model", {}).get("config", {}).get("block_size", 1)
    batches = config.get("trainer", {}).get("accumulate_grad_batches", 1)
    return block_size * config.get("data", {}).get("batch_size", 1) * batches


def quality_against_cost(runs: Runs, losses: dict[str, Estimate], file: Path) -> bool:
    """Validation loss against training compute, training memory and cache, a panel each; lower left is better."""
    wanted = (
        ("training_flops_per_token", "training compute (MFLOP per token)", 1e6),
        ("training_peak_bytes", "peak training memory (MiB)", 2**20),
        ("kv_bytes_full", "KV cache at full context (KiB)", 2**10),
    )
    panels = [(by_variant(runs, metric), label, unit) for metric, label, unit in wanted]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return False
    fig, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.2), sharey=True, squeeze=False)
    for ax, (costs, label, unit) in zip(axes[0], panels, strict=True):
        for n, name in enumerate(variants(runs)):
            if name in costs:
                _point(ax, costs[name] / unit, losses[name], name, n)
        ax.set(xlabel=label)
        ax.margins(0.12)
    axes[0][0].set(ylabel="validation loss (nats per token)")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(fig, file, True)


def _point(ax: Axes, x: float, y: Estimate, name: str, n: int) -> None:
    style = _style(n)
    ax.plot(x, y.value, label=name, linestyle="", markersize=8, markeredgecolor="black", markeredgewidth=0.5, **style)
    if y.low is not None and y.high is not None:
        ax.plot([x, x], [y.low, y.high], color=style["color"], linewidth=1, alpha=0.6)


def cost_against_context(runs: Runs, file: Path) -> bool:
    """Forward FLOPs per token and cache bytes, over the length of the context; variants that cost the same share a line."""
    tables = {run["variant"]: run["cost_by_context"] for run in runs if run.get("cost_by_context")}
    if not tables:
        return False
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
    columns: tuple[tuple[Axes, str, str, Callable[[dict], float]], ...] = (
        (axes[0], "forward compute", "MFLOP per token", lambda row: row["forward_flops_per_token"] / 1e6),
        (axes[1], "KV cache", "MiB", lambda row: row["kv_bytes"] / 2**20),
    )
    for ax, title, unit, value in columns:
        lines: dict[tuple, list[str]] = {}
        for name in variants(runs):
            if name in tables:
                lines.setdefault(tuple((row["context"], value(row)) for row in tables[name]), []).append(name)
        for points, names in lines.items():
            style = _style(variants(runs).index(names[0]))
            ax.plot(*zip(*points, strict=True), label=", ".join(names), markersize=5, **style)
        ax.set(xlabel="context (tokens)", ylabel=unit, title=title)
        ax.set_xscale("log", base=2)
        ax.set_xticks([row["context"] for row in next(iter(tables.values()))])
        ax.xaxis.set_major_formatter(binary_thousands)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=8)
    return _save(fig, file, True)


def effects_with_intervals(found: list[Effect], file: Path) -> bool:
    """Each main effect and interaction with its interval; what touches the line at zero is not claimed."""
    if not found:
        return False
    fig, ax = plt.subplots(figsize=(7.5, 0.5 * len(found) + 1.4))
    for n, effect in enumerate(reversed(found)):
        e = effect.estimate
        colour = COLOURS[5] if e.is_clear else "grey"
        if e.low is not None and e.high is not None:
            ax.plot([e.low, e.high], [n, n], color=colour, linewidth=2)
        ax.plot(e.value, n, "o", color=colour)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(found)), [effect.name for effect in reversed(found)])
    ax.set(xlabel="change of validation loss (nats per token); left is better")
    return _save(fig, file, True)


def conversion_and_recovery(found: dict[str, Recovery], file: Path) -> bool:
    """Each converted variant's loss right after conversion and after uptraining; the line is the control."""
    if not found:
        return False
    fig, ax = plt.subplots(figsize=(7.5, 0.45 * len(found) + 1.4))
    for n, recovery in enumerate(reversed(found.values())):
        colour = COLOURS[(len(found) - 1 - n) % len(COLOURS)]
        ax.annotate("", (recovery.after, n), (recovery.before, n), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
        ax.plot(recovery.before, n, "o", color=colour)
    ax.axvline(found[BASELINE].after, color="black", linewidth=1)
    ax.set_yticks(range(len(found)), list(reversed(found)))
    ax.set(xlabel="validation loss (nats per token), from conversion to the end of uptraining")
    return _save(fig, file, True)


def loss_by_position(runs: Runs, file: Path) -> bool:
    """Loss over the place in the context, on past the trained length where a variant can go there; and beside it the
    difference to the baseline, which does not show how hard the text happens to be at each place."""
    places, losses = _mean_by_position(runs, "loss_by_position")
    beyond_places, beyond = _mean_by_position(runs, "loss_by_position_beyond")
    if not losses:
        return False
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.2))
    for n, name in enumerate(variants(runs)):
        colour = COLOURS[n % len(COLOURS)]
        if name in losses:
            axes[0].plot(places, losses[name], color=colour, label=name)
        if name in beyond:
            axes[0].plot(beyond_places, beyond[name], ":", color=colour)
        if name in losses and BASELINE in losses:
            axes[1].plot(places, losses[name] - losses[BASELINE], color=colour)
    axes[0].axvline(places[-1] + places[0], color="black", linewidth=0.8)
    axes[0].set(xlabel="place in the context (tokens)", ylabel="loss (nats per token)")
    axes[1].set(xlabel="place in the context (tokens)", ylabel="difference to the baseline (nats)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return _save(fig, file, True)


def _mean_by_position(runs: Runs, key: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Middles of the stretches of the context, and variant -> mean loss over its seeds in each."""
    tables: dict[str, list] = {}
    for run in runs:
        if run.get(key):
            tables.setdefault(run["variant"], []).append(run[key])
    if not tables:
        return np.empty(0), {}
    first = next(iter(tables.values()))[0]
    middles = np.array([(row["from"] + row["to"]) / 2 for row in first])
    return middles, {
        name: np.mean(np.array([[row["loss"] for row in t] for t in own], dtype=float), axis=0) for name, own in tables.items()
    }


def _thousands(value: float, _: object = None) -> str:
    return f"{value / 1000:g}k" if value >= 1000 and math.isfinite(value) else f"{value:g}"


def binary_thousands(value: float, _: object = None) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _save(fig, file: Path, drawn: bool) -> bool:
    if drawn:
        save(fig, file)
    plt.close(fig)
    return drawn


def save(fig, file: Path) -> None:
    """Write a figure, and forget it.

    Raises:
        UserError: the place cannot be written.
    """
    png = io.BytesIO()
    fig.savefig(png, format="png")
    plt.close(fig)
    write_bytes(file, png.getvalue())
