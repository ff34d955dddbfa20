"""What is watched while a model trains: validation, speed, memory, samples, progress."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from gpt2_ablate.data.batches import IGNORED
from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.evaluation.flops import training_flops_per_token
from gpt2_ablate.model import GPT2Config
from gpt2_ablate.training.callbacks import Memory, Progress, Samples, Throughput
from gpt2_ablate.training.lightning_module import LanguageModel
from gpt2_ablate.utils.system import matmul_peak

from .tiny import Steps, fit, same, weights

# Perplexity


def by_hand(cli):
    """The mean loss of all validation tokens, each counting the same: the last batch and the last window are shorter."""
    total, count, batch_means = 0.0, 0, []
    with torch.no_grad():
        for inputs, targets in cli.datamodule.val_dataloader():
            counts = targets != IGNORED
            logits = cli.model.model.eval()(inputs)
            losses = torch.nn.functional.cross_entropy(logits[counts].double(), targets[counts], reduction="none")
            total, count = total + losses.sum().item(), count + len(losses)
            batch_means.append(losses.mean().item())
    assert count == cli.datamodule.validation_tokens and abs(total / count - sum(batch_means) / len(batch_means)) > 1e-3
    return total / count


def test_validation_loss_is_the_mean_over_tokens(config):
    cli, curves = fit(config({"data.batch_size": 3}))
    assert curves["validation"][-1] == (8, pytest.approx(by_hand(cli), rel=1e-5))


def test_perplexity_and_bits_per_byte_are_those_of_the_loss(config):
    cli, curves = fit(config())
    logged, (_, loss) = cli.trainer.callback_metrics, curves["validation"][-1]
    scored = cli.datamodule.splits["validation"].ids[1 : cli.datamodule.validation_tokens]
    written = len(load_tokenizer().decode(scored.tolist()).removesuffix("<|endoftext|>").encode())
    assert logged["validation/loss"].item() == pytest.approx(loss)
    assert logged["validation/perplexity"].item() == pytest.approx(math.exp(loss))
    assert logged["validation/bits_per_byte"].item() == pytest.approx(loss / math.log(2) * len(scored) / written)


def test_a_loss_that_is_no_number_is_not_left_out_of_the_mean(config):
    """One spoilt batch spoils the mean: it must not look as if all were well."""

    class Spoil(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            pl_module.model.norm.bias.data.fill_(math.nan if batch_idx == 1 else 0.0)

    _, curves = fit(config({"trainer.max_steps": 4}), Spoil())
    assert math.isnan(curves["validation"][-1][1])


def test_a_huge_loss_does_not_end_the_run(config):
    """exp(800) is more than a number can hold."""

    class Inflate(Callback):
        def on_validation_start(self, trainer, pl_module):
            pl_module.model.norm.weight.data.mul_(1e6)

    cli, curves = fit(config({"trainer.max_steps": 4}), Inflate())
    assert 800 < curves["validation"][-1][1] < math.inf
    assert cli.trainer.callback_metrics["validation/perplexity"].item() == math.inf


# Throughput


class Clock(Callback):
    """A clock that each batch and each validation moves on by so many seconds, and nothing else does."""

    def __init__(self, monkeypatch, step, validation=0.0):
        self.step, self.validation, self.now = step, validation, 0.0
        monkeypatch.setattr("gpt2_ablate.training.callbacks.time", SimpleNamespace(perf_counter=lambda: self.now))

    def on_before_backward(self, trainer, pl_module, loss):
        self.now += self.step

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.now += self.validation


def logged(name):
    return Steps(lambda trainer, _: trainer.callback_metrics.get(f"throughput/{name}", torch.tensor(math.nan)).item())


def test_the_clock_stands_still_while_validating(config, monkeypatch):
    """Two steps, a validation, two steps, the only reading."""
    clock, seconds = Clock(monkeypatch, step=1.0, validation=100.0), logged("step_seconds")
    changes = {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "trainer.log_every_n_steps": 4}
    fit(config({**changes, "trainer.limit_val_batches": 1}), Throughput(training_flops_per_token), seconds, clock)
    assert seconds.found[-1] == 1.0 and clock.now == 2 * 100 + 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_clock_runs_in_every_step(config, monkeypatch, accumulate):
    clock, seconds = Clock(monkeypatch, step=1.0), logged("step_seconds")
    changes = {"trainer.max_steps": 4, "trainer.val_check_interval": 4, "trainer.accumulate_grad_batches": accumulate}
    fit(config(changes), Throughput(training_flops_per_token), seconds, clock)
    assert seconds.found[-1] == accumulate


def test_the_loss_of_a_step_is_the_mean_of_its_batches(config, monkeypatch):
    losses, step = [], LanguageModel.training_step

    def training_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    changes = {"trainer.accumulate_grad_batches": 3, "trainer.max_steps": 4, "trainer.val_check_interval": 6}
    _, curves = fit(config(changes))
    steps = [sum(losses[n : n + 3]) / 3 for n in range(0, 12, 3)]
    assert [loss for _, loss in curves["train"]] == pytest.approx([steps[1], steps[3]])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_speeds_belong_together(config, accumulate):
    changes = {"trainer.accumulate_grad_batches": accumulate, "data.batch_size": 3, "trainer.max_steps": 4}
    throughput = Throughput(training_flops_per_token)
    cli, _ = fit(config(changes), throughput)
    speed = {name: cli.trainer.callback_metrics[f"throughput/{name}"].item() for name in
             ("tokens_per_second", "step_seconds", "flops_per_second", "matmul_peak_share")}  # fmt: skip
    assert throughput.tokens_per_second == pytest.approx(speed["tokens_per_second"]) and speed["tokens_per_second"] > 0
    assert speed["tokens_per_second"] * speed["step_seconds"] == pytest.approx(accumulate * 3 * 16)
    flops_per_token = training_flops_per_token(cli.model.model.config, 16)
    assert speed["flops_per_second"] == pytest.approx(speed["tokens_per_second"] * flops_per_token)
    peak = matmul_peak("32-true", torch.device("cpu"))
    assert speed["matmul_peak_share"] == pytest.approx(speed["flops_per_second"] / peak)


def test_speed_is_read_as_often_as_the_loss(config):
    read = logged("tokens_per_second")
    fit(config({"trainer.log_every_n_steps": 3}), Throughput(training_flops_per_token), read)
    assert [math.isnan(value) for value in read.found] == [True, True] + [False] * 6
    assert len(set(read.found[2:])) == 2


# Memory


@pytest.mark.parametrize(
    ("changes", "numbers_per_token", "held"),
    [
        ({}, 2 * 2 * 2 * 4, 16),  # keys and values, layers, heads, width of a head; tokens
        ({"n_kv_head": 1}, 2 * 2 * 1 * 4, 16),
        ({"window": 6}, 2 * 2 * 2 * 4, 6),
        ({"n_kv_head": 1, "window": 6}, 2 * 2 * 1 * 4, 6),
    ],
    ids=str,
)
def test_bytes_are_counted_exactly(config, changes, numbers_per_token, held):
    memory = Memory()
    changes = {f"model.config.{key}": value for key, value in changes.items()}
    cli, _ = fit(config({"trainer.max_steps": 1, **changes}), memory)
    parameters = list(cli.model.parameters())
    numbers = sum(p.numel() for p in parameters)
    assert memory.values["weight_bytes"] == 4 * numbers
    assert memory.values["optimizer_bytes"] == 2 * 4 * numbers + 4 * len(parameters)  # two averages; each tensor its step
    assert memory.values["kv_bytes_per_token"] == 4 * numbers_per_token
    assert memory.values["kv_bytes_full"] == 4 * numbers_per_token * held
    assert memory.values["peak_bytes"] > memory.values["weight_bytes"] + memory.values["optimizer_bytes"]


# Samples


def language_model(seed=0, **changes):
    """Of letters instead of tokens, with weights that make its choices differ."""
    torch.manual_seed(seed)
    config = GPT2Config(**{**dict(vocab_size=128, block_size=20, n_layer=1, n_head=2, n_embd=8), **changes})
    module = LanguageModel(config).train()
    torch.nn.init.normal_(module.model.embedding.weight)
    return module


def samples(prompt, max_new_tokens=60):
    """Letters are tokens."""
    encode, decode = lambda text: list(text.encode()), lambda ids: bytes(ids).decode()
    return Samples(prompt, SimpleNamespace(encode_ordinary=encode, decode=decode, n_vocab=128), max_new_tokens)


def test_the_same_model_writes_the_same_text():
    module, callback = language_model(), samples("Hello")
    first = callback.write(module)
    torch.manual_seed(99)
    assert callback.write(module) == first
    assert samples("Hello").write(language_model()) == first != samples("Hello").write(language_model(seed=1))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize(("prompt", "new", "length"), [(5, 60, 20), (5, 3, 8), (19, 60, 20), (20, 60, 20), (5, 0, 5)])
def test_a_sample_is_the_prompt_and_its_continuation_up_to_the_context(positions, prompt, new, length):
    text = samples("x" * prompt, new).write(language_model(positions=positions))
    assert text.startswith("x" * prompt) and len(text) == length


def test_writing_leaves_the_run_as_it_was():
    module = language_model(dropout=0.5)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    samples("Hello").write(module)
    assert module.training and module.model.training and torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_while_writing():
    assert samples("Hello").write(language_model(dropout=0.9)) == samples("Hello").write(language_model())


# Progress


@pytest.mark.parametrize("accumulate", [1, 2])
def test_progress_is_told_after_each_step(config, accumulate):
    told, throughput = [], Throughput(training_flops_per_token)
    changes = {"trainer.max_steps": 5, "trainer.accumulate_grad_batches": accumulate}
    _, curves = fit(config(changes), throughput, Progress(told.append, throughput))
    assert [progress["step"] for progress in told] == [1, 2, 3, 4, 5]
    assert {progress["steps"] for progress in told} == {5}
    assert json.loads(json.dumps(told)) == told  # plain numbers, fit for a pipe
    losses = dict(curves["train"])
    assert [progress["loss"] for progress in told] == [None, losses[2], losses[2], losses[4], losses[4]]
    assert told[0]["tokens_per_second"] == 0 and told[-1]["tokens_per_second"] == throughput.tokens_per_second > 0


def test_watching_changes_nothing(config):
    changes = {"model.config.dropout": 0.1}
    alone, _ = fit(config(changes))
    throughput = Throughput(training_flops_per_token)
    watched, _ = fit(config(changes), throughput, Memory(), Progress(lambda _: None, throughput))
    assert same(weights(alone), weights(watched))
