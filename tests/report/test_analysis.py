"""The report says what the records say: every claim has its interval, and nothing else is claimed."""

import copy
import json
import math
import re
import subprocess
import sys

import pytest

from gpt2_ablate.errors import UserError
from gpt2_ablate.report import statistics
from gpt2_ablate.report.collect import study_facts
from gpt2_ablate.report.facts import as_json
from gpt2_ablate.report.render import write_report

from ..study.tiny import (
    FACTORS,
    VARIANTS,
    failed,
    full,
    intervals_in,
    numbers_in,
    record,
    refusal,
    results,
    sentences,
    study,
    table_under,
)
from . import made_up

DOWN, UP = r"\b(lowers|below the baseline|nats better than)\b", r"\b(raises|nats worse than)\b"
LOSS_CLAIMS = f"{DOWN}|{UP}|not independent"
SPEED_CLAIMS = r"\b(Trains|Generates) (faster|slower) than\b"
RATIOS = {
    "rope": (0.8, 0.7, 0.9), "gqa": (1.2, 1.1, 1.3), "swa": (1.0, 0.9, 1.1), "rope-gqa": (1.05, 0.95, 1.15),
    "rope-swa": (0.95, 0.85, 1.05),
}  # fmt: skip
STRONG = {("rope",): -0.3, ("gqa",): 0.2}


def report(runs, folder):
    return write_report(copy.deepcopy(runs), folder).read_text(encoding="utf-8")


def of(text, words):
    """The only sentence that holds all of the words."""
    (found,) = [s for s in sentences(text) if all(word in s for word in words)]
    return found


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    """Records in full with effects that show, and their report."""
    runs = full(study(STRONG), RATIOS)
    return runs, report(runs, tmp_path_factory.mktemp("strong"))


def section(text, name):
    return text.split(f"### {name}\n")[1].split("### ")[0]


class TestClaims:
    def test_a_planted_effect_is_claimed_with_its_sign(self, tmp_path):
        text = report(study(STRONG), tmp_path)
        for name, word, size in (("rope", "lowers", 0.3), ("gqa", "raises", 0.2)):
            found = of(text, [f"**{name}**", "averaged"]).partition(word)[2]
            assert numbers_in(found)[0] == pytest.approx(size, abs=0.03)
        assert "no clear effect" in of(text, ["**swa**", "averaged"])

    def test_the_best_is_named_with_those_that_it_cannot_be_told_from(self, tmp_path):
        runs = study(STRONG)
        best, _, rest = report(runs, tmp_path).split("## In short")[1].split("\n- ")[1].partition("below the baseline")
        assert best.startswith("**rope has")
        rivals = statistics.differences(made_up.records(runs), reference="rope")
        close = {name for name, e in rivals.items() if not e.is_clear}
        assert close and set(re.findall(r"[a-z-]+", rest)) & VARIANTS.keys() == close

    def test_the_best_of_many_that_do_not_differ_is_not_called_best(self, tmp_path):
        text = report(study(), tmp_path)
        assert "No variant is clearly better than the baseline" in text or "No change improved" in text

    def test_where_the_baseline_is_best_nothing_improved(self, tmp_path):
        assert "No change improved on the baseline" in report(study({("rope",): 0.5, ("gqa",): 0.4, ("swa",): 0.3}), tmp_path)

    @pytest.mark.parametrize("draw", range(6))
    @pytest.mark.parametrize("effects", [{}, STRONG, {("rope",): -0.05, ("rope", "gqa"): 0.06}], ids=["none", "strong", "faint"])
    def test_every_claim_has_an_interval_without_zero_and_of_its_sign(self, tmp_path, effects, draw):
        text = report(study(effects, draw=draw, seeds=(0, 1)), tmp_path)
        claims = 0
        for sentence in sentences(text):
            down, up = re.search(DOWN, sentence), re.search(UP, sentence)
            if sentence.startswith("|"):
                continue
            for low, high in intervals_in(sentence):
                assert low > 0 or not up, sentence
                assert high < 0 or not down, sentence
                assert low <= 0 <= high or down or up or "not independent" in sentence, sentence
            assert intervals_in(sentence) or not (down or up), sentence
            claims += bool(down or up)
        assert claims or effects != STRONG

    def test_one_seed_claims_nothing(self, tmp_path):
        text = report(study(STRONG, seeds=(0,)), tmp_path)
        assert not re.search(LOSS_CLAIMS, text) and not intervals_in(text)
        assert "add seeds" in text

    def test_speed_is_claimed_where_one_is_not_in_its_interval(self, strong):
        text = strong[1]
        assert of(text, ["Trains slower", "0.80x"]) and of(text, ["Trains faster", "1.20x"])
        assert "No clear difference in training speed" in of(text, ["[0.90, 1.10]"])
        for sentence in sentences(text):
            if claim := re.search(SPEED_CLAIMS, sentence):
                low, high = intervals_in(sentence)[0]
                assert low > 1 if claim[2] == "faster" else high < 1

    def test_savings_and_their_price_are_those_of_the_numbers(self, strong):
        runs, text = strong
        price = statistics.differences(made_up.records(runs))["gqa"].value
        worth = of(section(text, "gqa"), ["Here it saves 50.0 % of the cache"])
        assert f"raises the loss by {price:.3f} nats" in worth

    def test_a_combination_that_helps_beyond_its_parts(self, tmp_path):
        text = report(study({("rope", "gqa"): -0.4}), tmp_path)
        assert "nats better than what its changes add up to" in section(text, "rope-gqa")
        assert "not independent: rope x gqa" in text


