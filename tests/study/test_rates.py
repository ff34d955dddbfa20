"""Each variant at its best learning rate: which runs follow from which, and a study of it that is stopped in every stage."""

import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import yaml

from gpt2_ablate.cli import main
from gpt2_ablate.errors import UserError
from gpt2_ablate.study.plan import load_plan
from gpt2_ablate.study.rates import at_best_rates, parse_rates, with_rates

from .tiny import (
    REPOSITORY,
    checkpoint_in,
    finish,
    kill_group,
    members,
    preset,
    refusal,
    results_of,
    start,
    wait_until,
    write_preset,
    write_variant,
)

RATES = [1e-3, 2e-3, 4e-3]


@pytest.fixture
def experiments(tmp_path):
    folder = tmp_path / "experiments"
    shutil.copytree(REPOSITORY / "experiments", folder)
    (folder / "presets" / "tiny.yaml").write_text(yaml.safe_dump(preset()))
    return folder


def plan(experiments, *variants, seeds=(), rates=RATES, **more):
    return with_rates(load_plan("tiny", variants or ("baseline", "rope"), seeds, experiments, **more), rates)


def rate_of(run):
    return run.config["model"]["learning_rate"]


def losses(plan, of):
    """Records of the tuning runs, with the loss that a function of (variant, rate) says; None: it failed."""
    return [
        {"variant": r.variant, "stage": r.stage, "config": r.config, "metrics": {"validation_loss": of(r.variant, rate_of(r))}}
        for r in plan.tuning
    ]


