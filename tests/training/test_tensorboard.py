"""What lands in TensorBoard: the same names at the same steps for every variant, so that curves overlay."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.evaluation.flops import training_flops_per_token
from gpt2_ablate.study.plan import load_plan
from gpt2_ablate.training.callbacks import Memory, Samples, Throughput

from .tiny import fit, same, weights

VARIANTS = {run.variant: run.config["model"]["config"] for run in load_plan("smoke", seeds=[0]).runs}
SCALARS = {
    *(f"train/{name}" for name in ("loss", "perplexity", "learning_rate")),
    *(f"validation/{name}" for name in ("loss", "perplexity", "bits_per_byte")),
    *(f"throughput/{name}" for name in ("tokens_per_second", "step_seconds", "flops_per_second", "matmul_peak_share")),
    *(f"memory/{name}" for name in ("peak_bytes", "weight_bytes", "optimizer_bytes", "kv_bytes_per_token", "kv_bytes_full")),
}


def watched(config, folder, variant):
    """Train a variant with all that a study watches; returns what `fit` does, and TensorBoard's own reading of its files."""
    samples = Samples("one two", load_tokenizer(), max_new_tokens=4)
    changes = {f"model.config.{key}": value for key, value in variant.items() if key in ("positions", "n_kv_head", "window")}
    logger = TensorBoardLogger(folder.parent, name="", version=folder.name, default_hp_metric=False)
    config = config({**changes, "model.config.dropout": 0.1, "trainer.max_steps": 4, "trainer.val_check_interval": 2})
    cli, curves = fit(config, Throughput(training_flops_per_token), Memory(), samples, logger=logger)
    logger.finalize("success")
    return cli, curves, EventAccumulator(str(folder)).Reload()


def test_every_variant_writes_the_same_names_at_the_same_steps(config, tmp_path):
    steps = {}
    for variant, model in VARIANTS.items():
        _, curves, events = watched(config, tmp_path / variant, model)
        scalars = set(events.Tags()["scalars"]) - {"epoch"}
        assert scalars == SCALARS
        assert events.Tags()["tensors"] == ["sample/text_summary"]
        steps[variant] = {name: [event.step for event in events.Scalars(name)] for name in scalars}
        assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([loss for _, loss in curves["train"]])
    assert all(found == steps["baseline"] for found in steps.values())


def test_there_are_eight_variants():
    assert len(VARIANTS) == len({str(config) for config in VARIANTS.values()}) == 8


def test_samples_are_written_at_each_validation_and_change_nothing(config, tmp_path):
    cli, _, events = watched(config, tmp_path / "run", {})
    written = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("sample/text_summary")]
    assert len(written) == 2 and all(text.startswith("one two") for text in written)
    alone, _ = fit(config({"model.config.dropout": 0.1, "trainer.max_steps": 4}))
    assert same(weights(cli), weights(alone))


def test_curves_are_drawn_at_the_step_that_was_finished(config, tmp_path):
    """A reading every two steps, and a validation after each."""
    cli, curves, events = watched(config, tmp_path / "run", {})
    for name, curve in (("train/loss", "train"), ("validation/loss", "validation")):
        drawn = [event.step for event in events.Scalars(name)]
        assert len(drawn) == len(curves[curve])
        assert all(abs(at - step) <= 1 for at, (step, _) in zip(drawn, curves[curve], strict=True))
    assert torch.isfinite(torch.tensor([event.value for name in SCALARS for event in events.Scalars(name)])).all()