class TestNumbers:
    def test_every_interval_in_prose_is_that_of_a_fact(self, strong):
        """None is typed by hand, or computed by a template."""
        runs, text = strong
        known = set()

        def walk(value):
            if isinstance(value, dict):
                if {"low", "high"} <= value.keys() and value["low"] is not None:
                    known.update((round(value["low"], n), round(value["high"], n)) for n in (2, 3))
                value = list(value.values())
            for inner in value if isinstance(value, list) else []:
                walk(inner)

        walk(as_json(study_facts(made_up.records(runs))))
        found = intervals_in(text)
        assert len(found) > 30 and set(found) <= known

    def test_the_table_of_effects_is_that_of_the_statistics(self, tmp_path):
        runs = study(STRONG)
        rows = table_under(report(runs, tmp_path), "## Effects")
        expected = statistics.effects(made_up.records(runs))
        assert [row[0] for row in rows] == [effect.name for effect in expected]
        for (_, kind, value, interval, clear), effect in zip(rows, expected, strict=True):
            e = effect.estimate
            assert kind == ("main effect" if len(effect.factors) == 1 else "interaction")
            assert numbers_in(value) + numbers_in(interval) == pytest.approx([e.value, e.low, e.high], abs=0.00051)
            assert clear == ("yes" if e.is_clear else "no")

    def test_the_main_table_is_that_of_the_statistics(self, strong):
        runs, text = strong
        rows = {row[0]: row for row in table_under(text, "## Results")}
        runs = made_up.records(runs)
        assert list(rows) == statistics.variants(runs)
        means, differences = statistics.means(runs), statistics.differences(runs)
        for name, row in rows.items():
            half = (means[name].high - means[name].low) / 2
            assert numbers_in(row[7]) == pytest.approx([means[name].value, half], abs=0.00051)
            d = differences.get(name)
            assert numbers_in(row[11] if len(row) > 11 else "") == pytest.approx(
                [d.value, d.low, d.high] if d else [], abs=0.00051
            )

    def test_units(self, strong):
        row = next(row for row in table_under(strong[1], "## Results") if row[0] == "gqa")
        assert row[1] == "800 k" and row[2] == "5 M" and row[3] == "256 B" and row[4] == "8 KiB" and row[5] == "9.54 MiB"

    def test_the_scope_is_that_of_the_configuration(self, strong):
        scope = of(strong[1], ["All of this holds"])
        assert (
            "640 tokens of training" in scope and "32 tokens of context" in scope and "3 seeds" in scope and "corpus.txt" in scope
        )

    def test_the_same_records_give_the_same_bytes(self, strong, tmp_path):
        runs, text = strong
        assert report(json.loads(json.dumps(runs)), tmp_path) == text


def pictures(folder):
    return {file.name for file in (folder / "figures").glob("*")}


def referenced(text):
    return set(re.findall(r"\]\(figures/([^)]+)\)", text))