class TestRates:
    def test_words_become_numbers_from_the_lowest(self):
        assert parse_rates(["4e-3", "0.001", "2E-3"]) == RATES

    @pytest.mark.parametrize(
        "words",
        [["fast", "1e-3"], ["1e-3", ""], ["0", "1e-3"], ["-1e-3", "1e-3"], ["inf", "1e-3"], ["nan", "1e-3"], ["1e-3", "1e999"],
         ["1e-3", "0.001"], ["1e-3"], []],
        ids=" ".join,
    )  # fmt: skip
    def test_bad_ones_are_refused_in_one_line(self, words):
        with pytest.raises(UserError) as raised:
            parse_rates(words)
        assert "learning rates" in refusal(raised) and "1e-3,2e-3,4e-3" in refusal(raised)

    @pytest.mark.parametrize("words", ["fast,1e-3", "1e-3", "0,1e-3", "-1e-3,1e-3", "1e-3,1e-3", ","])
    def test_nothing_is_begun(self, tmp_path, monkeypatch, capsys, words):
        monkeypatch.chdir(tmp_path)
        assert main(["ablate", "--preset", "smoke", f"--learning-rates={words}"]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and "learning rates" in captured.err and captured.out == ""
        assert list(tmp_path.iterdir()) == []


class TestPlan:
    def test_every_variant_is_tried_at_every_rate_with_a_seed_of_its_own(self, experiments):
        found = plan(experiments, seeds=[4, 0])
        tried = [(run.variant, rate_of(run), run.seed, run.config["seed_everything"], run.stage) for run in found.tuning]
        assert tried == [(variant, rate, 5, 5, "tuning") for variant in ("baseline", "rope") for rate in RATES]

    def test_the_comparison_is_that_of_a_study_without_rates(self, experiments):
        assert plan(experiments).runs == load_plan("tiny", ("baseline", "rope"), (), experiments).runs

    def test_runs_differ_in_the_rate_and_in_nothing_else(self, experiments):
        found = plan(experiments)
        for run in found.tuning:
            (same,) = (r for r in found.runs if (r.variant, r.seed) == (run.variant, 0))
            model = {**run.config["model"], "learning_rate": 2e-3}
            assert {**run.config, "model": model, "seed_everything": 0} == same.config

    def test_every_run_has_a_place_of_its_own(self, experiments):
        found = plan(experiments)
        runs = [*found.runs, *found.tuning, *at_best_rates(found.runs, losses(found, lambda variant, rate: 5 + rate))]
        assert len({run.path for run in runs}) == len({run.fingerprint("") for run in runs}) == len(runs) == 4 + 6 + 4

    def test_at_its_own_rate_a_run_is_that_of_a_study_without_rates(self, experiments):
        """So that it is trained once, whichever study asks for it first."""
        (own,) = [run for run in plan(experiments, "rope").tuning if rate_of(run) == 2e-3]
        (same,) = load_plan("tiny", ["rope"], [2], experiments).runs
        assert own.path == same.path and own.fingerprint("") == same.fingerprint("")

    @pytest.mark.parametrize("said", [None, "2e-3"], ids=["not at all", "as YAML reads a number without a point"])
    def test_a_preset_that_says_its_rate_otherwise(self, experiments, said):
        content = preset()
        content["model"]["learning_rate"] = said
        if said is None:
            del content["model"]["learning_rate"]
        (experiments / "presets" / "tiny.yaml").write_text(yaml.safe_dump(content))
        default = 6e-4 if said is None else 2e-3
        runs = plan(experiments, "rope", rates=[default, 1.0]).tuning
        assert [run.learning_rate for run in runs] == [None, 1.0]

    def test_a_variant_with_a_rate_of_its_own_is_not_tuned(self, experiments):
        write_variant(experiments, "fast", {"model": {"learning_rate": 0.5}})
        found = plan(experiments, "baseline", "fast", "rope-fast")
        assert {run.variant for run in found.tuning} == {"baseline"}
        assert {run.variant: rate_of(run) for run in found.runs} == {"baseline": 2e-3, "fast": 0.5, "rope-fast": 0.5}

    def test_none_but_those_leave_nothing_to_choose(self, experiments):
        write_variant(experiments, "fast", {"model": {"learning_rate": 0.5}})
        with pytest.raises(UserError) as raised:
            plan(experiments, "fast")
        assert "fast" in refusal(raised) and "learning_rate" in refusal(raised)

    def test_no_seed_may_be_left(self, experiments):
        with pytest.raises(UserError) as raised:
            plan(experiments, seeds=[2**32 - 1])
        assert "seed" in refusal(raised)


class TestChoice:
    def test_the_seeds_of_the_comparison_at_each_variants_best(self, experiments):
        found = plan(experiments)
        best = {"baseline": 1e-3, "rope": 4e-3}
        runs = at_best_rates(found.runs, losses(found, lambda variant, rate: abs(rate - best[variant])))
        assert [(r.variant, r.seed, r.stage) for r in runs] == [(r.variant, r.seed, "best") for r in found.runs]
        assert {r.variant: rate_of(r) for r in runs} == best

    def test_where_that_is_the_common_rate_they_are_the_same_runs(self, experiments):
        found = plan(experiments, rates=[1e-3, 2e-3])
        runs = at_best_rates(found.runs, losses(found, lambda variant, rate: 5 - rate))
        assert [(run.path, run.config) for run in runs] == [(run.path, run.config) for run in found.runs]

    def test_one_that_failed_is_not_chosen(self, experiments):
        found = plan(experiments)
        runs = at_best_rates(found.runs, losses(found, lambda variant, rate: None if rate > 3e-3 else 5 - rate))
        assert {rate_of(run) for run in runs} == {2e-3}

    def test_a_variant_of_which_all_failed_has_none(self, experiments):
        found = plan(experiments)
        runs = at_best_rates(found.runs, losses(found, lambda variant, rate: None if variant == "rope" else 5.0))
        assert {run.variant for run in runs} == {"baseline"}


# ------------------------------------------------------------------------------------------------------ from end to end

STUDY = ("ablate", "--preset", "tiny.yaml", "--variants", "baseline,rope", "--out", "out", "--learning-rates", "1e-3,1e-2")


def stages(out):
    return sorted((r.get("stage", "common"), r["variant"], r["seed"], rate_of_record(r)) for r in results_of(out)["runs"])


def rate_of_record(record):
    return record["config"]["model"]["learning_rate"]


@pytest.fixture(scope="module")
def story(trained, tmp_path_factory):
    """The trained study goes on at several learning rates: stopped among the trials, killed in the second comparison, ended."""
    folder = tmp_path_factory.mktemp("rates") / "copy"
    shutil.copytree(trained, folder)
    runs, seen = folder / "out" / "checkpoints" / "tiny", SimpleNamespace(folder=folder, out=folder / "out", running=[])

    def records():
        return {file.parent: file.read_bytes() for file in runs.rglob("record.json")}

    def train_up_to(run):
        process = start(folder, *STUDY)
        seen.running.append(process)
        checkpoint_in(runs / run, process)
        return process

    seen.before = records()
    try:
        process = train_up_to("rope/rate-0.001/seed-2")
        os.killpg(process.pid, signal.SIGINT)
        seen.stopped = finish(process, 30)
        wait_until(lambda: not members(process), 30)
        seen.after_stop = records()
        process = train_up_to("rope/rate-0.01/seed-0")
        kill_group(process)
        process.communicate()
        seen.after_kill = records()
        seen.last = finish(start(folder, *STUDY))
        seen.after_all = records()
        yield seen
    finally:
        for process in seen.running:
            kill_group(process)


class TestStudy:
    def test_it_says_what_it_does(self, story):
        assert story.stopped[0] == 2 and "same command" in story.stopped[2]
        assert "tried with seed 2" in story.stopped[1] and "4 runs to do, 4 kept from before; then 4 at" in story.stopped[1]
        status, out, err = story.last
        assert status == 0, out + err
        assert "0 runs to do, 8 kept" in out and "Best learning rates: baseline 0.01, rope 0.01." in out
        assert "3 runs to do, 1 kept" in out and "[10/12] rope, seed 0, rate 0.01: finished" in out

    def test_what_was_finished_is_left_alone(self, story):
        assert len(story.before) == 4 < len(story.after_stop) < len(story.after_kill) < len(story.after_all) == 12
        for earlier in (story.before, story.after_stop, story.after_kill):
            assert earlier.items() <= story.after_all.items()

    def test_a_run_does_not_know_what_it_was_trained_for(self, story):
        """A trial at the common rate may be a run of a later comparison."""
        assert not any(b'"stage"' in record for record in story.after_all.values())

    def test_the_results_hold_all_runs_and_what_each_is_for(self, story):
        variants = ("baseline", "rope")
        assert stages(story.out) == sorted(
            [("common", v, seed, 2e-3) for v in variants for seed in (0, 1)]
            + [("tuning", v, 2, rate) for v in variants for rate in (1e-3, 1e-2)]
            + [("best", v, seed, 1e-2) for v in variants for seed in (0, 1)]
        )
        assert all(run["metrics"]["training_tokens_per_second"] for run in results_of(story.out)["runs"])

    def test_the_report_has_the_section_and_the_figure(self, story):
        text = (story.out / "reports" / "analysis.md").read_text()
        assert "## Learning rates" in text and "with seed 2" in text and "Extend the range upwards" in text.split("## Results")[0]
        assert (story.out / "reports" / "figures" / "loss_against_rate.png").exists()
        assert "LEARNING_RATES=0.001,0.01" in text

    def test_the_report_is_written_again_from_its_results(self, story, tmp_path):
        reports = story.out / "reports"
        assert main(["report", "--results", str(reports / "results.json"), "--out", str(tmp_path)]) == 0
        for name in ("results.json", "analysis.md"):
            assert (tmp_path / "reports" / name).read_bytes() == (reports / name).read_bytes()

    def test_without_rates_it_is_the_study_that_it_was(self, story, trained, tmp_path, monkeypatch, capsys):
        shutil.copytree(story.folder, tmp_path / "plain")
        monkeypatch.chdir(tmp_path / "plain")
        assert main([*STUDY[:-2]]) == 0
        for name in ("results.json", "analysis.md"):
            assert (tmp_path / "plain/out/reports" / name).read_bytes() == (trained / "out" / "reports" / name).read_bytes()
        assert "0 runs to do, 4 kept from before\n" in capsys.readouterr().out

    def test_one_variant_is_reported_beside_the_others_and_their_rates(self, story, tmp_path, monkeypatch, capsys):
        shutil.copytree(story.folder, tmp_path / "one")
        monkeypatch.chdir(tmp_path / "one")
        before = stages(tmp_path / "one" / "out")
        assert main(["ablate", "--preset", "tiny.yaml", "--variants", "rope", *STUDY[5:]]) == 0
        assert stages(tmp_path / "one" / "out") == before
        assert "runs to do, 4 kept" in capsys.readouterr().out

    def test_a_rate_that_diverges_is_a_failed_run_and_never_the_best(self, trained, tmp_path, monkeypatch, capsys):
        """Seed 1 has been trained at 2e-3 already, which is the best here: nothing is left but the rate that diverges."""
        shutil.copytree(trained, tmp_path / "wild")
        monkeypatch.chdir(tmp_path / "wild")
        one = ("--preset", "tiny.yaml", "--variants", "baseline", "--seeds", "0", "--out", "out")
        assert main(["ablate", *one, "--learning-rates", "2e-3,1e30"]) == 1
        out = capsys.readouterr().out
        assert "baseline, seed 1, rate 1e+30: failed: the loss became" in out and "Best learning rates: baseline 0.002." in out
        found = {
            (r.get("stage"), r["seed"], r["status"])
            for r in results_of(tmp_path / "wild" / "out")["runs"]
            if r["variant"] == "baseline"
        }
        assert found == {(None, 0, "finished"), ("tuning", 1, "finished"), ("tuning", 1, "failed"), ("best", 0, "finished")}
        text = (tmp_path / "wild" / "out" / "reports" / "analysis.md").read_text()
        assert "**baseline, seed 1, learning rate 1e+30**: failed" in text

    def test_a_rate_of_the_preset_that_is_none_is_refused_as_ever(self, trained, tmp_path, monkeypatch, capsys):
        shutil.copy(trained / "corpus.txt", tmp_path)
        write_preset(tmp_path / "tiny.yaml", "corpus.txt", model={"learning_rate": "fast"})
        monkeypatch.chdir(tmp_path)
        assert main(list(STUDY)) == 2
        assert "learning_rate" in capsys.readouterr().err and list(tmp_path.rglob("record.json")) == []
