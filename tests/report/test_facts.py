"""The facts are those of the records: by name, with their verdicts, and with nothing about the changes built in."""

import itertools
import json
import math

import pytest

from gpt2_ablate.errors import UserError
from gpt2_ablate.records import read_results
from gpt2_ablate.report import statistics
from gpt2_ablate.report.collect import recoveries, study_facts
from gpt2_ablate.report.facts import Cost, as_json
from gpt2_ablate.report.render import write_report
from gpt2_ablate.report.statistics import Estimate

from ..study import tiny
from ..study.tiny import refusal
from .made_up import failed, record, records, study


def full(*args, **more):
    return records(tiny.full(tiny.study(*args, **more)))


def change(runs, variant, metrics=None, config=None, **more):
    """The same records, with more in those of one variant."""
    changed = []
    for run in runs:
        content = run.as_json()
        if run.variant == variant:
            content = tiny.merge(content, {"metrics": metrics or {}, "config": {"model": {"config": config or {}}}, **more})
        changed.append(content)
    return records(changed)


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (Estimate(-0.2, -0.3, -0.1), "lower"), (Estimate(0.2, 0.1, 0.3), "higher"), (Estimate(0.2, -0.1, 0.5), "unclear"),
        (Estimate(0.2, 0.0, 0.4), "unclear"), (Estimate(0.2), "untested"), (Estimate(math.nan), "unknown"),
        (Estimate(1.1, 1.05, 1.2, neutral=1.0), "higher"), (Estimate(1.1, 0.9, 1.2, neutral=1.0), "unclear"),
    ],
)  # fmt: skip
def test_a_verdict_is_that_of_the_interval(estimate, verdict):
    assert estimate.verdict == verdict and estimate.is_clear is (verdict in ("lower", "higher"))


class TestStudy:
    def test_planted_effects_are_facts(self):
        facts = study_facts(study({("rope",): -0.3, ("gqa",): 0.2}))
        verdicts = {e.name: e.estimate.verdict for e in facts.effects}
        assert verdicts["rope"] == "lower" and verdicts["gqa"] == "higher"
        assert {v for name, v in verdicts.items() if name not in ("rope", "gqa")} == {"unclear"}
        assert facts.best == "rope" and facts.baseline.difference is None

    def test_perplexity_is_that_of_the_mean_loss(self):
        """Not the mean of perplexities; and where a variant misses a seed, of its mean as it is adjusted."""
        runs = full({("rope",): -0.3}, seeds=(0, 1, 2), noise=0.3)
        for kept in (runs, [run for run in runs if (run.variant, run.seed) != ("gqa", 0)]):
            facts = study_facts(kept)
            for v in facts.variants:
                assert v.metrics["validation_perplexity"] == pytest.approx(math.exp(v.loss.value))
                assert v.metrics["validation_loss"] == pytest.approx(v.loss.value)

    def test_the_numbers_are_those_of_the_statistics(self):
        runs = study({("rope",): -0.3}, seeds=(0, 1))
        facts = study_facts(runs)
        assert [v.name for v in facts.variants] == statistics.variants(runs)
        for v in facts.variants:
            assert v.loss == statistics.means(runs)[v.name]
            assert v.difference == statistics.differences(runs).get(v.name)
            assert v.beyond_parts == statistics.beyond_parts(runs).get(v.name)
        assert [e.estimate for e in facts.effects] == [e.estimate for e in statistics.effects(runs)]
        assert facts.noise == statistics.noise(runs)

    def test_one_change_is_a_difference_and_no_factorial(self):
        assert study_facts(study(variants=("baseline", "rope"))).effects == []

    def test_a_study_of_four_changes_has_sixteen_variants_and_fifteen_effects(self):
        made_of = [c for k in range(5) for c in itertools.combinations(("rope", "gqa", "swa", "alibi"), k)]
        runs = [
            record("-".join(c) or "baseline", seed, 6.0 + 0.01 * seed * len(c) - 0.5 * ("alibi" in c), factors=list(c))
            for c in made_of for seed in (0, 1)
        ]  # fmt: skip
        facts = study_facts(runs)
        assert len(facts.variants) == 16 and len(facts.effects) == 15
        alibi = next(e for e in facts.effects if e.name == "alibi")
        assert alibi.estimate.verdict == "lower" and alibi.variant == "alibi"

    def test_what_has_no_result_is_missing(self):
        facts = study_facts([*study(variants=("baseline",)), failed("gqa", 0)])
        assert facts.planned == 4 and [(m.variant, m.seed, m.status) for m in facts.missing] == [("gqa", 0, "failed")]
        assert facts.without_result == ["gqa"]

    def test_a_run_that_stands_there_twice(self):
        with pytest.raises(UserError) as raised:
            study_facts([*study(), record("rope", 1, 5.0)])
        assert "rope seed 1" in refusal(raised) and "twice" in refusal(raised)

    def test_several_presets(self):
        with pytest.raises(UserError) as raised:
            study_facts([record("baseline", 0, 6.0, preset="cpu"), record("rope", 0, 6.0, preset="smoke")])
        assert "cpu, smoke" in refusal(raised)


