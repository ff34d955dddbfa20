"""From records to facts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from gpt2_ablate.errors import UserError
from gpt2_ablate.records import Record, is_number
from gpt2_ablate.report import statistics
from gpt2_ablate.report.context import context_use
from gpt2_ablate.report.equal import equal_costs
from gpt2_ablate.report.facts import Cost, Missing, PeakMemory, Recovery, Study, Variant
from gpt2_ablate.report.rates import Rates, comparison, different_runs, rates_found
from gpt2_ablate.report.statistics import BASELINE, Estimate
from gpt2_ablate.utils.markdown import paragraph, sandbox

COSTS = ("parameters_total", "training_flops_per_token", "kv_bytes_per_token", "kv_bytes_full")
RANGE = ("", "_low", "_high")  # of a measured metric's names: median, and its ends
LEAST_LOST = 0.01  # nats: a share of less than this says nothing


def study_facts(records: Sequence[Record]) -> Study:
    """Everything that can be said of the runs of one preset, whatever their status.

    Raises:
        UserError: the records are of several presets, or the same run stands there twice.
    """
    presets = list(dict.fromkeys(record.preset for record in records))
    if len(presets) > 1:
        raise UserError(f"results: runs of several presets ({', '.join(presets)}); report one preset at a time")
    keys = [(r.variant, r.seed, r.stage, r.config.learning_rate if r.stage == "tuning" else None) for r in records]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise UserError(f"results: {twice[0][0]} seed {twice[0][1]} stands there twice; keep one of them")
    preset, runs = presets[0] if presets else "unnamed", statistics.finished(comparison(records))
    planned, rates = different_runs(records), rates_found(records)
    missing = [
        Missing(r.variant, r.seed, r.status, r.error, r.config.learning_rate if r.stage != "common" else None)
        for r in planned if r.status != "finished"
    ]  # fmt: skip
    if not runs:
        return Study(preset, len(planned), [], missing, [], [], None, None, None, {}, {}, "", [], {}, [], [], "", [])
    problems: list[str] = []
    variants = _variants(runs, problems)
    best = min(variants, key=lambda v: v.loss.value).name
    rivals, fitted = statistics.to_the_best(runs, best), statistics.fit(runs)
    close = [v.name for v in variants if v.name not in (best, BASELINE) and not rivals[v.name].is_clear]
    seeds, effects = sorted({run.seed for run in runs}), statistics.effects(runs)
    machines = [run.environment.as_json() for run in runs]
    return Study(
        preset=preset,
        planned=len(planned),
        seeds=seeds,
        missing=missing,
        variants=variants,
        effects=effects if len(effects) > 1 else [],  # of one change, its difference says the same
        noise=statistics.noise(runs),
        pairing=statistics.pairing(runs),
        unequal=fitted.unequal,
        two_kinds={name: [run.metrics[statistics.LOSS] for run in runs if run.variant == name] for name in fitted.two_kinds},
        courses=statistics.courses(runs, statistics.main_effects) if fitted.freedom > 0 and fitted.any_difference else {},
        best=best,
        close_to_best=close,
        recoveries=recoveries(runs),
        machines=[machine for n, machine in enumerate(machines) if machine and machine not in machines[:n]],
        training_seconds=[value for run in planned if is_number(value := run.metrics.get("run_seconds"))],
        command=_command(runs[0], variants, seeds, rates),
        problems=problems,
        rates=rates,
        equal=equal_costs(runs),
        context=context_use(runs),
    )


def _variants(runs: list[Record], problems: list[str]) -> list[Variant]:
    names = statistics.variants(runs)
    first = {name: next(run for run in runs if run.variant == name) for name in names}
    metrics: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric in dict.fromkeys(metric for run in runs for metric in run.metrics):
        for name, value in statistics.by_variant(runs, metric).items():
            metrics[name][metric] = value
    means, factors = statistics.means(runs), statistics.factors_of(runs)
    for split in ("validation", "test"):
        _follow_the_loss(metrics, split, runs)
    differences, beyond_parts = statistics.differences(runs), statistics.beyond_parts(runs)
    with_late = statistics.finished(runs, "validation_loss_late")
    # A study that finds no difference in the whole has none to tell of in a part.
    tells = len(with_late) == len(runs) and (statistics.noise(runs) is None or statistics.fit(runs).any_difference)
    late = statistics.differences(with_late, "validation_loss_late") if tells else {}
    reference = metrics.get(BASELINE, {})

    def variant(name: str) -> Variant:
        run, own = first[name], metrics[name]
        costs = {metric: Cost(own[metric], reference.get(metric)) for metric in own}
        return Variant(
            name=name,
            factors=factors[name],
            run=run,
            in_numbers=_in_numbers(run, problems),
            metrics=own,
            loss=means[name],
            difference=differences.get(name),
            late_difference=late.get(name),
            beyond_parts=beyond_parts.get(name),
            costs={metric: costs[metric] for metric in COSTS if metric in own},
            parameters={
                metric.removeprefix("parameters_"): cost
                for metric, cost in costs.items()
                if metric.startswith("parameters_") and metric not in COSTS
            },
            training_peak=_training_peak(own, reference),
            speeds=_speeds(own),
            max_length=_max_length(run),
            checkpoint_fit=_checkpoint_fit(run, first.get(BASELINE)),
        )

    return [variant(name) for name in names]


def _follow_the_loss(metrics: dict[str, dict[str, float]], split: str, runs: list[Record]) -> None:
    """Put perplexity and bits per byte in accordance with the mean loss, which is adjusted where a seed is missing."""
    scored = statistics.finished(runs, f"{split}_loss")
    for name, loss in statistics.means(scored, f"{split}_loss").items() if scored else ():
        own, mean = metrics[name], metrics[name][f"{split}_loss"]
        own[f"{split}_loss"] = loss.value
        if f"{split}_perplexity" in own:
            own[f"{split}_perplexity"] = math.exp(loss.value) if loss.value < 700 else math.inf
        if f"{split}_bits_per_byte" in own and mean:
            own[f"{split}_bits_per_byte"] *= loss.value / mean


def _in_numbers(run: Record, problems: list[str]) -> list[str]:
    """The paragraphs of texts.in_numbers, each filled in from the run's own model configuration, metrics and kernels; one
    that cannot be filled in is left out, since a word in a YAML should not cost the report of a night of training."""
    known = {**run.metrics, **run.config.model.config.as_json(), "kernels": run.kernels}
    filled = []
    for text in filter(None, map(str.strip, run.texts.get("in_numbers", "").split("\n"))):
        try:
            filled.append(paragraph(sandbox().from_string(text).render(known)))
        except Exception as error:  # a template can fail in as many ways as Python
            reason = " ".join(str(error).split()) or type(error).__name__
            problems.append(f"{run.variant}: in_numbers: {reason}; left out of the report: {text}")
    return [text for text in filled if text]


def _training_peak(own: dict[str, float], reference: dict[str, float]) -> PeakMemory | None:
    keys = [f"training_peak_bytes{end}" for end in RANGE]
    if not all(key in own and key in reference for key in keys):
        return None
    return PeakMemory(*(numbers[key] for numbers in (own, reference) for key in keys))


def _speeds(own: dict[str, float]) -> dict[str, Estimate]:
    found = {}
    for what in ("training", "decoding"):
        ratio, low, high = (own.get(f"{what}_speed_ratio{end}") for end in RANGE)
        if ratio is not None:
            found[what] = speed_ratio(ratio, low, high)
    return found


def speed_ratio(median: float, low: float | None, high: float | None) -> Estimate:
    """Of two speeds. Its ends are those that are written, so that no claim stands beside [1.00, 1.10]."""
    low, high = (None if end is None else round(end, 2) for end in (low, high))
    return Estimate(median, low, high, neutral=1.0)


def _max_length(run: Record) -> int | None:
    """From the record; an older one does not say, but learned positions end where the context does."""
    config = run.config.model.config
    if "max_length" in run.metrics:
        value = run.metrics["max_length"]
        return int(value) if is_number(value) else None
    return (config.block_size or None) if config.as_json().get("positions", "learned") == "learned" else None


def _checkpoint_fit(run: Record, baseline: Record | None) -> float | None:
    if baseline is None or not baseline.tensors or not run.tensors:
        return None
    sizes = {name: math.prod(shape) for name, shape in baseline.tensors.items()}
    fits = sum(size for name, size in sizes.items() if run.tensors.get(name) == baseline.tensors[name])
    return fits / sum(sizes.values())


def recoveries(runs: Sequence[Record]) -> dict[str, Recovery]:
    """variant -> what it lost and recovered; empty where the runs did not start from a checkpoint, or have no baseline."""
    runs = statistics.finished(runs, "validation_loss_before")
    before, after = (statistics.by_variant(runs, m) for m in ("validation_loss_before", "validation_loss"))
    if BASELINE not in before:
        return {}
    gaps = {BASELINE: Estimate(0.0), **statistics.differences(runs)}
    lost = {name: before[name] - before[BASELINE] for name in statistics.variants(runs)}
    return {name: Recovery(before[name], after[name], lost[name], gaps[name], _share(gaps[name], lost[name])) for name in lost}


def _share(gap: Estimate, lost: float) -> Estimate | None:
    if lost < LEAST_LOST:
        return None
    low, high = (None if end is None else 1 - end / lost for end in (gap.high, gap.low))
    return Estimate(1 - gap.value / lost, low, high)


def _command(run: Record, variants: list[Variant], seeds: list[int], rates: Rates | None) -> str:
    """What makes these records again, as far as they say."""
    said = run.invocation.as_json()
    names = [variant.name for variant in variants]
    wanted = {"PRESET": said.get("preset") or run.preset, "EXPERIMENTS": said.get("experiments"), "INIT": said.get("init")}
    if set(names) != set(run.invocation.variants or ()):
        wanted["VARIANTS"] = ",".join(names)
    wanted["SEEDS"] = ",".join(map(str, seeds))
    wanted["LEARNING_RATES"] = ",".join(map(str, rates.tried)) if rates else None
    return " ".join(["make ablate-all", *(f"{key}={shlex.quote(str(value))}" for key, value in wanted.items() if value)])
