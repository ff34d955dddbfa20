"""A study from end to end: what it leaves, what it keeps, and what becomes of runs that fail."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from gpt2_ablate.cli import main
from gpt2_ablate.records import read_record, read_results
from gpt2_ablate.study.plan import load_plan
from gpt2_ablate.study.runner import run_study

from .tiny import (
    REPOSITORY,
    checkpoint_in,
    finish,
    make_checkout,
    members,
    merge,
    outcome,
    record_of,
    results_of,
    skip_unless_root,
    start,
    write_corpus,
    write_preset,
    write_variant,
)

ABLATE = ("ablate", "--preset", "tiny.yaml", "--variants", "baseline,rope", "--out", "out")


@pytest.fixture
def again(trained, tmp_path, monkeypatch):
    """A copy of the trained study, in which one can go on; it is the current folder."""
    folder = tmp_path / "again"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder with a corpus and a preset and nothing else; it is the current folder."""
    write_corpus(tmp_path / "corpus.txt")
    write_preset(tmp_path / "tiny.yaml", "corpus.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def experiments(tmp_path):
    shutil.copytree(REPOSITORY / "experiments", tmp_path / "experiments")
    return tmp_path / "experiments"


def stamps(out):
    """Every file of every run, with the moment of its last change; logs and locks apart."""
    files = [file for file in out.glob("checkpoints/tiny/*/seed-*/*") if file.name not in (".lock", "train.log")]
    return {str(file.relative_to(out)): file.stat().st_mtime_ns for file in files}


def redone(before, after):
    """Variants of which a record was written anew."""
    return {f.split("/")[2] for f in after if f.endswith("record.json") and before.get(f) != after[f]}


def only_line(capsys):
    """What a refused command says: one line, on stderr."""
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("gpt2-ablate: "), captured.err
    assert "Traceback" not in captured.out + captured.err
    return captured.err


class TestFinished:
    def test_leaves_what_the_design_says(self, trained):
        out = trained / "out"
        assert (out / "reports" / "analysis.md").read_text().startswith("# ")
        assert len(list((out / "reports" / "figures").glob("*.png"))) == 5
        for variant in ("baseline", "rope"):
            for seed in (0, 1):
                folder = out / "checkpoints" / "tiny" / variant / f"seed-{seed}"
                assert (folder / "model.safetensors").exists() and (folder / "model.json").exists()
                assert list((out / "reports" / "tensorboard" / "tiny" / variant / f"seed-{seed}").glob("events*"))
                assert list(folder.glob("*.ckpt")) == [] and list(folder.glob("*partial*")) == []
        assert {entry.name for entry in out.iterdir()} == {"checkpoints", "reports"}
        assert {entry.name for entry in trained.iterdir()} == {"corpus.txt", "tiny.yaml", "out", "stdout", "stderr"}

    def test_results_hold_every_record_and_what_was_measured(self, trained):
        runs = read_results(trained / "out" / "reports" / "results.json")
        assert [(r["variant"], r["seed"], r["status"]) for r in runs] == [
            (variant, seed, "finished") for seed in (0, 1) for variant in ("baseline", "rope")
        ]
        for run in runs:
            own = record_of(trained / "out", run["variant"], run["seed"])
            assert {k: v for k, v in run["metrics"].items() if k in own["metrics"]} == own["metrics"]
            for metric in ("training_tokens_per_second", "decoding_tokens_per_second", "training_peak_bytes"):
                assert run["metrics"][metric] > 0
            assert run["config"]["data"] == runs[0]["config"]["data"]
        ratios = {r["variant"]: r["metrics"]["training_speed_ratio"] for r in runs}
        assert ratios["baseline"] == 1.0

    def test_variants_with_one_seed_begin_alike_and_seeds_do_not(self, trained):
        first = {
            (v, s): record_of(trained / "out", v, s)["curves"]["validation"][0][1] for v in ("baseline", "rope") for s in (0, 1)
        }
        assert len(set(first.values())) == 4

    def test_the_configuration_is_that_of_the_plan(self, trained):
        config = yaml.safe_load((trained / "out" / "checkpoints" / "tiny" / "rope" / "seed-1" / "config.yaml").read_text())
        recorded = record_of(trained / "out", "rope", 1)["config"]
        assert merge(recorded, config) == recorded, "the record says what the YAML says, and the defaults"
        assert recorded["model"]["config"]["vocab_size"] == 50257 and recorded["model"]["weight_decay"] == 0.1
        assert config["seed_everything"] == 1 and config["model"]["config"]["positions"] == "rotary"

    def test_tells_its_progress_in_plain_lines(self, trained):
        text = (trained / "stdout").read_text()
        assert "4 runs to do" in text and "[4/4] rope, seed 1: finished, validation loss" in text and "left" in text
        assert "\x1b" not in text and (trained / "stderr").read_text() == ""
        assert "analysis.md" in text.splitlines()[-1]


class TestAgain:
    def test_the_same_call_keeps_all_and_changes_nothing(self, again, capsys):
        before, results = stamps(again / "out"), (again / "out" / "reports" / "results.json").read_bytes()
        analysis = (again / "out" / "reports" / "analysis.md").read_bytes()
        assert main(list(ABLATE)) == 0
        assert "0 runs to do, 4 kept" in capsys.readouterr().out
        assert stamps(again / "out") == before
        assert (again / "out" / "reports" / "results.json").read_bytes() == results
        assert (again / "out" / "reports" / "analysis.md").read_bytes() == analysis

    def test_one_more_variant_is_reported_beside_the_old_ones(self, again):
        before = stamps(again / "out")
        assert main(["ablate", "--preset", "tiny.yaml", "--variants", "gqa", "--seeds", "0", "--out", "out"]) == 0
        after = stamps(again / "out")
        assert redone(before, after) == {"gqa"} and before.items() <= after.items()
        assert {run["variant"] for run in results_of(again / "out")["runs"]} == {"baseline", "rope", "gqa"}

    def test_a_changed_variant_is_done_again_alone(self, again, experiments):
        content = yaml.safe_load((experiments / "variants" / "rope.yaml").read_text())
        content["model"]["learning_rate"] = 1e-3
        write_variant(experiments, "rope", content)
        before = stamps(again / "out")
        plan = load_plan("tiny.yaml", ["baseline", "rope"], built_in=experiments)
        runs = run_study(plan, again / "out")
        assert redone(before, stamps(again / "out")) == {"rope"}
        assert [run["status"] for run in runs] == 4 * ["finished"]
        assert runs[1]["config"]["model"]["learning_rate"] == 1e-3

    def test_changed_texts_reach_the_report_without_a_run(self, again, experiments):
        content = yaml.safe_load((experiments / "variants" / "rope.yaml").read_text())
        write_variant(experiments, "rope", {**content, "idea": "Quite another idea."})
        before = stamps(again / "out")
        runs = run_study(load_plan("tiny.yaml", ["baseline", "rope"], built_in=experiments), again / "out")
        assert stamps(again / "out") == before
        assert runs[1]["texts"]["idea"] == "Quite another idea."

    def test_a_changed_corpus_is_another_study(self, again, capsys):
        write_corpus(again / "corpus.txt", lines=601)
        before = stamps(again / "out")
        assert main([*ABLATE, "--seeds", "0"]) == 0
        assert redone(before, stamps(again / "out")) == {"baseline", "rope"}

    @pytest.mark.parametrize("harm", ["cut off", "gone"])
    def test_a_run_whose_weights_are_not_whole_is_named_and_done_again(self, again, capsys, harm):
        weights = again / "out" / "checkpoints" / "tiny" / "baseline" / "seed-1" / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2]) if harm == "cut off" else weights.unlink()
        assert main(list(ABLATE)) == 0
        assert re.search(r"baseline/seed-1/model\.safetensors: .*baseline seed 1 is done again", capsys.readouterr().out)
        assert weights.read_bytes() == whole

    def test_a_broken_record_is_named_and_its_run_done_again(self, again, capsys):
        record = again / "out" / "checkpoints" / "tiny" / "baseline" / "seed-1" / "record.json"
        whole = read_record(record)
        record.write_bytes(record.read_bytes()[:200])
        before = stamps(again / "out")
        assert main(list(ABLATE)) == 0
        assert re.search(r"baseline/seed-1/record\.json: .*baseline seed 1 is done again", capsys.readouterr().out)
        after = stamps(again / "out")
        assert {f for f in after if f.endswith("record.json") and before[f] != after[f]} == {
            str(record.relative_to(again / "out"))
        }
        assert outcome(read_record(record)) == outcome(whole)