class TestCosts:
    def of(self, variant="gqa", **metrics):
        runs = change(full(variants=("baseline", "gqa"), seeds=(0, 1)), variant, metrics)
        return study_facts(runs).by_name["gqa"]

    def test_savings_and_extra_costs(self):
        gqa = self.of(training_flops_per_token=9.5e6)
        assert gqa.saves == {"kv_bytes_full": 0.5, "parameters_total": pytest.approx(500 / 800_000)}
        assert gqa.adds == {"training_flops_per_token": pytest.approx(0.9)} and gqa.keeps == []

    def test_next_to_nothing_is_neither(self):
        gqa = self.of(kv_bytes_full=512 * 32, parameters_total=800_001)
        assert gqa.saves == gqa.adds == {} and len(gqa.keeps) == 3

    def test_any_part_of_a_model_is_counted(self):
        gqa = self.of(parameters_gate=300)
        assert gqa.changed_parameters == {"gate": Cost(300, None)} and gqa.parameters["attention"].change == 0

    @pytest.mark.parametrize(
        ("peaks", "verdict"), [((90, 80, 95), "lower"), ((105, 98, 120), "unclear"), ((130, 121, 150), "higher")]
    )
    def test_memory_is_told_apart_where_its_ranges_are(self, peaks, verdict):
        def named(numbers):
            return {f"training_peak_bytes{end}": n * 2**20 for end, n in zip(("", "_low", "_high"), numbers, strict=True)}

        runs = change(full(variants=("baseline", "gqa")), "baseline", named((100, 98, 110)))
        assert study_facts(change(runs, "gqa", named(peaks))).by_name["gqa"].training_peak.verdict == verdict

    def test_how_much_of_a_checkpoint_fits(self):
        tensors = {"baseline": {"a": [3, 4], "b": [8]}, "gqa": {"a": [3, 4], "b": [4], "c": [9]}}
        runs = [record(name, 0, 6.0, tensors=shapes) for name, shapes in tensors.items()]
        assert study_facts(runs).by_name["gqa"].checkpoint_fit == 12 / 20


class TestLength:
    @pytest.mark.parametrize(
        ("metrics", "config", "length"),
        [
            ({}, {}, 32), ({}, {"positions": "rotary"}, None), ({"max_length": None}, {}, None), ({"max_length": 64}, {}, 64),
            ({}, {"positions": {"name": "alibi.py:ALiBi"}}, None),
        ],
    )  # fmt: skip
    def test_what_the_record_says_or_learned_positions_imply(self, metrics, config, length):
        runs = change(full(variants=("baseline", "gqa")), "gqa", metrics, config)
        assert study_facts(runs).by_name["gqa"].max_length == length


