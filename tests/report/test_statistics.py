"""Effects that were planted are found, effects that were not are not claimed, and the numbers are those of the textbook."""

import random

import numpy as np
import pandas
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import statsmodels.formula.api as smf

from gpt2_ablate.report import statistics

from .made_up import VARIANTS, failed, record, study

PLANTED = {("rope",): -0.3, ("gqa",): 0.1, ("swa",): 0.05, ("rope", "swa"): -0.08, ("rope", "gqa", "swa"): 0.06}
# What those come to as main effects and interactions, which average over the other changes.
TRUE = {
    "rope": -0.3 - 0.08 / 2 + 0.06 / 4, "gqa": 0.1 + 0.06 / 4, "swa": 0.05 - 0.08 / 2 + 0.06 / 4, "rope x gqa": 0.06 / 2,
    "rope x swa": -0.08 + 0.06 / 2, "gqa x swa": 0.06 / 2, "rope x gqa x swa": 0.06,
}  # fmt: skip
STUDIES = 600


def effects(runs):
    return {effect.name: effect.estimate for effect in statistics.effects(runs)}


def gaps(runs):
    return statistics.beyond_parts(runs)


def everything(runs):
    """All estimates of differences, effects and gaps."""
    found = [statistics.differences(runs), effects(runs), gaps(runs)]
    return {(n, name): estimate for n, table in enumerate(found) for name, estimate in table.items()}


def width(estimate):
    return estimate.high - estimate.low


def close(a, b):
    return [a.value, a.low, a.high] == pytest.approx([b.value, b.low, b.high], abs=1e-6)


def table(runs):
    """The runs as a data frame, changes as -1/2 and 1/2, for statsmodels' formulas."""
    return pandas.DataFrame([
        {"loss": r.metrics["validation_loss"], "variant": r.variant, "seed": str(r.seed),
         **{f: (f in VARIANTS[r.variant]) - 0.5 for f in ("rope", "gqa", "swa")}} for r in runs
    ])  # fmt: skip


def largest_of_independent(count, freedom):
    """The 95 % point of the largest of so many independent absolute t statistics with one noise (studentised maximum modulus)."""

    def missed(critical):
        def inside(u):  # given the noise, u of its true size
            return (2 * scipy.stats.norm.cdf(critical * u) - 1) ** count * scipy.stats.chi.pdf(u * freedom**0.5, freedom)

        return freedom**0.5 * scipy.integrate.quad(inside, 0, 10)[0] - 0.95

    return scipy.optimize.brentq(missed, 1, 30)


def one_way(shift):
    """Six runs of each of five variants that share one seed, and their losses; one variant differs."""
    draws = np.random.default_rng(0).normal(0, 1, (5, 6))
    draws[1] += shift
    names = ("baseline", "a", "b", "c", "d")
    return [record(name, 0, loss) for name, own in zip(names, draws, strict=True) for loss in own], list(draws)


class TestPlantedEffects:
    def test_without_noise_they_come_out_as_they_are(self):
        found = effects(study(PLANTED, noise=0))
        assert {name: e.value for name, e in found.items()} == pytest.approx(TRUE)

    def test_they_lie_in_their_intervals(self):
        found = effects(study(PLANTED, noise=0.01))
        assert found.keys() == TRUE.keys()
        assert all(found[name].low <= TRUE[name] <= found[name].high for name in TRUE)
        assert found["rope"].is_clear and found["rope"].value < 0

    def test_all_seven_at_once_in_about_95_of_100_studies(self):
        hits = 0
        for n in range(STUDIES):
            found = effects(study(PLANTED, noise=0.05, seeds=(0, 1), draw=n))
            hits += all(found[name].low <= TRUE[name] <= found[name].high for name in TRUE)
        assert 0.92 * STUDIES <= hits <= 0.98 * STUDIES

    def test_differences_are_to_the_baseline(self):
        found = statistics.differences(study(PLANTED, noise=0))
        assert found["rope"].value == pytest.approx(-0.3) and found["gqa-swa"].value == pytest.approx(0.15)
        assert "baseline" not in found and len(found) == 7

    def test_beyond_parts_is_what_the_sum_of_single_changes_misses(self):
        found = gaps(study(PLANTED, noise=0))
        expected = {"rope-gqa": 0, "rope-swa": -0.08, "gqa-swa": 0, "rope-gqa-swa": -0.08 + 0.06}
        assert {name: e.value for name, e in found.items()} == pytest.approx(expected, abs=1e-9)

    def test_means_are_means(self):
        runs = study(PLANTED)
        for name, estimate in statistics.means(runs).items():
            losses = [r.metrics["validation_loss"] for r in runs if r.variant == name]
            assert estimate.value == pytest.approx(np.mean(losses)) and estimate.low < estimate.value < estimate.high


