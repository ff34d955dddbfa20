"""The reports' figures. Each function draws one, from records, facts or benchmark results, or None where there is nothing."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt2_ablate.records import PositionLoss
from gpt2_ablate.report.context import BEGUN
from gpt2_ablate.report.facts import Recovery, Study, Variant
from gpt2_ablate.report.rates import Rates
from gpt2_ablate.report.statistics import BASELINE, Course, Effect, Runs, variants
from gpt2_ablate.utils.io import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers (its yellow, lost on white, is a brown here).
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#8C6D31", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = "os^Dvp*X"
LINES = ("-", "--", "-.")  # for more variants than colours
LEGEND_RIGHT: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}

plt.rcParams.update({
    "figure.figsize": (7.5, 4.5), "figure.dpi": 130, "figure.constrained_layout.use": True, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
})  # fmt: skip


def draw_study(study: Study, runs: Runs, folder: Path) -> set[str]:
    """Draw what the finished runs allow, as folder/NAME.png; returns the names. Those of an earlier report go.

    Raises:
        UserError: the place cannot be written.
    """
    for stale in folder.glob("*.png"):
        if not stale.name.startswith("bench_"):
            stale.unlink()
    if not study.variants:
        return set()
    return _save_all(folder, {
        "loss_curves": loss_curves(runs),
        "conversion": conversion(study.recoveries),
        "effects": effects(study.effects),
        "effects_over_training": effects_over_training(study.courses),
        "quality_against_cost": quality_against_cost(study.variants),
        "cost_against_context": cost_against_context(study.variants),
        "loss_by_position": loss_by_position(runs),
        "context_gain": context_gain(study, runs),
        "loss_against_rate": loss_against_rate(study.rates),
        "loss_against_compute": loss_against_compute(study, runs),
    })  # fmt: skip


def draw_benchmarks(results: dict[str, Any], folder: Path) -> set[str]:
    """Draw the figures of the benchmark report.

    Raises:
        UserError: the place cannot be written.
    """
    figures = {"bench_attention": attention_speed(results["attention"]), "bench_decoding": decoding_speed(results["decoding"])}
    return _save_all(folder, figures)


def _save_all(folder: Path, figures: Mapping[str, Figure | None]) -> set[str]:
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        plt.close(figure)
        write_bytes(folder / f"{name}.png", png.getvalue())
    return set(drawn)


def _style(n: int, marker: bool = True) -> dict[str, Any]:
    style: dict[str, Any] = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n // len(COLOURS) % len(LINES)]}
    if marker:
        style |= {"marker": MARKERS[(n + n // len(COLOURS)) % len(MARKERS)], "markersize": 5}
    return style


def _mean_curves(runs: Runs) -> dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]:
    """(number, variant) -> training tokens (steps, where the record does not say), and validation loss, mean of the seeds."""
    lines = {}
    for n, name in enumerate(variants(runs)):
        curves = [run.curves["validation"] for run in runs if run.variant == name and run.curves.get("validation")]
        curves = [curve for curve in curves if len(curve) == len(curves[0])]
        if curves:
            run = next(run for run in runs if run.variant == name)
            points = np.mean(np.array(curves, dtype=float), axis=0)
            lines[n, name] = points[:, 0] * (run.config.tokens_per_step or 1), points[:, 1]
    return lines


def loss_curves(runs: Runs) -> Figure | None:
    """Validation loss over training tokens, mean of the seeds, one line a variant."""
    lines = _mean_curves(runs)
    if not lines:
        return None
    fig, ax = plt.subplots()
    for (n, name), line in lines.items():
        ax.plot(*line, label=name, **_style(n))
    ax.set(xlabel="training tokens", ylabel="validation loss (nats per token)")
    ax.xaxis.set_major_formatter(_thousands)
    ax.legend(ncols=2)
    return fig


def loss_against_compute(study: Study, runs: Runs) -> Figure | None:
    """Validation loss over training FLOPs, but for the first fifth; at the end of each curve, where final losses of longer and
    shorter runs would lie."""
    if not study.equal.by_variant:
        return None
    fig, ax = plt.subplots()
    for (n, name), (tokens, losses) in _mean_curves(runs).items():
        flops, slope, style = (
            tokens * study.by_name[name].metrics["training_flops_per_token"],
            study.equal.slopes[name],
            _style(n),
        )
        late = flops >= flops[-1] / 5
        ax.plot(flops[late], losses[late], label=name, **{**style, "alpha": 0.4, "markersize": 3})
        ratios = np.geomspace(1 / 1.5, 1.5, 3)
        ax.plot(flops[-1] * ratios, study.by_name[name].loss.value - slope.value * np.log(ratios), **_style(n, marker=False))
    ax.set_xscale("log")
    ax.set(xlabel="training FLOPs", ylabel="validation loss (nats per token)")
    ax.legend(ncols=2)
    return fig


def quality_against_cost(found: Sequence[Variant]) -> Figure | None:
    """Validation loss against training compute, training memory and cache, a panel each; lower left is better."""
    wanted = (
        ("training_flops_per_token", "training compute (MFLOP per token)", 1e6),
        ("training_peak_bytes", "peak training memory (MiB)", 2**20),
        ("kv_bytes_full", "KV cache at full context (KiB)", 2**10),
    )
    panels = [panel for panel in wanted if any(panel[0] in variant.metrics for variant in found)]
    if not panels:
        return None
    fig, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.2), sharey=True, squeeze=False)
    for ax, (metric, label, unit) in zip(axes[0], panels, strict=True):
        for n, variant in enumerate(found):
            if metric not in variant.metrics:
                continue
            x, loss = variant.metrics[metric] / unit, variant.loss
            style = {**_style(n), "linestyle": "", "markersize": 8, "markeredgecolor": "black", "markeredgewidth": 0.5}
            ax.plot(x, loss.value, label=variant.name, **style)
            if loss.low is not None and loss.high is not None:
                ax.plot([x, x], [loss.low, loss.high], color=style["color"], linewidth=1, alpha=0.6)
        ax.set(xlabel=label)
        ax.margins(0.12)
    axes[0][0].set(ylabel="validation loss (nats per token)")
    axes[0][-1].legend(**LEGEND_RIGHT)
    return fig


def cost_against_context(found: Sequence[Variant]) -> Figure | None:
    """Forward FLOPs per token and cache bytes, over the length of the context; variants that cost the same share a line."""
    known = [(n, variant) for n, variant in enumerate(found) if variant.run.cost_by_context]
    if not known:
        return None
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
    columns: tuple[tuple[Axes, str, str, Callable[[Any], float]], ...] = (
        (axes[0], "forward compute", "MFLOP per token", lambda row: row.forward_flops_per_token / 1e6),
        (axes[1], "KV cache", "MiB", lambda row: row.kv_bytes / 2**20),
    )
    for ax, title, unit, value in columns:
        lines: dict[tuple, list[tuple[int, str]]] = {}
        for n, variant in known:
            points = tuple((row.context, value(row)) for row in variant.run.cost_by_context)
            lines.setdefault(points, []).append((n, variant.name))
        for points, sharing in lines.items():
            label = textwrap.fill(", ".join(name for _, name in sharing), 40, break_on_hyphens=False)
            ax.plot(*zip(*points, strict=True), label=label, **_style(sharing[0][0]))
        ax.set(xlabel="context (tokens)", ylabel=unit, title=title)
        ax.set_xscale("log", base=2)
        ax.set_xticks([row.context for row in known[0][1].run.cost_by_context])
        ax.xaxis.set_major_formatter(_binary_thousands)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=8)
    return fig


def effects(found: Sequence[Effect]) -> Figure | None:
    """Each main effect and interaction with its interval; what touches the line at zero is not claimed."""
    if not found:
        return None
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
    return fig


def effects_over_training(found: dict[str, Course]) -> Figure | None:
    """Each effect at every validation, with its band; the line at zero is no effect."""
    if not found:
        return None
    fig, ax = plt.subplots()
    for n, (name, course) in enumerate(found.items(), 1):
        known = [(t, e) for t, e in zip(course.tokens, course.estimates, strict=True) if math.isfinite(e.value)]
        tokens, style = [t for t, _ in known], _style(n)
        ax.plot(tokens, [e.value for _, e in known], label=name, **style)
        low, high = ([getattr(e, end) for _, e in known] for end in ("low", "high"))
        if None not in low:
            ax.fill_between(tokens, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xlabel="training tokens", ylabel="change of validation loss (nats per token)")
    ax.xaxis.set_major_formatter(_thousands)
    ax.legend()
    return fig


def context_gain(study: Study, runs: Runs) -> Figure | None:
    """What the context gives over training tokens, a thin line a run."""
    if not study.context:
        return None
    fig, ax = plt.subplots()
    for n, name in enumerate(study.context):
        for i, run in enumerate(run for run in runs if run.variant == name):
            steps, gains = np.array(run.curves["context_gain"], dtype=float).T
            ax.plot(steps * (run.config.tokens_per_step or 1), gains, label=None if i else name, **{**_style(n), "linewidth": 1})
    ax.axhline(BEGUN, color="black", linewidth=1)
    ax.set(xlabel="training tokens", ylabel="gain from the context (nats per token)")
    ax.xaxis.set_major_formatter(_thousands)
    ax.legend(ncols=2)
    return fig


def conversion(found: dict[str, Recovery]) -> Figure | None:
    """Each converted variant's loss right after conversion and after uptraining; the line is the control."""
    if not found:
        return None
    fig, ax = plt.subplots(figsize=(7.5, 0.45 * len(found) + 1.4))
    for n, recovery in enumerate(reversed(found.values())):
        colour = COLOURS[(len(found) - 1 - n) % len(COLOURS)]
        ax.annotate("", (recovery.after, n), (recovery.before, n), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
        ax.plot(recovery.before, n, "o", color=colour)
    ax.axvline(found[BASELINE].after, color="black", linewidth=1)
    ax.set_yticks(range(len(found)), list(reversed(found)))
    ax.set(xlabel="validation loss (nats per token), from conversion to the end of uptraining")
    return fig


def loss_by_position(runs: Runs) -> Figure | None:
    """Loss over the position in the context, on past the trained length where a variant can go there; and beside it the
    difference to the baseline, which does not show how hard the text happens to be at each position."""
    positions, losses = _mean_by_position([(run.variant, run.loss_by_position) for run in runs])
    beyond_positions, beyond = _mean_by_position([(run.variant, run.loss_by_position_beyond) for run in runs])
    if not losses:
        return None
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.2))
    for n, name in enumerate(variants(runs)):
        style = _style(n, marker=False)
        if name in losses:
            axes[0].plot(positions, losses[name], label=name, **style)
        if name in beyond:
            axes[0].plot(beyond_positions, beyond[name], **{**style, "linestyle": ":"})
        if name in losses and BASELINE in losses:
            axes[1].plot(positions, losses[name] - losses[BASELINE], **style)
    axes[0].axvline(positions[-1] + positions[0], color="black", linewidth=0.8)
    axes[0].set(xlabel="position in the context (tokens)", ylabel="loss (nats per token)")
    axes[1].set(xlabel="position in the context (tokens)", ylabel="difference to the baseline (nats)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def loss_against_rate(found: Rates | None) -> Figure | None:
    """Loss at each learning rate that was tried, one line a variant, and its best by the parabola that chose it."""
    if not found:
        return None
    fig, ax = plt.subplots(figsize=(8.5, 4.5))
    shown: list[float] = []  # what has to be seen: nearly diverged, a loss would press all others together
    for n, variant in enumerate(found.variants):
        known = [(trial.rate, trial.loss) for trial in variant.trials if trial.loss is not None]
        if not known or not variant.best:
            continue
        ax.plot(*zip(*known, strict=True), label=variant.name, linewidth=1.2, **_style(n))
        shown += [variant.best.loss, *sorted(loss for _, loss in known)[:3]]
        star: dict[str, Any] = {"color": _style(n)["color"], "markeredgecolor": "white", "markersize": 15, "zorder": 3}
        ax.plot(variant.best.rate, variant.best.loss, "*", **star)
    for rate in found.common:
        ax.axvline(rate, color="black", linewidth=0.8, linestyle="--", zorder=0)
    ax.set_xscale("log")
    ax.set_xticks(found.tried, [f"{rate:g}" for rate in found.tried], minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="learning rate", ylabel="validation loss (nats per token)")
    if shown:
        ax.set_ylim(top=max(shown) + 0.05 * (max(shown) - min(shown)) or None)
        ax.legend(**LEGEND_RIGHT)
    return fig


def _mean_by_position(tables: Sequence[tuple[str, list[PositionLoss]]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Middles of the stretches of the context, and variant -> mean loss over its seeds in each."""
    by_variant: dict[str, list[list[PositionLoss]]] = {}
    for name, table in tables:
        if table:
            by_variant.setdefault(name, []).append(table)
    if not by_variant:
        return np.empty(0), {}
    middles = np.array([(row.start + row.to) / 2 for row in next(iter(by_variant.values()))[0]])
    return middles, {
        name: np.mean(np.array([[row.loss for row in t] for t in own], dtype=float), axis=0) for name, own in by_variant.items()
    }


def attention_speed(results: dict[str, Any]) -> Figure:
    """Time per token against length, a panel for each head shape; a flat line is linear cost."""
    fig, axes = plt.subplots(1, len(results), figsize=(5.2 * len(results) + 1.8, 4.4), squeeze=False)
    for ax, (shape, found) in zip(axes[0], results.items(), strict=True):
        for n, (name, by_length) in enumerate(found["seconds_per_token"].items()):
            lengths = [int(length) for length in by_length]
            middle, low, high = ([1e6 * entry[key] for entry in by_length.values()] for key in ("median", "low", "high"))
            ax.plot(lengths, middle, label=name, **_style(n))
            ax.fill_between(lengths, low, high, color=_style(n)["color"], alpha=0.15, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(_binary_thousands)
        ax.set(xlabel="length (tokens)", ylabel="microseconds per token", title=shape)
    axes[0][-1].legend(**LEGEND_RIGHT)
    return fig


def decoding_speed(results: dict[str, Any]) -> Figure:
    """tokens/s of every variant against the context that has been read, a panel for each batch size."""
    batches = results["by_context"]
    fig, axes = plt.subplots(1, len(batches), figsize=(5.2 * len(batches) + 1.8, 4.4), squeeze=False)
    for ax, (batch_size, by_variant) in zip(axes[0], batches.items(), strict=True):
        for n, (name, by_context) in enumerate(by_variant.items()):
            contexts = [int(context) for context in by_context]
            ax.plot(contexts, [entry["median"] for entry in by_context.values()], label=name, **_style(n))
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(_binary_thousands)
        ax.set_ylim(bottom=0)
        ax.set(xlabel="context read (tokens)", ylabel="tokens/s", title=f"batch {batch_size}")
    axes[0][-1].legend(**LEGEND_RIGHT)
    return fig


def _thousands(value: float, _: object = None) -> str:
    return f"{value / 1000:g}k" if value >= 1000 and math.isfinite(value) else f"{value:g}"


def _binary_thousands(value: float, _: object = None) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"