class TestInNumbers:
    def of(self, text, **config):
        runs = change(full(variants=("baseline", "swa")), "swa", {"receptive_field": 15}, config, texts={"in_numbers": text})
        facts = study_facts(change(runs, "swa", kernels=["sliding"]))
        return facts.by_name["swa"].in_numbers, facts.problems

    def test_it_is_filled_in_from_configuration_metrics_and_kernels(self):
        text = (
            "{{ window }} of {{ block_size }} ({{ (window / block_size) | percent }}), {{ receptive_field }}, {{ kernels[0] }}."
        )
        assert self.of(text) == (["8 of 32 (25.0 %), 15, sliding."], [])

    @pytest.mark.parametrize("wrong", ["{{ windw }}", "{{ window / 0 }}", "{% if %}", "{{ n_head.__class__.__mro__ }}", "{{"])
    def test_what_cannot_be_filled_in_is_left_out_and_named(self, wrong):
        found, problems = self.of(f"Half of it is {{{{ window // 2 }}}}.\n\nThis is {wrong}.")
        assert found == ["Half of it is 4."]
        (problem,) = problems
        assert problem.startswith("swa: in_numbers: ") and "\n" not in problem


class TestCommand:
    """The command is the one that made these records."""

    def of(self, runs, **invocation):
        return study_facts(records({**run.as_json(), "invocation": invocation} for run in runs)).command

    def test_a_preset_of_the_project(self):
        command = self.of(study(seeds=(0, 1)), preset="cpu", init=None, variants=list(tiny.VARIANTS))
        assert command == "make ablate-all PRESET=cpu SEEDS=0,1"

    def test_a_file_a_folder_and_a_checkpoint(self):
        said = dict(preset="my own.yaml", init="checkpoints/gpt2", experiments="mine", variants=list(tiny.VARIANTS))
        command = self.of(study(seeds=(0,)), **said)
        assert command == "make ablate-all PRESET='my own.yaml' EXPERIMENTS=mine INIT=checkpoints/gpt2 SEEDS=0"

    def test_some_variants(self):
        command = self.of(study(variants=("baseline", "rope"), seeds=(0, 1)), preset="cpu", variants=list(tiny.VARIANTS))
        assert command == "make ablate-all PRESET=cpu VARIANTS=baseline,rope SEEDS=0,1"

    def test_where_the_record_does_not_say_they_are_named(self):
        assert "VARIANTS=baseline,rope,gqa," in self.of(study(), preset="cpu")


class TestRecovery:
    """A planted study: rope loses 1 nat by conversion and ends 0.25 behind the control; gqa loses nothing."""

    @pytest.fixture
    def runs(self):
        runs = study({("rope",): 0.25}, noise=0.005, variants=["baseline", "rope", "gqa"])
        for run in runs:
            run.metrics["validation_loss_before"] = 7.0 + (run.variant == "rope")
        return runs

    def test_a_share_with_the_interval_of_the_gap(self, runs):
        rope = recoveries(runs)["rope"]
        assert rope.lost == pytest.approx(1.0)
        assert rope.recovered.value == pytest.approx(0.75, abs=0.02)
        assert rope.recovered.value == pytest.approx(1 - rope.gap.value)
        assert rope.recovered.high - rope.recovered.low == pytest.approx(rope.gap.high - rope.gap.low)

    def test_of_nothing_lost_nothing_is_said_to_be_recovered(self, runs):
        assert recoveries(runs)["gqa"].recovered is None

    def test_without_a_control_nothing_is_said(self, runs):
        assert recoveries([run for run in runs if run.variant != "baseline"]) == {}

    def test_more_variants_than_colours_and_one_seed(self, tmp_path):
        for seeds in ((0, 1), (0,)):
            runs = [record(f"v{n}", seed, 6.0 + n) for n in range(20) for seed in seeds]
            runs += [record("baseline", seed, 5.0) for seed in seeds]
            for run in runs:
                run.metrics["validation_loss_before"] = 8.0 + 0.1 * (run.variant != "baseline")
            assert "From the checkpoint" in write_report(runs, tmp_path).read_text()

    def test_a_study_from_nothing_has_no_such_section(self, tmp_path):
        assert "From the checkpoint" not in write_report(full(), tmp_path).read_text()


