"""A study that starts from a checkpoint: each variant is that checkpoint converted, and the report says what came back."""

import json
import shutil

import pytest

from gpt2_ablate.cli import main
from gpt2_ablate.records import Record
from gpt2_ablate.report.collect import recoveries
from gpt2_ablate.study.plan import load_plan
from gpt2_ablate.training.trainer import build

from .tiny import cli, results_of, table_under, write_preset

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

    def test_the_vocabulary_is_that_of_the_checkpoint(self):
        (run, _) = self.plan(data={"vocab_size": 300}).runs
        assert run.config["model"]["config"]["vocab_size"] == build(run.config, [], logger=False).datamodule.vocab_size == 50257

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
    found = recoveries([Record.model_validate(run) for run in results_of(uptrained)["runs"]])
    assert rows["gqa"][1] == f"{found['gqa'].before:.3f}"
    assert (uptrained / "reports" / "figures" / "conversion.png").exists()