class TestAgainstTextbook:
    """A balanced study by hand; any study by the formulas of statsmodels."""

    def test_balanced_effects_by_hand(self):
        seeds = 3
        runs = study(PLANTED, seeds=range(seeds), seed_shift=0.1)
        frame = table(runs)
        grid = frame.pivot(index="variant", columns="seed", values="loss")
        rest = grid.sub(grid.mean(axis=1), axis=0).sub(grid.mean(axis=0) - grid.to_numpy().mean(), axis=1)
        freedom = (len(grid) - 1) * (seeds - 1)
        deviation = np.sqrt((rest**2).to_numpy().sum() / freedom)
        quantile = largest_of_independent(7, freedom)
        assert statistics.noise(runs) == pytest.approx((deviation, freedom))
        for name, estimate in effects(runs).items():
            sign = np.sign(np.prod([frame[f] for f in name.split(" x ")], axis=0))
            order = len(name.split(" x "))
            value = sum(sign * frame["loss"]) / (8 * seeds) * 2**order
            error = deviation * 2**order / np.sqrt(8 * seeds)
            assert estimate.value == pytest.approx(value)
            half = quantile * error
            assert (estimate.low, estimate.high) == pytest.approx((value - half, value + half), abs=0.01 * half)

    def test_balanced_means_by_hand(self):
        runs = study(PLANTED)
        grid = table(runs).pivot(index="variant", columns="seed", values="loss")
        freedom = grid.size - len(grid)
        half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(grid.var(axis=1, ddof=1).mean() / 3)
        for name, estimate in statistics.means(runs).items():
            assert (estimate.low, estimate.high) == pytest.approx((grid.loc[name].mean() - half, grid.loc[name].mean() + half))

    @pytest.mark.parametrize("lost", [(), (3,), (0, 9, 15)], ids=["balanced", "one lost", "three lost"])
    def test_differences_by_formula(self, lost):
        runs = [run for n, run in enumerate(study(PLANTED, seed_shift=0.1, draw=2)) if n not in lost]
        fit = smf.ols("loss ~ C(variant, Treatment('baseline')) + C(seed)", table(runs)).fit()
        found = statistics.differences(runs)
        for name, estimate in found.items():
            assert estimate.value == pytest.approx(fit.params[f"C(variant, Treatment('baseline'))[T.{name}]"])
        critical = [width(e) / 2 / fit.bse[f"C(variant, Treatment('baseline'))[T.{name}]"] for name, e in found.items()]
        assert critical == pytest.approx([critical[0]] * 7), "one critical value for the whole column"
        single, bonferroni = (scipy.stats.t.ppf(1 - 0.025 / k, fit.df_resid) for k in (1, 7))
        assert single < critical[0] < bonferroni

    @pytest.mark.parametrize("lost", [(), (3,), (0, 9, 15)], ids=["balanced", "one lost", "three lost"])
    def test_effects_by_formula(self, lost):
        runs = [run for n, run in enumerate(study(PLANTED, seed_shift=0.1, draw=2)) if n not in lost]
        fit = smf.ols("loss ~ rope * gqa * swa + C(seed, Sum)", table(runs)).fit()
        found = effects(runs)
        for name, estimate in found.items():
            assert estimate.value == pytest.approx(fit.params[name.replace(" x ", ":")])
        critical = [width(e) / 2 / fit.bse[name.replace(" x ", ":")] for name, e in found.items()]
        assert critical == pytest.approx([critical[0]] * 7)
        assert critical[0] == pytest.approx(largest_of_independent(7, fit.df_resid), rel=0.01 if not lost else 0.03)

    def test_to_a_control_intervals_are_dunnetts(self):
        """One seed, several runs of it: a one-way layout, which scipy knows."""
        runs, groups = one_way(3.0)
        found = statistics.differences(runs)
        oracle = scipy.stats.dunnett(*groups[1:], control=groups[0]).confidence_interval()
        ends = [(e.low, e.high) for e in found.values()]
        assert ends == [pytest.approx(pair, abs=0.01) for pair in zip(oracle.low, oracle.high, strict=True)]

    def test_to_the_best_intervals_are_tukeys(self):
        runs, groups = one_way(3.0)
        found = statistics.to_the_best(runs, "baseline")
        oracle = scipy.stats.tukey_hsd(*groups).confidence_interval()
        ends = [(e.low, e.high) for e in found.values()]
        assert ends == [pytest.approx((oracle.low[n, 0], oracle.high[n, 0]), abs=0.01) for n in range(1, 5)]

    def test_a_study_that_finds_nothing_has_scheffes_intervals(self):
        runs, groups = one_way(0.0)
        assert scipy.stats.f_oneway(*groups).pvalue > 0.05
        scale = np.mean([np.var(g, ddof=1) for g in groups])
        half = np.sqrt(4 * scipy.stats.f.ppf(0.95, 4, 25) * scale * 2 / 6)
        assert [width(e) / 2 for e in statistics.differences(runs).values()] == pytest.approx([half] * 4)