class TestJson:
    def test_every_estimate_has_its_verdict(self):
        def estimates(value):
            if isinstance(value, dict):
                yield from [value] if {"value", "low", "high"} <= value.keys() else []
                for inner in value.values():
                    yield from estimates(inner)
            elif isinstance(value, list):
                for inner in value:
                    yield from estimates(inner)

        found = as_json(study_facts(full()))
        assert json.loads(json.dumps(found)) == found
        assert len(list(estimates(found))) > 30 and all("verdict" in e for e in estimates(found))

    def test_results_hold_them_and_make_the_same_report(self, tmp_path):
        text = write_report(full(), tmp_path / "a").read_text()
        stored = json.loads((tmp_path / "a" / "results.json").read_text())
        assert stored["facts"]["best"] in tiny.VARIANTS and stored["facts"]["variants"][0]["costs"]["kv_bytes_full"]["value"]
        runs = read_results(tmp_path / "a" / "results.json")
        assert write_report(runs, tmp_path / "b").read_text() == text
        assert json.loads((tmp_path / "b" / "results.json").read_text()) == stored


def with_curves(course, noise=0.005, seeds=(0, 1, 2)):
    """A study whose runs were validated at steps 1 to 6, where rope's effect is as the course says, and gqa's 0.1 throughout."""
    runs = full({("rope",): course[-1], ("gqa",): 0.1}, noise=noise, seeds=seeds)
    for n, run in enumerate(runs):
        final = run.metrics["validation_loss"]
        earlier = [final + (6 - step) * 0.1 + ("rope" in run.variant) * (effect - course[-1]) + 0.002 * ((n * step) % 3)
                   for step, effect in enumerate(course[:-1], 1)]  # fmt: skip
        run.curves = {"validation": [[step, loss] for step, loss in enumerate([*earlier, final], 1)]}
    return runs


class TestCourses:
    @pytest.mark.parametrize(
        ("course", "turn"),
        [
            ([-0.2, -0.2, -0.1, 0.0, 0.1, 0.2], "turned"), ([-0.2, -0.2, -0.1, -0.1, -0.05, 0.0], "faded"),
            ([0.0, -0.1, -0.2, -0.3, -0.4, -0.5], "growing"), ([-0.5, -0.4, -0.35, -0.3, -0.25, -0.2], "shrinking"),
            ([-0.2] * 6, "steady"),
        ],
    )  # fmt: skip
    def test_what_becomes_of_an_effect_is_a_fact(self, course, turn):
        facts = study_facts(with_curves(course))
        assert facts.courses["rope"].turn == turn and facts.courses["gqa"].turn == "steady"
        assert [e.value for e in facts.courses["rope"].estimates] == pytest.approx(course, abs=0.01)
        tokens = facts.courses["rope"].tokens
        assert len(tokens) == 6 and tokens[1] == 2 * tokens[0] > 0
        assert as_json(facts)["courses"]["rope"]["turn"] == turn

    def test_a_study_that_finds_nothing_has_none(self):
        facts = study_facts(with_curves([0.0] * 6, noise=0.5))
        assert facts.courses == {} and all(v.late_difference is None for v in facts.variants)

    def test_the_report_says_so(self, tmp_path):
        text = write_report(with_curves([-0.2, -0.2, -0.1, 0.0, 0.1, 0.2]), tmp_path).read_text()
        assert "Its sign has turned: earlier in training it lowered the loss." in text
        assert (tmp_path / "figures" / "effects_over_training.png").exists() and "effects_over_training" in text


def test_runs_of_two_kinds_are_named_with_their_losses(tmp_path):
    runs = full({("rope",): -0.3}, noise=0.005)
    next(r for r in runs if (r.variant, r.seed) == ("rope-gqa", 1)).metrics["validation_loss"] = 5.4
    facts = study_facts(runs)
    assert list(facts.two_kinds) == ["rope-gqa"] and 5.4 in facts.two_kinds["rope-gqa"]
    text = write_report(runs, tmp_path).read_text()
    assert "**The runs of rope-gqa are of two kinds**" in text and "5.400" in text


def test_a_change_that_does_nothing_is_called_equivalent(tmp_path):
    text = write_report(full({("rope",): -0.3}, noise=0.0005), tmp_path).read_text()
    assert "changes the validation loss by no more than 0.01 nats either way" in text
