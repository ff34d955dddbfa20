"""At equal FLOPs and in equal time: made-up studies of which it is known how much of the baseline each training is worth."""

import math

import numpy as np
import pytest

from gpt2_ablate.records import Record
from gpt2_ablate.report import equal, statistics
from gpt2_ablate.report.collect import study_facts
from gpt2_ablate.report.equal import equal_costs, final_slope
from gpt2_ablate.report.facts import as_json
from gpt2_ablate.report.render import write_report

from ..study.tiny import sentences
from . import curves
from .curves import STEPS, study


class TestSlope:
    @pytest.mark.parametrize("constant", [False, True])
    def test_it_is_that_of_final_losses_of_other_lengths(self, constant):
        """Where the rate falls to the law of the report, without noise: as if those other runs had been made."""

        def run(steps):
            rates = np.array([curves.rate(step, steps, constant) for step in range(1, steps + 1)])
            s1, s2 = equal._areas(rates)
            loss = 9 - 0.7 * np.log(s1) - 0.002 * s2
            validation = [[step, float(loss[step - 1])] for step in range(STEPS // 20, steps + 1, STEPS // 20)]
            return validation, [[step, float(rates[step - 1])] for step in range(1, steps + 1)]

        validation, rates = run(STEPS)
        record = study({})[0].model_copy(update={"curves": {"validation": validation, "learning_rate": rates}})
        longer = run(round(equal.LONGER * STEPS))[0][-1][1]
        expected = (validation[-1][1] - longer) / math.log(equal.LONGER)
        assert final_slope(record) == pytest.approx(expected, rel=0.01)

    def test_another_unit_of_the_rate_changes_nothing(self):
        first, *_ = study({})
        tenfold = {**first.curves, "learning_rate": [[step, 10 * rate] for step, rate in first.curves["learning_rate"]]}
        assert final_slope(first.model_copy(update={"curves": tenfold})) == pytest.approx(final_slope(first))


class TestWorth:
    """By simulation, of a law that is not the one that is fitted: see `curves.losses`."""

    WORTH = {"better": 1.5, "cheaper": 1.0, "worse": 0.85, "far": 2.2}
    COSTS = {"cheaper": 0.9}

    @pytest.fixture(scope="class", params=[(0.005, False), (0.02, False), (0.02, True)], ids=str)
    def simulated(self, request):
        noise, constant = request.param
        return [equal_costs(study(self.WORTH, self.COSTS, noise=noise, draw=d, constant=constant)) for d in range(60)]

    def test_intervals_cover_it(self, simulated):
        for name, worth in self.WORTH.items():
            truth = worth / self.COSTS.get(name, 1.0)
            found = [one.by_variant[name].speed_ups["flops"].estimate for one in simulated]
            assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.95, name
            # The law is not the report's, so estimates are off by some of the effect, but not by half of it.
            assert abs(np.log(np.mean([e.value for e in found]) / truth)) < 0.3 * abs(math.log(worth)) + 0.02, name

    def test_and_find_what_there_is(self, simulated):
        verdicts = {name: [one.by_variant[name].speed_ups["flops"].verdict for one in simulated] for name in self.WORTH}
        assert set(verdicts["better"]) == set(verdicts["far"]) == {"higher"}
        assert verdicts["worse"].count("lower") > 50 and verdicts["cheaper"].count("higher") > 30

    def test_studies_without_an_effect_claim_none(self):
        claims = 0
        for draw in range(100):
            found = equal_costs(study(dict.fromkeys("abcd", 1.0), noise=0.02, draw=draw)).by_variant.values()
            claims += any(speed_up.estimate.is_clear for one in found for speed_up in one.speed_ups.values())
        assert claims <= 5

    def test_beyond_the_curves_it_is_a_bound(self, tmp_path):
        runs = study({"far": 6.0})
        far = equal_costs(runs).by_variant["far"].speed_ups["flops"]
        assert far.estimate.value == pytest.approx(equal.REACH) and far.beyond[0] and far.beyond[2]
        assert "worth more than 3.00x" in write_report(runs, tmp_path).read_text()


class TestDifferences:
    def test_at_equal_cost_it_is_that_at_equal_tokens(self):
        runs = study({"a": 1.2, "b": 0.9})
        for name, found in equal_costs(runs).by_variant.items():
            expected = statistics.differences(runs)[name]
            for kind in ("tokens", "flops"):
                assert found.differences[kind].value == pytest.approx(expected.value)
                assert found.differences[kind].low == pytest.approx(expected.low)

    def test_the_dearer_is_cut(self):
        """A variant that costs twice as much would have been trained for half as long; one for half, the baseline for that."""
        runs = study({"dear": 1.0, "cheap": 1.0}, {"dear": 2.0, "cheap": 0.5}, noise=0.002)
        found, half = equal_costs(runs), curves.losses(STEPS // 2)[-1][1] - curves.losses(STEPS)[-1][1]
        for name, truth in (("dear", half), ("cheap", -half)):
            e = found.by_variant[name].differences["flops"]
            assert e.low < truth < e.high and e.verdict == ("higher" if truth > 0 else "lower")
            assert found.by_variant[name].changes_verdict == ["flops"]

    def test_time_is_as_unsure_as_speed(self):
        runs = study({"fast": 1.0}, speeds={"fast": 1.3})
        fast = equal_costs(runs).by_variant["fast"]
        sure, unsure = fast.differences["time"], [run.model_copy(deep=True) for run in runs]
        for run in unsure:
            run.metrics |= {"training_speed_ratio_low": 0.9 * run.metrics["training_speed_ratio"]}
        wide = equal_costs(unsure).by_variant["fast"].differences["time"]
        assert sure.verdict == "lower" and fast.speed_ups["time"].estimate.value == pytest.approx(1.3, rel=0.05)
        assert wide.high > sure.high and wide.low == sure.low

    def test_a_training_of_another_length_is_brought_to_the_same(self):
        """A variant whose saved FLOPs went into training has been compared at equal FLOPs already."""
        runs = study({"longer": 1.25}, {"longer": 0.8})
        for run in runs:
            if run.variant == "longer":
                run.curves = {name: [[step * 1.25, value] for step, value in curve] for name, curve in run.curves.items()}
        found = equal_costs(runs).by_variant["longer"]
        raw = statistics.differences(runs)["longer"]
        assert raw.verdict == "lower" and found.differences["flops"].value == pytest.approx(raw.value)
        assert abs(found.differences["tokens"].value) < 0.3 * abs(raw.value)

    def test_without_measured_speeds_there_is_no_time(self):
        runs = study({"a": 1.2})
        for run in runs:
            del run.metrics["training_speed_ratio"]
        found = equal_costs(runs).by_variant["a"]
        assert list(found.differences) == ["tokens", "flops"] and list(found.speed_ups) == ["flops"]


def changed(runs, change):
    return [Record.model_validate(change(run.as_json())) for run in runs]


def without(curve):
    return lambda run: {**run, "curves": {name: points for name, points in run["curves"].items() if name != curve}}


def short(run):
    return {**run, "curves": {**run["curves"], "validation": run["curves"]["validation"][::4]}}


def flat(run):
    last = run["metrics"]["validation_loss"]
    return {**run, "curves": {**run["curves"], "validation": [[step, last] for step, _ in run["curves"]["validation"]]}}


class TestObstacles:
    @pytest.mark.parametrize(
        ("obstacle", "runs"),
        [
            ("alone", study({})),
            ("seeds", study({"a": 1.2}, seeds=(0,))),
            ("checkpoint", study({"a": 1.2}, validation_loss_before=9.0)),
            ("costs", study({"a": 1.2}, training_flops_per_token=None)),
            ("schedule", changed(study({"a": 1.2}), without("learning_rate"))),
            ("points", changed(study({"a": 1.2}), short)),
            ("points", changed(study({"a": 1.2}), without("validation"))),
            ("slope", changed(study({"a": 1.2}), flat)),
        ],
    )
    def test_what_stands_in_the_way_is_said(self, obstacle, runs, tmp_path):
        facts = study_facts(runs)
        assert facts.equal.obstacle == obstacle and not facts.equal.by_variant
        text = write_report(runs, tmp_path).read_text()
        assert ("## Equal what?" in text) is (obstacle != "alone")
        assert not (tmp_path / "figures" / "loss_against_compute.png").exists()


class TestReport:
    @pytest.fixture(scope="class")
    def text(self, tmp_path_factory):
        runs = study({"rope": 1.5, "swa": 1.0}, {"swa": 0.8}, {"swa": 1.25, "rope": 0.95})
        self.__class__.folder = tmp_path_factory.mktemp("report")
        return write_report(runs, self.folder).read_text()

    def test_another_conclusion_is_among_the_first(self, text):
        short = text.split("## In short")[1].split("\n## ")[0]
        assert "**Another conclusion for swa**: at equal FLOPs it lowers the loss" in short and "for rope" not in short

    def test_each_change_has_a_sentence(self, text):
        section = text.split("## Equal what?")[1].split("\n## ")[0]
        assert sum("A training of **" in sentence for sentence in sentences(section)) == 2
        assert (self.folder / "figures" / "loss_against_compute.png").stat().st_size > 5000

    def test_the_facts_are_in_the_results(self):
        found = as_json(study_facts(study({"rope": 1.5})))["equal"]
        assert (
            found["by_variant"]["rope"]["speed_ups"]["flops"]["verdict"] == "higher" and found["slopes"]["baseline"]["value"] > 0
        )
