"""One run: what it leaves behind, and that breaking down in between changes nothing."""

import pytest
import torch

from gpt2_ablate.data.corpora import open_corpus
from gpt2_ablate.data.tokens import tokenise
from gpt2_ablate.records import read_record
from gpt2_ablate.study.plan import load_plan
from gpt2_ablate.utils import process
from gpt2_ablate.weights.load import load_pretrained

from .tiny import VARIANTS, outcome, record_of, write_corpus, write_preset

LOGS = "out/reports/tensorboard/tiny/baseline/seed-0"


@pytest.fixture
def train(trained, tmp_path, monkeypatch):
    """A function that trains the baseline of the trained study once more; returns the news it told."""
    monkeypatch.chdir(trained)
    (run,) = load_plan("tiny.yaml", ["baseline"], [0]).runs
    folder, logs = tmp_path / "run", tmp_path / "logs" / "seed-0"
    folder.mkdir()
    logs.mkdir(parents=True)

    def once_more(stop_at=None, fingerprint=None):
        fingerprint = fingerprint or record_of(trained / "out", "baseline")["fingerprint"]
        told = []
        process.run_in_child(
            "tests.utils.children:train_until", stop_at, run, fingerprint, folder, logs,
            log=folder / "train.log", on_progress=told.append, tick=lambda: None,
        )  # fmt: skip
        return told

    once_more.folder, once_more.logs = folder, logs
    return once_more


def break_down(train, after):
    with pytest.raises(process.Failure, match="broke down"):
        train(stop_at=after)


def steps(news):
    return [n["step"] for n in news if "step" in n]