class TestFailures:
    @pytest.fixture(scope="class")
    def failing(self, tmp_path_factory):
        """A study of three: the child of baseline is killed, wild has an absurd learning rate, rope is sound."""
        folder = make_checkout(tmp_path_factory.mktemp("failing") / "checkout")
        (folder / "mine").mkdir()
        (folder / "mine" / "wild.yaml").write_text("model: {learning_rate: 1.0e+30}")
        write_corpus(folder / "corpus.txt")
        write_preset(folder / "tiny.yaml", "corpus.txt", seeds=[0], factorial=["rope"], variants=["wild"])
        process = start(folder, "ablate", "--preset", "tiny.yaml", "--experiments", "mine", "--out", "out")
        checkpoint_in(folder / "out" / "checkpoints" / "tiny" / "baseline", process)
        everyone = members(process)
        server = next(p for p in everyone if any(other.ppid() == p.pid for other in everyone) and p.pid != process.pid)
        (child,) = [p for p in everyone if p.ppid() == server.pid]
        child.kill()
        return folder, *finish(process)

    def test_the_others_go_on_and_the_status_is_1(self, failing):
        folder, status, out, err = failing
        assert status == 1, err
        assert {r["variant"]: r["status"] for r in results_of(folder / "out")["runs"]} == {
            "baseline": "failed", "rope": "finished", "wild": "failed",
        }  # fmt: skip
        assert "Traceback" not in out + err

    def test_why_is_told_where_one_looks(self, failing):
        folder, _, out, _ = failing
        analysis = (folder / "out" / "reports" / "analysis.md").read_text()
        errors = {r["variant"]: r.get("error") for r in results_of(folder / "out")["runs"]}
        assert "SIGKILL" in errors["baseline"] and "nan" in errors["wild"] and "learning_rate" in errors["wild"]
        for variant in ("baseline", "wild"):
            assert f"{variant}, seed 0: failed: {errors[variant]}" in out
            assert errors[variant] in analysis and "\n" not in errors[variant]
            assert (folder / "out" / "checkpoints" / "tiny" / variant / "seed-0" / "train.log").exists()

    def test_the_next_call_tries_them_again(self, failing, monkeypatch):
        folder = failing[0]
        monkeypatch.chdir(folder)
        (folder / "mine" / "wild.yaml").write_text("model: {learning_rate: 1.0e-3}")
        before = stamps(folder / "out")
        runs = run_study(load_plan("tiny.yaml", experiments=folder / "mine"), folder / "out")
        assert [run["status"] for run in runs] == 3 * ["finished"]
        assert redone(before, stamps(folder / "out")) == {"baseline", "wild"}

    def test_a_run_that_ends_in_nan_unseen_has_failed(self, fresh, experiments):
        """Losses are looked at every log_every_n_steps; here never, before the last step."""
        write_preset(fresh / "tiny.yaml", "corpus.txt", seeds=[0], trainer={"log_every_n_steps": 100, "val_check_interval": 100})
        write_variant(experiments, "wild", {"model": {"learning_rate": 1e30}, "factors": ["wild"]})
        runs = run_study(load_plan("tiny.yaml", ["wild", "rope"], built_in=experiments), fresh / "out")
        assert {run["variant"]: run["status"] for run in runs} == {"wild": "failed", "rope": "finished"}


