"""What a study found: every number, interval and verdict of its report by name. Words are the templates'.

`collect.study_facts` makes them from records; `as_json` is what results.json holds of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gpt2_ablate.records import Record
from gpt2_ablate.report.context import ContextUse
from gpt2_ablate.report.rates import Rates
from gpt2_ablate.report.statistics import BASELINE, Course, Effect, Estimate, Verdict

TRADED = ("kv_bytes_full", "training_flops_per_token", "parameters_total")  # what a change may save, or cost more of
NEXT_TO_NOTHING = 0.0005  # share: a cost that differs by less is the same


@dataclass(frozen=True)
class Cost:
    """Of a variant beside the baseline's, in the unit of its metric; reference and change are None where that has none."""

    value: float
    reference: float | None

    @property
    def change(self) -> float | None:
        """As a share of the reference: -0.25 is a quarter less."""
        return (self.value - self.reference) / self.reference if self.reference else None

    @property
    def differs(self) -> bool:
        return self.value != 0 if self.change is None else abs(self.change) >= NEXT_TO_NOTHING


@dataclass(frozen=True)
class PeakMemory:
    """Bytes that training takes at its peak, median and range of several processes, beside the baseline's."""

    value: float
    low: float
    high: float
    reference: float
    reference_low: float
    reference_high: float

    @property
    def verdict(self) -> Verdict:
        """Clear where the difference is a percent or more, and the ranges are apart."""
        if abs(self.value - self.reference) < 0.01 * self.reference:
            return "unclear"
        return "lower" if self.high < self.reference_low else "higher" if self.low > self.reference_high else "unclear"


@dataclass(frozen=True)
class Recovery:
    """What converting a checkpoint cost, and what training brought back (Ainslie et al. 2305.13245, section 2.1).

    Losses in nats per token, means over seeds.
    """

    before: float  # right after the conversion
    after: float  # after the training that followed
    lost: float  # how far the conversion set it back, against the checkpoint as it was
    gap: Estimate  # how far it is behind the baseline that was trained on for as long
    recovered: Estimate | None  # 1 - gap / lost; None where the conversion cost next to nothing


@dataclass(frozen=True)
class Variant:
    """One row of the report.

    Attributes:
        difference, late_difference: to the baseline, of validation_loss and of validation_loss_late (the last quarter of
            the context).
    """

    name: str
    factors: tuple[str, ...]
    run: Record  # the record of its first seed, for what all of its seeds share
    in_numbers: list[str]  # the sentences of its YAML about its numbers, filled in
    metrics: dict[str, float]  # means over seeds of all numbers in its records
    loss: Estimate  # mean of validation_loss with its interval
    difference: Estimate | None
    late_difference: Estimate | None
    beyond_parts: Estimate | None  # of a combination, how far it is from what its changes add up to
    costs: dict[str, Cost]  # metric -> cost
    parameters: dict[str, Cost]  # part of the model -> cost
    training_peak: PeakMemory | None
    speeds: dict[str, Estimate]  # "training" and "decoding" -> tokens/s as a multiple of the baseline's
    max_length: int | None  # tokens that it can read; None: no end, or not said
    checkpoint_fit: float | None  # share of a baseline checkpoint's weights that fit as they are

    @property
    def title(self) -> str:
        return self.text("title") or self.name

    def text(self, key: str) -> str:
        """Of its YAML: paper, idea, challenges, worth."""
        return self.run.texts.get(key, "")

    @property
    def hf_known(self) -> bool:
        """Whether the record says if transformers computes the same function."""
        return "hf_architecture" in self.run.model_fields_set

    @property
    def compared_costs(self) -> dict[str, Cost]:
        """Those that the baseline has too."""
        return {name: cost for name, cost in self.costs.items() if cost.reference}

    @property
    def changed_costs(self) -> dict[str, Cost]:
        return {name: cost for name, cost in self.compared_costs.items() if cost.differs}

    @property
    def changed_parameters(self) -> dict[str, Cost]:
        return {part: cost for part, cost in self.parameters.items() if cost.differs}

    @property
    def saves(self) -> dict[str, float]:
        """metric -> share of the baseline's that it does without."""
        return {name: -c for name, c in self._traded.items() if c <= -NEXT_TO_NOTHING}

    @property
    def adds(self) -> dict[str, float]:
        """metric -> share of the baseline's that it takes on top."""
        return {name: c for name, c in self._traded.items() if c >= NEXT_TO_NOTHING}

    @property
    def keeps(self) -> list[str]:
        """Metrics in which it costs what the baseline does."""
        return [name for name, c in self._traded.items() if abs(c) < NEXT_TO_NOTHING]

    @property
    def costs_the_same(self) -> bool:
        return not any(self._traded.values())

    @property
    def _traded(self) -> dict[str, float]:
        changes = {name: self.costs[name].change for name in TRADED if name in self.costs}
        return {name: change for name, change in changes.items() if change is not None}


@dataclass(frozen=True)
class Missing:
    """A run without a result."""

    variant: str
    seed: int
    status: str
    error: str
    learning_rate: float | None = None  # where the study tries several