def curves(logs):
    """Every scalar that TensorBoard shows, but for speeds: tag -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("throughput/", "memory/"))]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_broken_off_and_taken_up_again_it_ends_as_if_nothing_had_been(train, trained):
    break_down(train, after=5)
    assert [file.name for file in train.folder.glob("*.ckpt")] == ["step=4.ckpt"]
    assert not (train.folder / "record.json").exists()
    assert steps(train()) == [5, 6, 7, 8]
    assert outcome(read_record(train.folder / "record.json")) == outcome(record_of(trained / "out", "baseline"))
    whole = trained / "out" / "checkpoints" / "tiny" / "baseline" / "seed-0" / "model.safetensors"
    assert (train.folder / "model.safetensors").read_bytes() == whole.read_bytes()
    assert curves(train.logs) == curves(trained / LOGS)
    assert list(train.folder.glob("*.ckpt")) == []


def test_broken_off_while_scoring_it_only_scores(train, trained):
    break_down(train, after="scoring")
    assert steps(train()) == []
    assert outcome(read_record(train.folder / "record.json")) == outcome(record_of(trained / "out", "baseline"))


def test_a_broken_checkpoint_is_named_and_not_used(train, trained):
    break_down(train, after=5)
    checkpoint = next(train.folder.glob("*.ckpt"))
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    news = train()
    (warning,) = [n["warning"] for n in news if "warning" in n]
    assert str(checkpoint) in warning and "\n" not in warning
    assert steps(news) == list(range(1, 9))
    assert outcome(read_record(train.folder / "record.json")) == outcome(record_of(trained / "out", "baseline"))


def test_what_another_run_left_is_not_continued(train, trained):
    break_down(train, after=5)
    assert steps(train(fingerprint="another")) == list(range(1, 9))
    assert len(list(train.logs.glob("events*"))) == len(list((trained / LOGS).glob("events*")))
    assert curves(train.logs) == curves(trained / LOGS)


def test_news_tell_how_far_it_is(train):
    news = train()
    assert [(n["step"], n["steps"]) for n in news if "step" in n] == [(step, 8) for step in range(1, 9)]
    assert {"phase": "scoring"} in news
    assert all(n["loss"] > 0 and n["tokens_per_second"] > 0 for n in news if n.get("step", 0) > 2)


def test_the_record_says_what_came_of_it(trained):
    record = record_of(trained / "out", "baseline")
    metrics = record["metrics"]
    assert record["status"] == "finished" and record["schema"] == 1
    assert 5 < metrics["validation_loss"] < 11 and 5 < metrics["test_loss"] < 11
    assert metrics["validation_bits_per_byte"] < metrics["validation_loss"] / 0.69
    assert [step for step, _ in record["curves"]["validation"]] == [4, 8]
    assert [step for step, _ in record["curves"]["context_gain"]] == [4, 8]
    assert record["sample"].startswith("the king")
    assert metrics["parameters_total"] == sum(v for k, v in metrics.items() if k.startswith("parameters_") and "total" not in k)
    assert record["loss_by_position"][0]["from"] == 0 and record["loss_by_position"][-1]["to"] == 32
    assert "loss_by_position_beyond" not in record
    assert "loss_by_position_beyond" in record_of(trained / "out", "rope")


def tiny_run(tmp_path, **changes):
    """The plan of rope alone, with changes to the tiny preset."""
    write_corpus(tmp_path / "corpus.txt")
    write_preset(tmp_path / "own.yaml", tmp_path / "corpus.txt", **changes)
    return load_plan(str(tmp_path / "own.yaml"), ["rope"], [0]).runs


def trained_record(tmp_path, **changes):
    (run,) = tiny_run(tmp_path, **changes)
    folder, logs = tmp_path / "run", tmp_path / "logs" / "seed-0"
    folder.mkdir()
    logs.mkdir(parents=True)
    process.run_in_child(
        "gpt2_ablate.study.worker:train_run", run, "fingerprint", folder, logs, 1,
        log=folder / "train.log", on_progress=lambda news: None, tick=lambda: None,
    )  # fmt: skip
    return read_record(folder / "record.json")


def test_too_little_text_for_twice_the_context_is_not_scored_so(tmp_path):
    record = trained_record(tmp_path, evaluation_tokens=50)
    assert record["status"] == "finished" and "validation_loss_beyond" not in record["metrics"]


def test_the_same_tokens_are_scored_in_windows_of_the_trained_length_and_of_twice_that(tmp_path):
    """By hand: of every second window of T = 32 tokens, and of those of 64, the last 8 predictions."""
    record = trained_record(tmp_path, evaluation_tokens=300)
    model = load_pretrained(tmp_path / "run").eval()
    ids = torch.from_numpy(tokenise(open_corpus(str(tmp_path / "corpus.txt")))["validation"].ids[:300].astype(int))
    found = {32: [], 64: []}
    for end in range(64, 300, 64):
        for context, losses in found.items():
            with torch.no_grad():
                logits = model(ids[None, end - context : end])[0, -8:]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[end - 7 : end + 1]).item())
    for name, context in (("within", 32), ("beyond", 64)):
        expected = sum(found[context]) / len(found[context])
        assert record["metrics"][f"validation_loss_{name}"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("vocab_size", [300, 50304])
def test_another_vocabulary_trains_scores_and_samples(tmp_path, vocab_size):
    """Above GPT-2's it is padding, which is never chosen."""
    record = trained_record(tmp_path, data={"vocab_size": vocab_size}, trainer={"max_steps": 2})
    assert record["config"]["model"]["config"]["vocab_size"] == record["config"]["data"]["vocab_size"] == vocab_size
    assert load_pretrained(tmp_path / "run").config.vocab_size == vocab_size and len(record["sample"]) > len("the king")


def test_the_record_says_which_kernels_ran_and_what_else_computes_this(tmp_path):
    record = trained_record(tmp_path, data={"separate_documents": True})
    assert record["kernels"] == ["eager"]  # documents apart, and no window
    assert record["hf_architecture"] == "Starcoder2ForCausalLM"
    assert record["invocation"] == {
        "preset": str(tmp_path / "own.yaml"), "init": None, "at_once": 1, "experiments": None, "variants": list(VARIANTS),
    }  # fmt: skip


def test_a_compiled_run_learns_the_same(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    plain = trained_record(tmp_path / "one", trainer={"max_steps": 4})
    compiled = trained_record(tmp_path / "two", trainer={"max_steps": 4}, model={"compile": True})
    assert compiled["metrics"]["validation_loss"] == pytest.approx(plain["metrics"]["validation_loss"], abs=0.01)
    assert compiled["metrics"]["run_first_batch_seconds"] > plain["metrics"]["run_first_batch_seconds"]