class TestFigures:
    def test_all_are_drawn_and_shown(self, tmp_path):
        text = report(full(study()), tmp_path)
        assert referenced(text) == pictures(tmp_path) and len(pictures(tmp_path)) == 5
        for file in (tmp_path / "figures").iterdir():
            assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000

    @pytest.mark.parametrize("runs", [study(), study(variants=("baseline",)), [failed("rope", 0)]], ids=["few", "one", "none"])
    def test_those_of_an_earlier_report_go(self, tmp_path, runs):
        report(full(study(seeds=(0,))), tmp_path)
        assert len(pictures(tmp_path)) == 5
        text = report(runs, tmp_path)
        assert referenced(text) == pictures(tmp_path) and len(pictures(tmp_path)) < 5

    @pytest.mark.parametrize("curve", [[], [[5, None], [10, 6.0]], [[10, 6.0]]], ids=["empty", "with a gap", "short"])
    def test_curves_of_unequal_length_can_be_drawn(self, tmp_path, curve):
        runs = full(study(seeds=(0, 1), variants=("baseline", "rope")))
        runs[0]["curves"]["validation"] = curve
        text = report(runs, tmp_path)
        assert referenced(text) == pictures(tmp_path)

    def test_more_variants_than_colours(self, tmp_path):
        runs = [record(f"v{n}", seed, 6.0 + seed) for n in range(20) for seed in (0, 1)]
        text = report(full(runs), tmp_path)
        assert "v19" in text


def only(*variants, seeds=(0, 1)):
    return study(variants=variants, seeds=seeds)


