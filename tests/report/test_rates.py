"""What a study at several learning rates says: planted parabolas come out, and a verdict that depends on the rate is named."""

import json
import math

import pytest

from gpt2_ablate.errors import UserError
from gpt2_ablate.report.collect import study_facts
from gpt2_ablate.report.facts import as_json
from gpt2_ablate.report.rates import rates_found
from gpt2_ablate.report.render import write_report

from ..study import tiny
from ..study.tiny import refusal
from .made_up import record, records

ALIKE = {"baseline": 2e-3, "rope": 2e-3, "gqa": 2e-3}


def found(*args, **more):
    return rates_found(records(tiny.rated(*args, **more)))


def of(facts, name):
    return next(variant for variant in facts.variants if variant.name == name)


def without(runs, **keys):
    return [run for run in runs if any(run.get(key) != value for key, value in keys.items())]


def failing(runs, variant, rate):
    """The same records, those of one variant's trial at one rate without a result."""
    wanted = ("tuning", variant, rate)
    return [
        {**run, "status": "failed", "metrics": {}, "error": "the loss became nan"}
        if (run.get("stage"), run["variant"], run["config"]["model"]["learning_rate"]) == wanted
        else run
        for run in runs
    ]


class TestBest:
    def test_it_is_that_of_the_planted_parabola(self):
        facts = found({"baseline": 2e-3, "rope": 2.8e-3, "gqa": 1.5e-3}, noise=1e-4)
        for name, best in (("baseline", 2e-3), ("rope", 2.8e-3), ("gqa", 1.5e-3)):
            assert of(facts, name).best.rate == pytest.approx(best, rel=0.01) and of(facts, name).edge is None
        assert facts.tried == [1e-3, 2e-3, 4e-3] and facts.seeds == [3] and facts.common == [2e-3] and not facts.at_edge

    @pytest.mark.parametrize(("best", "edge", "beyond"), [(1e-4, "lowest", 5e-4), (1e-1, "highest", 8e-3)])
    def test_at_an_edge_it_says_where_to_go_on(self, best, edge, beyond):
        rope = of(found({"baseline": 2e-3, "rope": best}), "rope")
        assert (rope.edge, rope.beyond) == (edge, beyond)

    def test_a_rate_without_a_result_is_never_the_best(self):
        runs = failing(tiny.rated({"baseline": 2e-3, "rope": 8e-3}), "rope", 4e-3)
        rope = of(rates_found(records(runs)), "rope")
        assert rope.best.rate == 2e-3 and rope.loss_at(4e-3) is None
        assert rope.edge is None  # above it training diverges: nothing is to be found there

    def test_nothing_is_said_without_any_result(self):
        runs = tiny.rated({"baseline": 2e-3, "rope": 8e-3})
        for rate in (1e-3, 2e-3, 4e-3):
            runs = failing(runs, "rope", rate)
        runs = without(runs, variant="rope", stage="best")
        facts = rates_found(records(runs))
        assert of(facts, "rope").best is None and of(facts, "rope").regret is None and facts.left_out == ["rope"]

    def test_a_study_at_one_rate_has_no_such_facts(self):
        assert rates_found(records(tiny.study())) is None and study_facts(records(tiny.study())).rates is None


class TestRegret:
    def test_it_is_what_the_common_rate_costs(self):
        facts = found({"baseline": 1.5e-3, "rope": 3.5e-3, "gqa": 2e-3})
        for name, best in (("baseline", 1.5e-3), ("rope", 3.5e-3)):
            regret, true = of(facts, name).regret, 0.2 * math.log(2e-3 / best) ** 2
            assert regret.low < true < regret.high and regret.value == pytest.approx(true, abs=0.01)
        assert of(facts, "rope").regret.low > 0

    def test_where_the_best_rate_is_the_common_one_there_is_none(self):
        assert of(found(ALIKE), "gqa").regret.value == 0.0 and of(found(ALIKE), "gqa").regret.low is None

    def test_one_seed_gives_no_interval(self):
        regret = of(found({"baseline": 1e-3, "rope": 3.5e-3}, seeds=(0,)), "rope").regret
        assert regret.value > 0 and regret.low is None

    def test_intervals_cover_all_at_once(self):
        """In 95 of 100 studies all intervals of the column hold what was planted."""
        best, right = {"baseline": 1.5e-3, "rope": 2.5e-3, "gqa": 3e-3}, 0
        for draw in range(200):
            facts = found(best, noise=0.01, draw=draw)
            regrets = {name: of(facts, name).regret for name in best}
            right += all(r.low < 0.2 * math.log(2e-3 / best[name]) ** 2 < r.high for name, r in regrets.items())
        assert 180 <= right <= 199


