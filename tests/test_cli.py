"""The console script: quick to explain itself, and every mistake is one line and status 2."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest

from gpt2_ablate import __version__
from gpt2_ablate.cli import main

from .study.tiny import cache_home, full, record, results, study, trained_study

COMMANDS = ("ablate", "train", "report", "sample", "verify", "evaluate", "convert", "export", "bench")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home())


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return trained_study(tmp_path_factory)


@pytest.fixture
def run_folder(trained):
    return trained / "out" / "checkpoints" / "tiny" / "baseline" / "seed-0"


@pytest.fixture
def refused(capsys):
    """A function that runs a command and returns the one line that it is refused with."""

    def refuse(*arguments):
        assert main([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("gpt2-ablate: ") and captured.err.count("\n") == 1, captured.err
        assert captured.out == ""
        return captured.err

    return refuse


def status(*arguments):
    """Exit status of a command, however it ends."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


class TestHelp:
    def test_takes_less_than_a_second_and_no_torch(self):
        code = (
            "import sys; from gpt2_ablate.cli import main\n"
            "try: main(['--help'])\n"
            "except SystemExit: print(sorted({'torch', 'lightning', 'numpy', 'yaml'} & set(sys.modules)))"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout.splitlines()[-1] == "[]"
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0

    def test_names_every_command(self, capsys):
        assert status("--help") == 0
        text = capsys.readouterr().out
        assert all(re.search(rf"^    {command} ", text, re.MULTILINE) for command in COMMANDS)

    @pytest.mark.parametrize(
        ("command", "options"),
        [
            ("ablate", ("--preset", "--variants", "--seeds", "--out")),
            ("report", ("--results", "--out")),
            ("sample", ("checkpoint", "--prompt", "--tokens", "--temperature", "--top-k", "--top-p", "--samples", "--seed")),
            ("verify", ("checkpoint", "--out")),
            ("evaluate", ("checkpoint", "--text", "--window", "--stride", "--lambada")),
            ("train", ("--config", "--seed_everything", "--model.learning_rate", "--data.corpus", "--trainer.max_steps")),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_explains_every_option_of_a_command(self, capsys, command, options):
        assert status(command, "--help") == 0
        text = capsys.readouterr().out
        assert all(option in text for option in options)

    def test_version(self, capsys):
        assert status("--version") == 0
        assert __version__ in capsys.readouterr().out


class TestMistakes:
    @pytest.mark.parametrize(
        "arguments",
        [
            (), ("ablat",), ("ablate", "--presets", "cpu"), ("ablate", "--seeds", "one"), ("ablate", "--seeds", "0.5"),
            ("sample",), ("sample", "folder", "--tokens", "many"), ("sample", "folder", "--temperature", "hot"),
            ("report", "file"),
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_of_the_command_line_are_explained(self, capsys, arguments):
        assert status(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and "gpt2-ablate" in captured.err and "Traceback" not in captured.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--preset", "cpus"), ("preset", "cpus", "smoke")),
            (("--preset", "none.yaml"), ("none.yaml",)),
            (("--variants", "rope,ropes"), ("variant", "ropes", "rope-gqa")),
            (("--seeds=-1",), ("seed", "-1")),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_of_a_study_are_one_line(self, refused, tmp_path, monkeypatch, arguments, words):
        monkeypatch.chdir(tmp_path)
        line = refused("ablate", *arguments)
        assert all(word in line for word in words)
        assert list(tmp_path.iterdir()) == []


class TestReport:
    def write(self, file, runs, schema=1):
        file.write_text(json.dumps(results(runs, schema)))
        return file

    def test_a_results_file_alone_becomes_a_report(self, tmp_path, capsys):
        runs = full(study())
        file = self.write(tmp_path / "elsewhere.json", runs)
        assert status("report", "--results", file, "--out", tmp_path / "out") == 0
        reports = tmp_path / "out" / "reports"
        assert (reports / "analysis.md").read_text().startswith("# ")
        assert len(list((reports / "figures").glob("*.png"))) == 5
        written = json.loads((reports / "results.json").read_text())
        assert written.pop("facts")["best"] and written == results(runs)
        out = capsys.readouterr().out
        assert "rope-gqa-swa" in out and "analysis.md" in out

    def test_that_of_a_study_is_written_again(self, trained, tmp_path, monkeypatch):
        shutil.copytree(trained / "out", tmp_path / "out")
        before = {f: f.read_bytes() for f in (tmp_path / "out" / "reports").iterdir() if f.is_file()}
        (tmp_path / "out" / "reports" / "analysis.md").unlink()
        monkeypatch.chdir(tmp_path / "out")
        assert status("report") == 0
        assert {f: f.read_bytes() for f in before} == before

    def test_the_table_fits_and_names_all(self, tmp_path, capsys):
        file = self.write(
            tmp_path / "r.json", [*full(study()), {**record("alibi", 0, None), "status": "failed", "error": "[x] broke"}]
        )
        status("report", "--results", file, "--out", tmp_path)
        lines = capsys.readouterr().out.splitlines()
        assert "alibi seed 0: failed" in " ".join(lines) and "[x] broke" in " ".join(lines)
        assert all(len(line) <= 100 for line in lines if "Report:" not in line)
        (row,) = [line for line in lines if line.startswith("rope-gqa-swa ")]
        assert "…" not in row and "[" in row and row.endswith("]") or row.rstrip().endswith("]")

    @pytest.mark.parametrize(
        ("runs", "schema", "words"),
        [
            (study(), 2, "schema"),
            ([*study(), record("rope", 1, 5.0)], 1, "twice"),
            ([record("rope", 0, 6.0, preset="a"), record("rope", 0, 6.0, preset="b")], 1, "presets"),
            ([record("rope", 0, None)], 1, "validation_loss"),
            ("runs", 1, "runs"),
        ],
        ids=["schema", "twice", "presets", "no loss", "no list"],
    )
    def test_what_cannot_be_reported_is_one_line_and_changes_nothing(self, refused, tmp_path, runs, schema, words):
        file = self.write(tmp_path / "r.json", runs, schema)
        (tmp_path / "out" / "reports").mkdir(parents=True)
        (tmp_path / "out" / "reports" / "results.json").write_text("of another study")
        assert words in refused("report", "--results", file, "--out", tmp_path / "out")
        assert (tmp_path / "out" / "reports" / "results.json").read_text() == "of another study"

    def test_a_truncated_file_is_one_line(self, refused, tmp_path):
        file = self.write(tmp_path / "r.json", study())
        file.write_bytes(file.read_bytes()[:300])
        assert "r.json" in refused("report", "--results", file, "--out", tmp_path)

    def test_a_file_that_is_not_there_is_one_line(self, refused, tmp_path):
        assert "results.json" in refused("report", "--out", tmp_path)

    def test_a_folder_in_the_place_of_the_file_is_one_line(self, refused, tmp_path):
        assert str(tmp_path) in refused("report", "--results", tmp_path)


class TestSample:
    def text(self, capsys, *arguments):
        assert main(["sample", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    def test_begins_with_the_prompt_and_depends_on_the_seed_alone(self, run_folder, capsys):
        one, again, other = (
            self.text(capsys, run_folder, "--prompt", "the king", "--tokens", 20, "--seed", s) for s in (1, 1, 2)
        )
        assert one == again != other
        assert one.startswith("the king") and len(one) > len("the king\n")

    def test_at_temperature_0_no_seed_matters(self, run_folder, capsys):
        texts = {self.text(capsys, run_folder, "--tokens", 9, "--temperature", 0, "--seed", seed) for seed in (1, 2)}
        assert len(texts) == 1

    def test_no_token_more_is_the_prompt(self, run_folder, capsys):
        assert self.text(capsys, run_folder, "--prompt", "the king", "--tokens", 0) == "the king\n"

    def test_rotary_positions_go_on_past_the_context(self, run_folder, capsys):
        folder = run_folder.parents[1] / "rope" / "seed-0"
        assert len(self.text(capsys, folder, "--prompt", "the king", "--tokens", 60)) > 60

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--tokens", "-1"), "max_new_tokens"),
            (("--prompt", 20 * "the king "), "32"),
            (("--prompt", ""), "prompt"),
            (("--tokens", "40"), "32"),
            (("--temperature", "-1"), "temperature"),
            (("--temperature", "nan"), "temperature"),
            (("--top-k", "0"), "top_k"),
            (("--seed", str(2**70)), "seed"),
        ],
        ids=lambda value: " ".join(value)[:20] if isinstance(value, tuple) else "",
    )
    def test_bad_values_are_one_line(self, refused, run_folder, arguments, words):
        assert words in refused("sample", run_folder, *arguments)

    def test_a_missing_folder_is_one_line(self, refused, tmp_path):
        assert "nowhere" in refused("sample", tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
    @pytest.mark.parametrize("what", ["missing", "cut off", "empty", "nonsense"])
    def test_a_broken_model_is_one_line(self, refused, run_folder, tmp_path, name, what):
        for file in ("model.safetensors", "model.json"):
            shutil.copy(run_folder / file, tmp_path)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        if what != "missing":
            (tmp_path / name).write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "nonsense": b'{"a": 1}'}[what])
        assert str(tmp_path) in refused("sample", tmp_path)


class TestTrain:
    @pytest.fixture(autouse=True)
    def in_a_folder_of_its_own(self, trained, tmp_path, monkeypatch):
        shutil.copy(trained / "corpus.txt", tmp_path)
        monkeypatch.chdir(tmp_path)

    def test_the_configuration_of_a_run_can_be_run_by_hand(self, run_folder, tmp_path):
        assert main(["train", "--config", str(run_folder / "config.yaml"), "--trainer.max_steps", "4"]) == 0
        (checkpoint,) = tmp_path.rglob("*.ckpt")
        assert "step=4" in checkpoint.name

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--config", "none.yaml"), "none.yaml"),
            (("--model.learning_rates", "1"), "learning_rates"),
            (("--model.learning_rate", "fast"), "learning_rate"),
            (("--model.config.window", "0"), "window"),
            (("--model.config.positions", "nonesuch"), "nonesuch"),
            (("--data.corpus", "none.txt"), "none.txt"),
            (("--data.batch_size", "0"), "batch_size"),
            (("--trainer.max_steps", "few"), "max_steps"),
            (("--trainer.max_steps", "-5"), "max_steps"),
            (("--trainer.limit_train_batches", "0.5"), "limit_train_batches"),  # found while fitting
            (("--model.learning_rate", "1e30", "--trainer.enable_progress_bar", "false"), "learning_rate"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_bad_values_are_one_line(self, refused, run_folder, tmp_path, arguments, words):
        given = arguments if arguments[0] == "--config" else ("--config", run_folder / "config.yaml", *arguments)
        assert words in refused("train", *given)
        assert list(tmp_path.rglob("*.ckpt")) == []


def test_an_installed_script_is_there():
    script = os.path.join(os.path.dirname(sys.executable), "gpt2-ablate")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"gpt2-ablate {__version__}\n")
