"""A study that starts from a checkpoint: each variant is that checkpoint converted, and the report says what came back."""

import json
import shutil

import pytest

from gpt2_ablate.cli import main
from gpt2_ablate.study.plan import load_plan
from gpt2_ablate.study.report import write_report
from gpt2_ablate.study.warm_start import recoveries

from .tiny import cli, full, record, results_of, study, table_under, write_preset

CHECKPOINT = "out/checkpoints/tiny/baseline/seed-0"


@pytest.fixture(scope="module")
def uptrained(trained, tmp_path_factory):
    """A copy of the trained study, and beside it one that starts from its baseline; three steps of eight."""
    folder = tmp_path_factory.mktemp("uptrained") / "copy"
    shutil.copytree(trained, folder)
    write_preset(folder / "warm.yaml", "corpus.txt", uptraining=0.4, seeds=[0, 1])
    status, out, err = cli(
        folder, "ablate", "--preset", "warm.yaml", "--init", CHECKPOINT, "--variants", "baseline,gqa,swa,rope", "--out", "warm"
    )
    assert status == 0, out + err
    return folder / "warm"


class TestPlan:
    @pytest.fixture(autouse=True)
    def here(self, trained, monkeypatch):
        monkeypatch.chdir(trained)

    def plan(self, **changes):
        write_preset(self.preset, "corpus.txt", **changes)
        return load_plan(str(self.preset), ["baseline", "gqa"], [0], init=CHECKPOINT)

    @pytest.fixture(autouse=True)
    def preset_file(self, tmp_path):
        self.preset = tmp_path / "p.yaml"

    @pytest.mark.parametrize(("share", "steps"), [(0.5, 4), (0.05, 1), (1.0, 8), (1, 8)])
    def test_a_share_of_the_steps_is_trained(self, share, steps):
        assert {run.max_steps for run in self.plan(uptraining=share).runs} == {steps}

    def test_the_model_is_that_of_the_checkpoint_with_the_changes_of_the_variant(self):
        """Whatever the preset says of it."""
        baseline, gqa = self.plan(model={"config": {"n_layer": 5, "n_embd": 64}}).runs
        assert baseline.config["model"]["config"]["n_layer"] == 2 and baseline.config["model"]["config"]["n_embd"] == 16
        assert baseline.config["model"]["config"]["n_kv_head"] is None and gqa.config["model"]["config"]["n_kv_head"] == 1

    def test_it_does_not_overwrite_what_the_preset_trains_from_nothing(self):
        assert {run.path.parts[0] for run in self.plan().runs} == {"p-uptrained"}

    def test_a_checkpoint_that_the_preset_names_is_looked_for_where_its_output_goes(self, trained):
        write_preset(self.preset, "corpus.txt", init="checkpoints/tiny/baseline/seed-0", uptraining=0.5)
        plan = load_plan(str(self.preset), ["gqa"], [0], out=trained / "out")
        assert plan.preset == "p" and plan.runs[0].max_steps == 4
        assert plan.runs[0].config["model"]["init"] == str(trained / CHECKPOINT)

    def test_other_weights_are_another_run(self, trained):
        one = self.plan().runs[0].fingerprint("corpus")
        other = load_plan(str(self.preset), ["baseline"], [0], init=CHECKPOINT.replace("baseline", "rope"))
        assert other.runs[0].fingerprint("corpus") != one == self.plan().runs[0].fingerprint("corpus")

    @pytest.mark.parametrize("share", [0, 0.0, 1.5, -0.1, "half", True])
    def test_a_share_that_is_none_is_refused(self, refused, share):
        with refused("uptraining", "p.yaml"):
            self.plan(uptraining=share)


def test_a_checkpoint_that_is_not_there_is_one_line(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["ablate", "--preset", "tiny.yaml", "--init", "nowhere/at/all", "--out", "none"]) == 2
    assert "nowhere/at/all" in capsys.readouterr().err and not (trained / "none" / "reports").exists()


def test_an_unchanged_model_starts_where_the_checkpoint_ended(uptrained, trained):
    record = json.loads((trained / CHECKPOINT / "record.json").read_text())
    before = {(r["variant"], r["seed"]): r["metrics"]["validation_loss_before"] for r in results_of(uptrained)["runs"]}
    for seed in (0, 1):
        assert before["baseline", seed] == pytest.approx(record["metrics"]["validation_loss"], abs=1e-6)
    assert before["gqa", 0] == before["gqa", 1] != before["baseline", 0]


def test_seeds_differ_in_what_they_are_trained_on(uptrained):
    after = [r["metrics"]["validation_loss"] for r in results_of(uptrained)["runs"] if r["variant"] == "baseline"]
    assert len(set(after)) == 2


def test_the_report_says_what_was_lost_and_what_came_back(uptrained):
    text = (uptrained / "reports" / "analysis.md").read_text()
    rows = {row[0]: row for row in table_under(text, "## From the checkpoint")}
    assert set(rows) == {"baseline", "gqa", "swa", "rope"} and CHECKPOINT in text
    found = recoveries(results_of(uptrained)["runs"])
    assert rows["gqa"][1] == f"{found['gqa'].before:.3f}"
    assert (uptrained / "reports" / "figures" / "conversion.png").exists()


class TestRecovery:
    """A planted study: rope loses 1 nat by conversion and ends 0.25 behind the control; gqa loses nothing."""

    @pytest.fixture
    def runs(self):
        runs = study({("rope",): 0.25}, noise=0.005, variants=["baseline", "rope", "gqa"])
        for run in runs:
            run["metrics"]["validation_loss_before"] = 7.0 + (run["variant"] == "rope")
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
        assert recoveries([run for run in runs if run["variant"] != "baseline"]) == {}

    def test_more_variants_than_colours(self, tmp_path):
        runs = [record(f"v{n}", seed, 6.0 + n) for n in range(20) for seed in (0, 1)]
        runs += [record("baseline", seed, 5.0) for seed in (0, 1)]
        for run in runs:
            run["metrics"]["validation_loss_before"] = 8.0 + 0.1 * (run["variant"] != "baseline")
        assert "From the checkpoint" in write_report(runs, tmp_path).read_text()

    def test_a_study_from_nothing_has_no_such_section(self, tmp_path):
        assert "From the checkpoint" not in write_report(full(study()), tmp_path).read_text()