class TestVerdicts:
    def test_none_changes_where_all_variants_like_the_common_rate(self):
        facts = found(ALIKE, base={"rope": 5.7})
        assert facts.changed == [] and facts.judged == 2

    def test_one_that_depends_on_the_rate_is_found(self):
        """At its best rate the change helps; at the common one it looks like harm."""
        facts = found({"baseline": 2e-3, "rope": 4e-3, "gqa": 2e-3}, base={"rope": 5.95})
        (changed,) = facts.changed
        assert changed.what == "rope against the baseline"
        assert (changed.common.verdict, changed.best.verdict) == ("higher", "lower")
        assert facts.clear == [changed]
        assert changed.shift.low < -0.2 * math.log(2) ** 2 < changed.shift.high < 0

    def test_a_shift_is_that_of_its_effect(self):
        """Main effects and interactions are weighted sums, and so are their shifts."""
        facts = found(
            {"baseline": 2e-3, "rope": 3.9e-3, "gqa": 2e-3, "rope-gqa": 3e-3}, base={"rope": 5.95, "rope-gqa": 5.98}, noise=1e-3
        )
        assert any("main effect" in c.what for c in facts.changed)
        for changed in facts.changed:
            assert changed.shift.value == pytest.approx(changed.best.value - changed.common.value)

    @pytest.mark.parametrize("noise", [0.003, 0.01])
    def test_a_verdict_near_its_border_changes_by_chance_and_that_is_no_claim(self, noise):
        """All rates are as good as each other here."""
        best = dict.fromkeys(tiny.VARIANTS, 2.4e-3)
        studies = [found(best, curvature=1e-4, noise=noise, draw=draw) for draw in range(40)]
        assert sum(bool(facts.changed) for facts in studies) > sum(bool(facts.clear) for facts in studies) <= 2

    def test_effects_of_a_factorial_are_among_them(self):
        best = {"baseline": 2e-3, "rope": 2e-3, "gqa": 2e-3, "rope-gqa": 2e-3}
        facts = found(best)
        assert facts.judged == 3 + 3  # differences; two main effects and an interaction

    def test_a_variant_with_a_rate_of_its_own_is_compared_at_that(self):
        runs = tiny.rated({"baseline": 4e-3, "rope": 4e-3})
        runs += [tiny.record("fast", s, 6.03 + s / 1000, config={"model": {"learning_rate": 0.5}}) for s in (0, 1, 2)]
        facts = rates_found(records(runs))
        assert facts.own == {"fast": 0.5} and facts.left_out == [] and facts.judged == 2
        (changed,) = facts.changed
        assert changed.what == "fast against the baseline" and (changed.common.verdict, changed.best.verdict) == (
            "lower",
            "higher",
        )

    def test_a_variant_that_was_not_tuned_is_left_out_on_both_sides(self):
        runs = tiny.rated({"baseline": 2e-3, "rope": 2e-3})
        runs += [tiny.record("gqa", s, 5.0, config={"model": {"learning_rate": 2e-3}}) for s in (0, 1, 2)]
        facts = rates_found(records(runs))
        assert facts.left_out == ["gqa"] and facts.own == {} and facts.judged == 1

    def test_the_same_seeds_are_compared_on_both_sides(self):
        """One run is missing at the best rates; were it there on the other side, its bad luck would change the verdict."""
        runs = tiny.rated(ALIKE, base={"rope": 5.9})
        (bad,) = [run for run in runs if (run["variant"], run["seed"], run.get("stage")) == ("rope", 2, None)]
        bad["metrics"]["validation_loss"] = 9.0
        assert rates_found(records(runs)).changed
        runs = [run for run in runs if (run["variant"], run["seed"], run.get("stage")) != ("rope", 2, "best")]
        assert not rates_found(records(runs)).changed

    def test_one_seed_has_no_verdicts(self):
        assert found({"baseline": 2e-3, "rope": 4e-3}, seeds=(0,)).judged == 0


class TestReport:
    BEST = {"baseline": 2e-3, "rope": 4e-3, "gqa": 2e-3}

    def test_the_rest_of_the_report_is_that_of_the_study_at_the_common_rate(self):
        runs = tiny.rated(self.BEST, base={"rope": 5.95})
        alone = [run for run in runs if "stage" not in run]
        ours, other = (as_json(study_facts(records(r))) for r in (runs, alone))
        different = {key for key in ours if ours[key] != other[key]}
        assert different == {"rates", "planned", "command"}
        assert ours["command"] == f"{other['command']} LEARNING_RATES=0.001,0.002,0.004"

    def test_a_run_that_is_in_both_comparisons_is_one(self):
        runs = tiny.rated(ALIKE)
        for run in runs:
            run["metrics"]["run_seconds"] = 60.0
        facts = study_facts(records(runs))
        assert facts.planned == 9 + 9 and len(facts.training_seconds) == 18

    def test_what_is_missing_is_named_with_its_rate(self):
        facts = study_facts(records(failing(tiny.rated(self.BEST), "rope", 4e-3)))
        assert [(m.variant, m.seed, m.learning_rate) for m in facts.missing] == [("rope", 3, 4e-3)]

    def test_a_trial_that_stands_there_twice(self):
        runs = tiny.rated(self.BEST)
        with pytest.raises(UserError) as raised:
            study_facts(records([*runs, next(run for run in runs if run.get("stage") == "tuning")]))
        assert "twice" in refusal(raised)

    def test_it_is_written_from_a_results_file_with_a_figure(self, tmp_path):
        file = write_report(tiny.rated(self.BEST, base={"rope": 5.95}), tmp_path)
        text = file.read_text()
        assert "## Learning rates" in text and (tmp_path / "figures" / "loss_against_rate.png").exists()
        assert "**1 of 2 verdicts is another at each variant's best learning rate**: rope against" in text.split("## Results")[0]
        facts = json.loads((tmp_path / "results.json").read_text())["facts"]["rates"]
        assert facts["changed"][0]["best"]["verdict"] == "lower" and facts["variants"][1]["edge"] == "highest"

    def test_without_any_comparison_there_is_still_a_report(self, tmp_path):
        runs = [run for run in tiny.rated(self.BEST) if run.get("stage") == "tuning"]
        assert "No run finished" in write_report(runs, tmp_path).read_text()

    def test_records_that_do_not_say_their_rate(self):
        runs = records([*tiny.study(variants=("baseline",)), {**tiny.record("baseline", 9, 5.0), "stage": "tuning"}])
        assert rates_found(runs).variants == [] or rates_found(runs).tried == []


def test_a_stage_that_is_none():
    with pytest.raises(ValueError, match="stage"):
        record("rope", 0, 5.0, stage="third")