class TestRefusal:
    """What cannot work is said in one line with status 2, before anything is trained."""

    def refused(self, capsys, folder, *arguments):
        assert main(list(arguments or (*ABLATE, "--seeds", "0"))) == 2
        assert list(folder.rglob("*.ckpt")) == [] and list(folder.rglob("record.json")) == []
        return only_line(capsys)

    @pytest.mark.parametrize("kind", ["missing", "empty", "blank", "binary", "an empty folder", "too short"])
    def test_a_corpus(self, fresh, capsys, kind):
        place = fresh / "corpus.txt"
        place.unlink()
        if kind == "an empty folder":
            place.mkdir()
        elif kind != "missing":
            place.write_bytes({"empty": b"", "blank": b" \n", "binary": b"\x00\x01", "too short": b"A few words. " * 9}[kind])
        line = self.refused(capsys, fresh)
        assert "corpus" in line

    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"trainer": {"max_stepz": 3}}, "max_stepz"),
            ({"trainer": {"precision": "10-bit"}}, "precision"),
            ({"data": {"batch_sizes": 3}}, "batch_sizes"),
            ({"data": {"batch_size": 0}}, "batch_size"),
            ({"data": {"batch_size": "two"}}, "batch_size"),
            ({"data": {"validation_tokens": 5}}, "block_size"),
            ({"model": {"learning_rate": -1.0}}, "learning_rate"),
            ({"model": {"learning_rate": "fast"}}, "learning_rate"),
            ({"model": {"warm_up": 3}}, "warm_up"),
            ({"model": {"config": {"block_size": 4096}}}, "block_size"),
            ({"model": {"config": {"kernel": "flex"}}}, "kernel"),
            ({"model": {"config": {"kernel": "sliding"}}}, "kernel"),
            ({"evaluation_tokens": 10}, "evaluation_tokens"),
            ({"prompt": 40 * "the king "}, "prompt"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_a_preset(self, fresh, capsys, changes, key):
        write_preset(fresh / "tiny.yaml", "corpus.txt", **changes)
        assert key in self.refused(capsys, fresh)

    def test_an_output_folder_that_is_a_file(self, fresh, capsys):
        (fresh / "out").write_text("a file")
        assert "out" in self.refused(capsys, fresh)
        assert (fresh / "out").read_text() == "a file"

    def test_an_output_folder_that_cannot_be(self, fresh, capsys):
        assert "/proc/nowhere" in self.refused(capsys, fresh, *ABLATE[:-1], "/proc/nowhere")

    @skip_unless_root
    @pytest.mark.parametrize("size", ["8k", "1m", "14m"])
    def test_a_full_disk(self, fresh, capsys, size):
        """Full from the start; at the first checkpoint; at the second."""
        disk = fresh / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
            pytest.skip("a small disk cannot be mounted here")
        try:
            assert main([*ABLATE[:-1], "disk/out"]) == 2
            assert "disk" in only_line(capsys)
            assert list(disk.rglob("*.partial")) == []
            for file in disk.rglob("*.json"):
                json.loads(file.read_text())
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