CASES = {
    "minimal": study(),
    "full": full(study(), RATIOS),
    "one seed": study(seeds=(0,)),
    "only the baseline": only("baseline"),
    "only the baseline, in full": full(only("baseline")),
    "one variant": only("rope"),
    "no baseline": only("rope", "gqa", "rope-gqa"),
    "no baseline, in full": full(only("rope", "gqa", "rope-gqa")),
    "one run": only("baseline", seeds=(0,)),
    "some failed": [*only("baseline", "rope"), failed("gqa", 0), failed("gqa", 1)],
    "all failed": [failed(name, 0) for name in VARIANTS],
    "nothing": [],
    "seeds apart": [record("baseline", 0, 6.0), record("rope", 1, 5.0)],
    "the least": [{"variant": "a", "seed": 0, "status": "finished", "metrics": {"validation_loss": 6.0}}],
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return {name: report(runs, tmp_path_factory.mktemp("report")) for name, runs in CASES.items()}


class TestAnyStudy:
    @pytest.mark.parametrize("case", CASES)
    def test_no_heading_and_no_label_stands_alone(self, texts, case):
        lines = [line for line in texts[case].splitlines() if line.strip()]
        for line, below in zip(lines, [*lines[1:], "#"], strict=True):
            assert not (line.startswith("#") and below.startswith("#") and below.count("#") <= line.count("#")), line
            assert not re.fullmatch(r"- \*\*[^*]+\*\*\s*", line), line

    @pytest.mark.parametrize("case", CASES)
    def test_no_word_of_python_and_no_empty_place(self, texts, case):
        assert not re.search(r"\b(None|nan|inf)\b|\{\w*\}|\(\)", texts[case]), case

    @pytest.mark.parametrize("case", CASES)
    def test_no_claim_without_a_baseline_or_a_second_variant(self, texts, case):
        if case not in ("minimal", "full", "some failed"):
            assert not re.search(f"{LOSS_CLAIMS}|{SPEED_CLAIMS}", texts[case]), case

    def test_one_variant_is_compared_with_nothing(self, texts):
        assert "nothing to compare it with" in texts["one variant"] and "nothing to compare it with" in texts["only the baseline"]

    def test_a_missing_baseline_is_named(self, texts):
        assert "the baseline is missing" in texts["no baseline"]

    def test_where_all_failed_each_is_named_and_nothing_is_answered(self, texts):
        text = texts["all failed"]
        assert "No run finished" in text and "8 of 8 runs have no result" in text
        assert all(f"**{name}, seed 0**: failed (killed by SIGKILL)" in text for name in VARIANTS)
        assert "## Results" not in text

    def test_what_failed_is_named_and_nothing_is_said_about_it(self, texts):
        text = texts["some failed"]
        assert "2 of 6 runs have no result" in text and "**gqa, seed 1**: failed (killed by SIGKILL)" in text
        assert "Nothing is said about gqa" in text
        assert "gqa" not in text.split("## Missing")[0] + text.split("## Results")[1]

    def test_what_is_missing_is_named(self, tmp_path):
        text = report([*only("baseline", "rope"), {**failed("rope", 2), "status": "missing", "error": None}], tmp_path)
        assert "**rope, seed 2**: missing" in text and "Nothing is said about" not in text

    def test_seeds_that_two_variants_do_not_share_tell_nothing_of_their_difference(self, texts):
        """6.0 with one seed and 5.0 with another: the difference is that of the variants and of the seeds in unknown parts."""
        row = next(row for row in table_under(texts["seeds apart"], "## Results") if row[0] == "rope")
        assert not numbers_in(row[10] if len(row) > 10 else "")


class TestUnknownVariant:
    TEXTS = {
        "title": "Linear biases (ALiBi)", "paper": "Press et al. 2108.12409", "idea": "Far keys weigh less.",
        "challenges": "Kernels need a bias.", "worth": "For long texts.",
    }  # fmt: skip

    def runs(self):
        return [*study(seeds=(0, 1)), *(record("alibi", s, 5.0, factors=["alibi"], texts=self.TEXTS, order=8) for s in (0, 1))]

    def test_it_stands_in_the_report_with_its_own_words(self, tmp_path):
        text = report(self.runs(), tmp_path)
        section = text.split("### Linear biases (ALiBi) (`alibi`)\n")[1].split("\n## ")[0]
        for words in ("Far keys weigh less.", "Press et al. 2108.12409", "Kernels need a bias.", "For long texts.", "lowers"):
            assert words in section
        assert "**alibi has the lowest validation loss**" in text

    def test_its_effect_is_not_mixed_with_the_factorial(self, tmp_path):
        rows = table_under(report(self.runs(), tmp_path), "## Effects")
        assert [row[0] for row in rows[:3]] == list(FACTORS) and len(rows) == 7


class TestOddMetrics:
    ODD = {
        "rope": ("parameters_total", "kv_bytes_full", "kv_bytes_per_token"),
        "gqa": ("training_tokens_per_second", "training_peak_bytes"),
        "swa": ("validation_perplexity", "validation_bits_per_byte", "validation_loss_late"),
        "rope-gqa": ("training_speed_ratio", "parameters_attention"),
        "rope-swa": ("training_speed_ratio_low", "training_flops_per_token", "run_seconds"),
    }

    @pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "fast", [1]], ids=str)
    def test_a_metric_that_is_no_number_is_a_dash(self, tmp_path, value):
        """As whoever writes a results.json may leave it: Python's json writes NaN, others null."""
        runs = full(study(seeds=(0, 1)))
        for run in runs:
            run["metrics"] |= dict.fromkeys(self.ODD.get(run["variant"], ()), value)
        text = report(runs, tmp_path)
        assert not re.search(r"\b(nan|inf|None)\b", text)
        rows = {row[0]: row for row in table_under(text, "## Results")}
        assert rows["rope"][1] == rows["gqa"][5] == rows["swa"][8] == rows["rope-swa"][2] == "–" and rows["rope"][5] != "–"
        assert referenced(text) == pictures(tmp_path)

    def test_metrics_that_are_not_there_are_dashes(self, tmp_path):
        for row in table_under(report(study(), tmp_path), "## Results"):
            assert row[1:7] == 6 * ["–"]

    def test_an_environment_of_another_kind(self, tmp_path):
        runs = study(seeds=(0, 1))
        for run in runs:
            run["environment"] = {"gpu": "H200"}
        assert "None" not in report(runs, tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_a_benchmark_report_beside_it_is_linked(tmp_path, there):
    if there:
        (tmp_path / "benchmarks.md").write_text("# Benchmarks")
    assert ("(benchmarks.md)" in report(full(study()), tmp_path)) is there


class TestRefusal:
    def test_a_run_that_stands_there_twice(self, tmp_path):
        with pytest.raises(UserError) as raised:
            write_report([*study(), record("rope", 1, 5.0)], tmp_path)
        assert "rope seed 1" in refusal(raised) and "twice" in refusal(raised)

    def test_several_presets(self, tmp_path):
        with pytest.raises(UserError) as raised:
            write_report([record("baseline", 0, 6.0, preset="cpu"), record("rope", 0, 6.0, preset="smoke")], tmp_path)
        assert "cpu, smoke" in refusal(raised)

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "reports").write_text("a file")
        with pytest.raises(UserError) as raised:
            write_report(study(), tmp_path / "reports")
        assert "reports" in refusal(raised)


def test_a_report_needs_no_torch(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results(full(study()))))
    code = (
        "import sys; from gpt2_ablate.cli import main; status = main(sys.argv[1:]); "
        "print(sorted({'torch', 'lightning', 'datasets'} & set(sys.modules))); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "report", "--results", tmp_path / "results.json", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "reports" / "analysis.md").exists()