@dataclass(frozen=True)
class SpeedUp:
    """How many times the baseline's training, in FLOPs or in time, buys the same loss.

    Attributes:
        beyond: whether the estimate, its low and its high end are further from 1 than the curves reach: then they are bounds.
    """

    estimate: Estimate
    beyond: tuple[bool, ...]

    @property
    def verdict(self) -> Verdict:
        return self.estimate.verdict


@dataclass(frozen=True)
class EqualCost:
    """A variant beside the baseline, by what is taken to be equal: "tokens", "flops" or, where speed was measured, "time".

    Attributes:
        costs: of a token, as a multiple of the baseline's.
        differences: of the final loss, in nats.
    """

    costs: dict[str, Estimate]
    differences: dict[str, Estimate]
    speed_ups: dict[str, SpeedUp]

    @property
    def changes_verdict(self) -> list[str]:
        """What else, taken to be equal, says something else than equal tokens do."""
        said = self.differences["tokens"].verdict
        return [
            k for k, e in self.differences.items() if e.verdict != said and (e.is_clear or self.differences["tokens"].is_clear)
        ]


@dataclass(frozen=True)
class EqualCosts:
    """All of them, or what stands in the way.

    Attributes:
        obstacle: "alone" (nothing to compare with the baseline), "checkpoint", "costs", "seeds", "schedule", "points" (of the
            curves), "slope" (they are too noisy to have one), or nothing.
        slopes: nats that each variant's final loss falls with an e-fold of training.
    """

    obstacle: str
    slopes: dict[str, Estimate]
    by_variant: dict[str, EqualCost]


@dataclass(frozen=True)
class Study:
    """Everything that a report says."""

    preset: str
    planned: int  # runs that there should be
    seeds: list[int]
    missing: list[Missing]  # those without a result
    variants: list[Variant]
    effects: list[Effect]
    noise: tuple[float, int] | None  # residual standard deviation in nats, and its degrees of freedom; None without repetition
    pairing: float | None  # by what share comparing within seeds narrows intervals; None without repetition
    unequal: str | None  # the change whose variants are noisier, or less noisy, than the others
    two_kinds: dict[str, list[float]]  # variants whose runs are of two kinds -> their losses, by seed
    courses: dict[str, Course]  # variant -> its effect over training, where the study finds a difference at all
    best: str  # the variant with the lowest mean validation loss, and the others that it cannot be told from
    close_to_best: list[str]
    recoveries: dict[str, Recovery]  # variant -> recovery, where the study started from a checkpoint
    machines: list[dict[str, Any]]
    training_seconds: list[float]  # of each run that says
    command: str  # what makes these records again
    problems: list[str]  # for the terminal, what the report had to leave out
    rates: Rates | None = None  # where each variant was trained at several learning rates
    equal: EqualCosts = EqualCosts("alone", {}, {})  # what the runs come to at equal FLOPs and in equal time
    context: dict[str, ContextUse] = field(default_factory=dict)  # variant -> what it gains from its context, and since when

    @cached_property
    def by_name(self) -> dict[str, Variant]:
        return {variant.name: variant for variant in self.variants}

    @property
    def baseline(self) -> Variant | None:
        return self.by_name.get(BASELINE)

    @property
    def main_effects(self) -> list[Effect]:
        return [effect for effect in self.effects if len(effect.factors) == 1]

    @property
    def interactions(self) -> list[Effect]:
        return [effect for effect in self.effects if len(effect.factors) > 1]

    @property
    def changes(self) -> list[Variant]:
        """All variants but the baseline, where there is one to compare them with."""
        return [v for v in self.variants if v.name != BASELINE] if self.baseline else []

    @property
    def in_factorial(self) -> set[str]:
        """Variants that the effects tell of, interactions included."""
        return {effect.variant for effect in self.effects}

    @property
    def parts(self) -> list[str]:
        """Of the models, whose parameters are counted."""
        return list(dict.fromkeys(part for variant in self.variants for part in variant.parameters))

    def parameters_of(self, variant: Variant) -> list[float | None]:
        """One number for each of the parts."""
        return [variant.metrics.get(f"parameters_{part}") for part in self.parts]

    @property
    def contexts(self) -> list[float]:
        """Lengths at which costs are tabulated, tokens."""
        tables = [variant.run.cost_by_context for variant in self.variants]
        return next(([row.context for row in table] for table in tables if table), [])

    @property
    def is_measured(self) -> bool:
        """Whether speed was measured."""
        return any("training_tokens_per_second" in variant.metrics for variant in self.variants)

    @property
    def without_result(self) -> list[str]:
        """Variants of which no run has a result."""
        return sorted({run.variant for run in self.missing} - self.by_name.keys())


def as_json(facts: Any) -> Any:
    """Dataclasses as objects, with their verdicts and changes among the keys, and without the records beside them."""
    if dataclasses.is_dataclass(facts):
        names = [field.name for field in dataclasses.fields(facts)]
        names += [name for name in ("name", "title", "verdict", "change", "turn", "edge") if hasattr(facts, name)]
        return {name: as_json(getattr(facts, name)) for name in names if name != "run"}
    if isinstance(facts, dict):
        return {key: as_json(value) for key, value in facts.items()}
    return [as_json(value) for value in facts] if isinstance(facts, list | tuple) else facts