class TestChance:
    def families(self, runs):
        return effects(runs), statistics.differences(runs), gaps(runs)

    def test_where_nothing_differs_about_95_of_100_studies_stay_silent(self):
        """All tables together; each by itself would be loud in 5 % of studies, and all of them in 10 to 15."""
        loud = 0
        for n in range(STUDIES):
            runs = study(noise=0.05, seeds=(0, 1), draw=n, seed_shift=0.1)
            loud += any(e.is_clear for found in self.families(runs) for e in found.values())
        assert 0.02 * STUDIES <= loud <= 0.07 * STUDIES

    def test_twice_the_noise_in_half_of_the_variants_is_noticed_and_covered(self):
        noticed, hits = 0, 0
        for n in range(100):
            random_, runs = random.Random(n), study(PLANTED, noise=0, seeds=range(5))
            for run in runs:
                run.metrics["validation_loss"] += random_.gauss(0, 0.01 if "rope" in VARIANTS[run.variant] else 0.04)
            noticed += statistics.fit(runs).unequal == "rope"
            found = statistics.differences(runs)
            true = {name: sum(v for made_of, v in PLANTED.items() if set(made_of) <= set(VARIANTS[name])) for name in found}
            hits += all(e.low <= true[name] <= e.high for name, e in found.items())
        assert noticed >= 75 and 88 <= hits <= 99

    def test_equal_noise_is_not_called_unequal(self):
        assert sum(bool(statistics.fit(study(draw=n)).unequal) for n in range(100)) <= 8

    def test_runs_of_two_kinds_are_noticed(self):
        """Three of three seeds in most variants; in one, a seed that has learned what the others have not."""
        runs = study(PLANTED, noise=0.005)
        assert statistics.fit(runs).two_kinds == []
        next(r for r in runs if (r.variant, r.seed) == ("rope-gqa", 1)).metrics["validation_loss"] -= 0.25
        fitted = statistics.fit(runs)
        assert fitted.two_kinds == ["rope-gqa"]
        found = statistics.differences(runs)
        assert width(found["rope"]) < 0.08 < 0.3 < width(found["rope-gqa"]), (
            "what one variant is unsure of is not the others' noise"
        )

    def test_sameness_is_a_verdict(self):
        runs = study({("rope",): -0.3}, noise=0.0005)
        verdicts = {name: e.verdict for name, e in statistics.differences(runs).items()}
        assert verdicts["gqa"] == "equivalent" and verdicts["rope"] == "lower"

    def test_four_of_five_studies_find_an_effect_that_is_called_detectable(self):
        size = np.mean([effects(study({("rope",): -0.3}, draw=n))["gqa"].detectable for n in range(20)])
        found = sum(effects(study({("rope",): -0.3, ("gqa",): size}, draw=100 + n))["gqa"].is_clear for n in range(100))
        assert 70 <= found <= 90

    def test_pairing_by_seed_pays_where_seeds_differ(self):
        assert statistics.pairing(study(seed_shift=0.1)) > 0.3 > 0.1 > statistics.pairing(study())

    def test_more_noise_widens_intervals_in_proportion(self):
        quiet, loud = everything(study(noise=0.01)), everything(study(noise=0.03))
        assert all(width(loud[key]) == pytest.approx(3 * width(quiet[key])) for key in quiet)

    def test_more_seeds_narrow_them(self):
        def typical(seeds):
            return np.mean([np.mean([width(e) for e in effects(study(seeds=range(seeds), draw=n)).values()]) for n in range(10)])

        two, four, eight = typical(2), typical(4), typical(8)
        assert two > 1.3 * four > 1.3 * 1.3 * eight

    def test_longer_tables_have_wider_intervals(self):
        def rope_alone(variants):
            runs = [run for run in study(noise=0.02, seeds=range(6)) if run.variant in variants]
            deviation = statistics.noise(runs)[0]
            return width(statistics.differences(runs)["rope"]) / deviation

        assert rope_alone(VARIANTS) > 1.1 * rope_alone(("baseline", "rope"))

    @pytest.mark.parametrize("noise", [0, 0.02])
    def test_two_variants_with_the_same_losses_do_not_differ(self, noise):
        runs = [run for run in study(noise=noise) if run.variant == "baseline"]
        runs += [run.model_copy(update={"variant": "rope"}) for run in runs]
        assert not any(e.is_clear for e in everything(runs).values())

    @pytest.mark.filterwarnings("error")
    def test_one_seed_gives_numbers_without_intervals(self):
        runs = study(PLANTED, seeds=(0,))
        found = everything(runs)
        assert found and not any(e.is_clear for e in found.values())
        assert all(e.low is None and e.high is None for e in found.values())
        assert statistics.noise(runs) is None and statistics.pairing(runs) is None
        assert statistics.fit(runs).unequal is None and statistics.fit(runs).two_kinds == []
        assert all(e.low is None for e in statistics.means(runs).values())

    def test_one_seed_twice_is_one_seed(self):
        """Two runs of one variant, one of the others: what is left over belongs to that variant's seeds alone."""
        runs = [*study(seeds=(0,)), record("baseline", 1, 6.1)]
        assert not any(e.is_clear for e in everything(runs).values())


