"""The commands verify, evaluate and sample: what they print, what they leave, and one line for each mistake."""

import io
import json
import re
import sys
from contextlib import redirect_stdout

import pytest
import torch
import transformers

from gpt2_ablate.cli import main
from gpt2_ablate.evaluation import verification
from gpt2_ablate.evaluation.lambada import encode, read_passages, score_passages
from gpt2_ablate.evaluation.strided import score_text
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights.folder import load_model, save_model

CONFIG = GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=32)
TINY = dict(vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of ours with GPT-2's vocabulary."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_model(GPT2(CONFIG), folder)
    return folder


@pytest.fixture(scope="module")
def rotary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rotary")
    torch.manual_seed(0)
    save_model(GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=32, positions="rotary")), folder)
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """An empty folder, no cache of the hub's, and nobody at its address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def line(capsys):
    """A function that runs a command and returns the one line that it is refused with."""

    def refused(*arguments):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "") and err.startswith("gpt2-ablate: ") and err.count("\n") == 1, (status, out, err)
        return err

    return refused


class TestVerify:
    @pytest.fixture
    def gpt2(self, tmp_path):
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).save_pretrained(tmp_path / "weights")
        return tmp_path / "weights"

    def test_proves_and_reports(self, capsys, gpt2, tmp_path):
        status, out, _ = run(capsys, "verify", gpt2, "--out", tmp_path / "out")
        report = (tmp_path / "out" / "reports" / "verification.md").read_text()
        assert status == 0 and "FAILED" not in out + report
        assert "7 checks that could be made passed" in report and str(gpt2) in report and str(gpt2) in out
        assert re.search(r"- hardware: \w", report) and re.search(r"- torch: \d", report)
        assert out.splitlines()[-1].endswith("verification.md")
        # Not in a terminal: a line for each step as it is done.
        assert [text[:1] for text in out.splitlines() if " of 8: " in text] == list("12345678")

    def test_a_failure_is_status_1(self, capsys, gpt2, tmp_path, monkeypatch):
        monkeypatch.setitem(verification.PARAMETERS, "gpt2", 124_000_000)
        status, out, _ = run(capsys, "verify", gpt2)
        assert status == 1 and "FAILED" in out
        assert "**Failed: parameters" in (tmp_path / "reports" / "verification.md").read_text()

    def test_a_model_of_ours(self, capsys, checkpoint):
        assert run(capsys, "verify", checkpoint)[0] == 0

    def test_mistakes_are_one_line_and_leave_nothing(self, line, tmp_path, rotary):
        assert "nowhere" in line("verify", "nowhere")
        assert "positions" in line("verify", rotary)
        assert list(tmp_path.iterdir()) == []

    def test_without_transformers(self, line, monkeypatch, checkpoint):
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert "pip install 'gpt2-ablate[verify]'" in line("verify", checkpoint)


class TestEvaluate:
    @pytest.fixture
    def text(self, tmp_path):
        (tmp_path / "a.txt").write_text("The king sprach: »Nein!«\n" * 30)
        return tmp_path / "a.txt"

    @pytest.fixture
    def lambada(self, tmp_path):
        texts = ["one two three", "the key is in the lock", "»Nein!« sagte Käthe"]
        (tmp_path / "l.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return tmp_path / "l.jsonl"

    def values(self, out):
        return dict(re.split(r" {2,}", row) for row in out.splitlines())

    @pytest.mark.parametrize("options", [{}, {"window": 20}, {"stride": 3}, {"window": 32, "stride": 32}], ids=str)
    def test_a_text(self, capsys, checkpoint, text, options):
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        status, out, _ = run(capsys, "evaluate", checkpoint, "--text", text, *arguments)
        score = score_text(load_model(checkpoint), text.read_text(), **options)
        values = self.values(out)
        assert status == 0
        assert values["perplexity per token"] == f"{score.perplexity:.4f}"
        assert values["loss per token"] == f"{score.loss:.4f} nats"
        assert values["bits per byte"] == f"{score.bits_per_byte:.4f}"
        assert values["perplexity per word"] == f"{score.word_perplexity:.4f}"

    def test_lambada(self, capsys, checkpoint, lambada):
        status, out, _ = run(capsys, "evaluate", checkpoint, "--lambada", lambada)
        score = score_passages(load_model(checkpoint), [encode(text) for text in read_passages(lambada)])
        values = self.values(out)
        assert status == 0 and values["passages"] == "3"
        assert values["LAMBADA by word, perplexity"] == f"{score.word_perplexity:.4f}"
        assert values["LAMBADA by last token, accuracy"] == f"{score.token_accuracy:.2%}"

    def test_both_at_once(self, capsys, checkpoint, text, lambada):
        status, out, _ = run(capsys, "evaluate", checkpoint, "--text", text, "--lambada", lambada)
        assert status == 0 and {"passages", "bits per byte"} <= self.values(out).keys()

    def test_rotary_positions_past_the_context(self, capsys, rotary, text):
        assert run(capsys, "evaluate", rotary, "--text", text, "--window", 100)[0] == 0

    def test_long_texts_say_how_far_they_are(self, capsys, checkpoint, text, monkeypatch):
        monkeypatch.setattr("gpt2_ablate.utils.progress.LINE_EVERY", 0.0)
        _, out, err = run(capsys, "evaluate", checkpoint, "--text", text, "--stride", 2)
        assert re.search(r"^windows: \d+ of \d+, \d+ s left$", err, re.MULTILINE) and "left" not in out

    def test_mistakes_are_one_line(self, line, checkpoint, text, lambada, tmp_path):
        assert "--text" in line("evaluate", checkpoint)
        assert "nowhere" in line("evaluate", "nowhere", "--text", text)
        assert "none.txt" in line("evaluate", checkpoint, "--text", "none.txt")
        assert "33" in line("evaluate", checkpoint, "--text", text, "--window", 33)
        assert "stride" in line("evaluate", checkpoint, "--text", text, "--stride", 33)
        assert "not UTF-8" in line("evaluate", checkpoint, "--text", checkpoint / "model.safetensors")
        (tmp_path / "empty").touch()
        assert "no text" in line("evaluate", checkpoint, "--text", tmp_path / "empty")
        assert "no text" in line("evaluate", checkpoint, "--lambada", tmp_path / "empty")
        with lambada.open("a") as file:
            file.write('{"text": "two words"\n')
        assert "line 4" in line("evaluate", checkpoint, "--lambada", lambada)

    def test_another_vocabulary_is_one_line(self, line, text, tmp_path):
        save_model(GPT2(GPT2Config(vocab_size=97, n_layer=1, n_head=2, n_embd=16, block_size=32)), tmp_path)
        assert "vocab_size" in line("evaluate", tmp_path, "--text", text)

    def test_the_help_says_how_to_do_the_published_table_again(self, capsys):
        with pytest.raises(SystemExit):
            main(["evaluate", "--help"])
        out = capsys.readouterr().out
        assert all(number in out for number in ("35.13", "45.99", "29.41", "65.85", "1.16", "1.17", "37.50", "75.20"))


class TestSample:
    def test_is_written_as_it_comes(self, checkpoint):
        class Watched(io.StringIO):
            flushed = 0

            def flush(self):
                self.flushed += 1

        out = Watched()
        with redirect_stdout(out):
            assert main(["sample", str(checkpoint), "--prompt", "the king", "--tokens", "12"]) == 0
        assert out.getvalue().startswith("the king") and out.flushed >= 12

    def test_each_of_several_has_the_next_seed(self, capsys, checkpoint):
        def sample(*options):
            status, out, _ = run(capsys, "sample", checkpoint, "--prompt", "the king", "--tokens", 9, *options)
            assert status == 0
            return out

        three = re.split(r"--- \d of 3, seed \d+\n", sample("--samples", 3, "--seed", 5))
        assert three == ["", *(sample("--seed", seed) for seed in (5, 6, 7))] and len(set(three)) == 4

    def test_a_small_share_of_the_probability_leaves_one_token(self, capsys, checkpoint):
        texts = {run(capsys, "sample", checkpoint, "--top-p", "1e-6", "--tokens", 9, "--seed", seed)[1] for seed in (1, 2)}
        assert len(texts) == 1

    def test_weights_of_transformers(self, capsys, tmp_path):
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
        status, out, _ = run(capsys, "sample", tmp_path / "hf", "--prompt", "the king", "--tokens", 5)
        assert status == 0 and out.startswith("the king")

    def test_mistakes_are_one_line(self, line, checkpoint):
        for option, value, words in (
            ("--samples", 0, "samples"),
            ("--top-p", 0, "top_p"),
            ("--top-p", 1.5, "top_p"),
            ("--seed", -1, "seed"),
        ):
            assert words in line("sample", checkpoint, f"{option}={value}")

    def test_without_weights_and_network_a_line_says_where_to_put_them(self, line):
        assert "checkpoints/gpt2" in line("sample", "gpt2")
