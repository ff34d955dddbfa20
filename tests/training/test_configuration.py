"""From a YAML to a run: what reaches whom, and what is refused, by its key and in one line."""

import pytest
import torch
import yaml

from gpt2_ablate.training.callbacks import Perplexity
from gpt2_ablate.training.trainer import build


def test_values_arrive_where_they_belong(config):
    cli = build(config({"seed_everything": 7, "model.config.window": 8, "data.batch_size": 3}), [], logger=False)
    assert (cli.model.model.config.window, cli.model.learning_rate, cli.model.warmup_steps) == (8, 1e-2, 2)
    assert (cli.datamodule.batch_size, cli.trainer.max_steps) == (3, 8)


def test_context_and_seed_are_said_once(config):
    cli = build(config({"seed_everything": 7, "model.config.block_size": 12}), [], logger=False)
    assert (cli.datamodule.block_size, cli.datamodule.seed) == (12, 7)


def test_a_yaml_file_is_read_as_the_dictionary_is(config, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config({"seed_everything": 7})))
    from_file = build(["--config", str(file), "--trainer.max_steps=5"], [], logger=False)
    from_dictionary = build(config({"seed_everything": 7, "trainer.max_steps": 5}), [], logger=False)
    assert from_file.model.hparams == from_dictionary.model.hparams
    assert from_file.trainer.max_steps == from_dictionary.trainer.max_steps == 5


def test_ours_come_after_the_callbacks_of_the_yaml(config):
    theirs = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    ours = Perplexity()
    cli = build(config({"trainer.callbacks": [theirs]}), [ours], logger=False)
    kinds = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert kinds.index("LearningRateMonitor") < cli.trainer.callbacks.index(ours)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # unknown
        ("nonsense", 3),
        ("model.nonsense", 3),
        ("model.config.nonsense", 3),
        ("data.nonsense", 3),
        ("trainer.nonsense", 3),
        # of the wrong type
        ("seed_everything", "many"),
        ("model.learning_rate", "fast"),
        ("model.warmup_steps", 2.5),
        ("model.config.n_layer", "two"),
        ("model.config.window", "wide"),
        ("data.batch_size", "large"),
        ("data.corpus", 3),
        ("trainer.max_steps", "many"),
        ("trainer.precision", "bf17"),
        # out of range
        ("seed_everything", -1),
        ("model.learning_rate", -1.0),
        ("model.warmup_steps", -1),
        ("model.weight_decay", -1.0),
        ("model.betas", [2.0, 1.0]),
        ("model.config.n_layer", 0),
        ("model.config.n_head", 3),
        ("model.config.dropout", 1.5),
        ("model.config.positions", "nonsense"),
        ("data.batch_size", 0),
        ("trainer.accumulate_grad_batches", 0),
        ("trainer.accumulate_grad_batches", None),
        ("trainer.log_every_n_steps", 0),
        ("trainer.log_every_n_steps", None),
        ("trainer.val_check_interval", 0),
        ("trainer.val_check_interval", 0.5),
        ("trainer.max_steps", -5),
        ("trainer.devices", 0),
        ("trainer.limit_val_batches", -1),
        ("trainer.gradient_clip_algorithm", "value"),  # the gradient's norm is what is clipped, whatever this says
    ],
)
def test_what_is_wrong_is_refused_by_its_key(config, refused, key, value):
    with refused(key.rpartition(".")[2]):
        build(config({key: value}), [], logger=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(config, refused):
    with refused("trainer", "gpu"):
        build(config({"trainer.accelerator": "gpu"}), [], logger=False)


@pytest.mark.parametrize("key", ["model.config.vocab_size", "data.vocab_size"])
@pytest.mark.parametrize("vocab_size", [257, 300, 50257, 50304])
def test_tokenizer_and_model_have_one_vocabulary_wherever_it_is_said(config, key, vocab_size):
    cli = build(config({key: vocab_size}), [], logger=False)
    assert cli.model.model.config.vocab_size == cli.datamodule.vocab_size == vocab_size


def test_two_vocabularies_are_refused(config, refused):
    with refused("data.vocab_size", 300, 400):
        build(config({"model.config.vocab_size": 400, "data.vocab_size": 300}), [], logger=False)


@pytest.mark.parametrize("key", ["model.config.vocab_size", "data.vocab_size"])
def test_a_vocabulary_without_all_bytes_is_refused(config, refused, key):
    with refused("vocab_size", 256, 257):
        build(config({key: 256}), [], logger=False)


@pytest.mark.parametrize("section", ["model", "data", "trainer"])
def test_a_section_that_is_no_dictionary_is_refused(config, refused, section):
    with refused(section):
        build(config({section: 3}), [], logger=False)


@pytest.mark.parametrize("argument", ["--nonsense=3", "--model.nonsense=3", "--trainer.max_steps=many", "--config=nonsense.yaml"])
def test_what_is_wrong_on_the_command_line_is_refused(refused, argument):
    key = argument.removeprefix("--").partition("=")[0]
    with refused(key):
        build([argument], [], logger=False)


def test_broken_yaml_is_refused_by_its_file(tmp_path, refused):
    (tmp_path / "config.yaml").write_text("model: [")
    with refused("config"):
        build(["--config", str(tmp_path / "config.yaml")], [], logger=False)


def test_a_validation_amid_an_optimizer_step_is_refused(config, refused):
    """Its checkpoint would lose the gradients that have been gathered so far."""
    with refused("val_check_interval: 3", "multiple of 2"):
        build(config({"trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 3}), [], logger=False)