class TestSeedsAreBlocks:
    @pytest.mark.parametrize("lost", [(), (3,), (0, 9, 15)], ids=["balanced", "one lost", "three lost"])
    def test_what_a_seed_adds_to_all_of_its_runs_changes_nothing(self, lost):
        runs = [run for n, run in enumerate(study(PLANTED)) if n not in lost]
        moved = [
            run.model_copy(update={"metrics": {"validation_loss": run.metrics["validation_loss"] + (0.7, -2.0, 0.1)[run.seed]}})
            for run in runs
        ]
        before, after = everything(runs), everything(moved)
        assert all(close(before[key], after[key]) for key in before)

    def test_variants_that_share_no_seed_even_indirectly_are_not_compared(self):
        """rope and swa ran with other seeds than the rest: what is the seeds' and what is theirs nobody can tell."""
        shift = random.Random(0).uniform(1, 2)
        here = study(seeds=(0, 1), variants=("baseline", "gqa"), noise=0.001)
        there = study(seeds=(2, 3), variants=("rope", "swa"), noise=0.001, draw=1)
        for run in there:
            run.metrics["validation_loss"] += shift
        assert not {"rope", "swa"} & {name for name, e in statistics.differences(here + there).items() if e.is_clear}

    def test_a_lost_run_costs_precision_and_no_more(self):
        runs = study({("rope",): -0.3}, draw=1)
        found = statistics.differences([run for run in runs if (run.variant, run.seed) != ("gqa", 1)])
        assert len(found) == 7 and found["rope"].is_clear
        assert width(found["gqa"]) > width(found["swa"])

    def test_order_of_records_does_not_matter(self):
        runs = study(PLANTED)
        mixed = random.Random(1).sample(runs, len(runs))
        before, after = everything(runs), everything(mixed)
        assert {name for _, name in before if " x " not in name} == {name for _, name in after if " x " not in name}
        for key in before.keys() & after.keys():
            a, b = before[key], after[key]
            assert b.value == pytest.approx(a.value) and [b.low, b.high] == pytest.approx([a.low, a.high], abs=0.01 * width(a))


