"""What `gpt2-ablate bench` asks for, and what it leaves; that it is measured rightly is tested in tests/evaluation."""

import json

import pytest

from gpt2_ablate.benchmarks import measurements
from gpt2_ablate.cli import main
from gpt2_ablate.utils import process

from ..report.test_benchmarks import RESULTS
from ..study.tiny import VARIANTS


@pytest.fixture
def asked(monkeypatch):
    """The functions that children were asked to call; each gives what the made-up results have."""
    training, attention, decoding = RESULTS["training"][0], RESULTS["attention"]["4 heads of 32"], RESULTS["decoding"]
    one = RESULTS["variants"]["variants"]["rope"]
    answers = {
        "machine_limits": RESULTS["limits"], "speed": {name: {**one} for name in VARIANTS}, "memory": 2**20,
        "training_speeds": {k: v for k, v in training.items() if k not in ("name", "config", "batch_size", "peak_bytes")},
        "training_peak": {"added": 2**20, "process": 2**21}, "attention_speeds": attention, "attention_peak": 2**20,
        "against_generate": {k: v for k, v in decoding["against_generate"][0].items() if k not in ("name", "dtype")},
        "by_context": decoding["by_context"]["1"], "far_past_the_window": decoding["long_text"],
    }  # fmt: skip
    names = []

    def answer(function, *args, **how):
        names.append(function.rpartition(":")[2])
        return answers[names[-1]]

    monkeypatch.setattr(process, "run_in_child", answer)
    return names


@pytest.mark.parametrize("quick", [False, True])
def test_it_leaves_a_report_its_numbers_and_figures(tmp_path, asked, quick, capsys):
    assert main(["bench", "--out", str(tmp_path), *(["--quick"] if quick else [])]) == 0
    reports = tmp_path / "reports"
    text = (reports / "benchmarks.md").read_text()
    assert ("quick look" in text) is quick and f"Report: {reports / 'benchmarks.md'}" in capsys.readouterr().out
    numbers = json.loads((reports / "benchmarks.json").read_text())
    assert set(numbers["variants"]["variants"]) == set(VARIANTS) and numbers["quick"] is quick
    assert {file.name for file in (reports / "figures").iterdir()} == {"bench_attention.png", "bench_decoding.png"}
    assert asked.count("memory") == len(VARIANTS) * (1 if quick else measurements.PROCESSES)


def test_what_the_study_has_measured_is_not_measured_again(tmp_path, asked):
    assert main(["bench", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "reports" / "benchmarks.json").read_text())["variants"]
    asked.clear()
    file = measurements.file_of(tmp_path / "other", "cpu")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(found))
    assert main(["bench", "--out", str(tmp_path / "other")]) == 0
    assert "speed" not in asked and "training_speeds" in asked
    assert json.loads((tmp_path / "other" / "reports" / "benchmarks.json").read_text())["variants"] == found


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, asked, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err and asked == []


def test_what_could_not_be_measured_is_named_with_its_log(tmp_path, monkeypatch, capsys):
    def fail(*args, **how):
        raise process.Failure("killed by SIGKILL")

    monkeypatch.setattr(process, "run_in_child", fail)
    assert main(["bench", "--out", str(tmp_path)]) == 2
    assert "SIGKILL" in capsys.readouterr().err and not (tmp_path / "reports" / "benchmarks.md").exists()
