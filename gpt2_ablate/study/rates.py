"""Each variant at its best learning rate: what is tried, with which seed, and which comparison follows.

The rates are tried with a seed that the comparison does not use, so that what is chosen there is not chosen for its luck here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpt2_ablate.errors import UserError
from gpt2_ablate.records import is_number
from gpt2_ablate.study.plan import Plan, Run
from gpt2_ablate.utils.log_parabola import lowest

LARGEST_SEED = 2**32 - 1


def parse_rates(words: Iterable[str]) -> list[float]:
    """Learning rates as somebody has written them, from the lowest.

    Raises:
        UserError: one is no number above 0, or stands there twice, or there are fewer than two.
    """
    rates: list[float] = []
    for word in words:
        try:
            rate = float(word)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise UserError(f"learning rates: {word!r} is no learning rate; give numbers above 0, as 1e-3,2e-3,4e-3")
        if rate in rates:
            raise UserError(f"learning rates: {word!r} stands there twice; give different ones, as 1e-3,2e-3,4e-3")
        rates.append(rate)
    if len(rates) < 2:
        raise UserError(f"learning rates: {len(rates)} leave nothing to choose from; give two or more, as 1e-3,2e-3,4e-3")
    return sorted(rates)


def with_rates(plan: Plan, rates: Sequence[float]) -> Plan:
    """The plan with runs of each variant at each rate, by which `at_best_rates` chooses.

    They have the first seed after those of the comparison. A variant that sets a learning rate of its own is compared at that.

    Raises:
        UserError: no seed is left, or every variant sets a rate of its own.
    """
    seed = max(run.seed for run in plan.runs) + 1
    if seed > LARGEST_SEED:
        raise UserError(f"seeds: {seed - 1} leaves no larger seed to try learning rates with; give a smaller one")

    def tuning(runs: Iterable[Run]) -> list[Run]:
        tuned = {run.variant: run for run in runs if run.config["model"].get("learning_rate") == plan.learning_rate}
        return [
            _at(replace(run, seed=seed, config={**run.config, "seed_everything": seed}), rate, "tuning")
            for run in tuned.values() for rate in rates
        ]  # fmt: skip

    found = tuning(plan.runs)
    if not found:
        names = ", ".join(dict.fromkeys(run.variant for run in plan.runs))
        raise UserError(f"learning rates: none is chosen for {names}, with a model.learning_rate of its own; leave them out")
    return replace(plan, tuning=found, also_report=[*plan.also_report, *tuning(plan.also_report)])


def at_best_rates(runs: Iterable[Run], records: Iterable[Mapping[str, Any]]) -> list[Run]:
    """The comparison's runs at the best learning rate of each variant that has one.

    Args:
        records: among them those of the tuning runs.
    """
    losses: dict[str, dict[float, float]] = {}
    for record in records:
        loss = record["metrics"].get("validation_loss")
        if record.get("stage") == "tuning" and is_number(loss):
            losses.setdefault(record["variant"], {})[record["config"]["model"]["learning_rate"]] = loss
    best = {name: found.x for name, points in losses.items() if (found := lowest(points))}
    return [_at(run, best[run.variant], "best") for run in runs if run.stage == "common" and run.variant in best]


def _at(run: Run, rate: float, stage: str) -> Run:
    """The run at a learning rate. At its own it stays the run that it is, in its folder, and is not trained twice."""
    model = run.config["model"]
    if rate == _own_rate(model):
        return replace(run, stage=stage)
    return replace(run, stage=stage, learning_rate=rate, config={**run.config, "model": {**model, "learning_rate": rate}})


def _own_rate(model: Mapping[str, Any]) -> float | None:
    """Of a configuration; None where it says something else than a number, which is refused before anything is trained."""
    if "learning_rate" not in model:
        from gpt2_ablate.training.lightning_module import LanguageModel  # takes seconds, and most presets say their rate

        return inspect.signature(LanguageModel).parameters["learning_rate"].default
    try:
        return float(model["learning_rate"])
    except (TypeError, ValueError):
        return None