class TestFactors:
    def test_from_names_where_records_are_silent(self):
        assert statistics.factors_of(study()) == VARIANTS

    def test_a_combination_of_a_new_change(self):
        runs = [record(name, 0, 6.0) for name in ("baseline", "rope", "alibi", "rope-alibi")]
        assert statistics.factors_of(runs)["rope-alibi"] == ("rope", "alibi")

    def test_a_name_with_a_hyphen_that_is_no_combination(self):
        runs = [record(name, 0, 6.0) for name in ("baseline", "rope", "qk-norm")]
        assert statistics.factors_of(runs)["qk-norm"] == ("qk-norm",)

    def test_records_have_the_last_word(self):
        runs = [record("baseline", 0, 6.0), record("rope-gqa", 0, 6.0, factors=["mixture"])]
        assert statistics.factors_of(runs)["rope-gqa"] == ("mixture",)

    @pytest.mark.parametrize(
        ("variants", "complete"),
        [
            (tuple(VARIANTS), {"rope", "gqa", "swa"}),
            (("baseline", "rope", "gqa", "swa", "rope-gqa"), {"rope", "gqa"}),
            (("baseline", "gqa", "swa", "rope-gqa", "gqa-swa"), {"gqa", "swa"}),
            (("baseline", "rope"), {"rope"}),
            (("baseline", "rope-gqa"), {"rope-gqa"}),
            (("baseline",), set()),
            (("rope", "gqa", "rope-gqa"), set()),
        ],
        ids=lambda value: " ".join(sorted(value)) or "none",
    )
    def test_the_largest_complete_factorial(self, variants, complete):
        runs = study(variants=variants)
        assert set(statistics.complete_factorial(runs)) == complete
        assert len(statistics.effects(runs)) == 2 ** len(complete) - 1

    def test_effects_of_an_incomplete_study_use_the_complete_part(self):
        runs = study(PLANTED, noise=0, variants=("baseline", "rope", "gqa", "swa", "rope-swa"))
        found = effects(runs)
        assert found["rope"].value == pytest.approx(-0.3 - 0.08 / 2) and found["rope x swa"].value == pytest.approx(-0.08)
        assert "gqa" not in found

    def test_a_new_change_beside_the_factorial_changes_no_effect(self):
        runs = study(PLANTED, noise=0)
        more = [*runs, *(record("alibi", seed, 9.0) for seed in (0, 1, 2))]
        assert {n: e.value for n, e in effects(more).items()} == pytest.approx(TRUE)

    @pytest.mark.parametrize("factors", [[], ["rope"]], ids=["none", "those of another"])
    def test_a_variant_with_the_factors_of_another_changes_no_effect(self, factors):
        """As a YAML that names no factors makes it: its losses are not those of the baseline, or of rope."""
        runs = study(PLANTED, noise=0)
        more = [*runs, *(record("alibi", seed, 9.0, factors=factors, order=2000) for seed in (0, 1, 2))]
        assert {n: e.value for n, e in effects(more).items()} == pytest.approx(TRUE)
        assert gaps(more)["rope-swa"].value == pytest.approx(-0.08)


class TestRecords:
    def test_the_baseline_is_first_then_by_order_then_as_they_come(self):
        runs = [record("b", 0, 1.0), record("a", 0, 1.0), record("last", 0, 1.0, order=7)]
        runs.append(record("first", 0, 1.0, order=1))
        assert statistics.variants([*runs, record("baseline", 0, 1.0)]) == ["baseline", "first", "last", "b", "a"]

    @pytest.mark.parametrize("loss", [None, "6.0", float("nan"), float("inf")], ids=str)
    def test_a_run_whose_metric_is_no_number_has_no_result(self, loss):
        runs = [record("rope", 0, 6.0, metrics={"validation_loss": 6.0, "late": loss}), failed("rope", 1)]
        assert statistics.finished(runs, "late") == [] and len(statistics.finished(runs)) == 1

    def test_without_a_baseline_there_are_no_differences(self):
        assert statistics.differences(study(variants=("rope", "gqa"))) == {}

    def test_means_over_seeds_skip_what_is_missing(self):
        runs = study(seeds=(0, 1), variants=("baseline", "rope"))
        runs[0].metrics["speed"], runs[2].metrics["speed"], runs[1].metrics["speed"] = 2.0, 4.0, None
        assert statistics.by_variant(runs, "speed") == {"baseline": 3.0}
