"""A run that is stopped and resumed is the run that was never stopped, bit for bit: weights, curves, optimizer."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from gpt2_ablate.training.callbacks import Memory, Progress, Throughput

from .tiny import fit, same, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory", "ignore:.*callbacks used to create the checkpoint")


class Stopped(Exception):
    pass


def run(config, folder, stop_at=None, resume=None):
    """As gpt2_ablate.study.worker trains: a checkpoint after each validation; stopped as a user's Ctrl-C would."""

    def on_progress(progress):
        if progress["step"] == stop_at:
            raise Stopped

    throughput = Throughput(lambda *_: 1.0)
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_on_train_epoch_end=False)
    config["trainer"]["enable_checkpointing"] = True
    return fit(config, throughput, Progress(on_progress, throughput), checkpoint, ckpt_path=resume, weights_only=True)


def optimizer_state(cli):
    state = cli.trainer.optimizers[0].state_dict()["state"]
    return {f"{i} {name}": value for i, values in state.items() for name, value in values.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.config.dropout": 0.2},
        {"trainer.accumulate_grad_batches": 2},
        {"trainer.accumulate_grad_batches": 2, "model.config.dropout": 0.2},
        {"trainer.precision": "bf16-mixed"},
        {"trainer.log_every_n_steps": 3},  # a reading begun before the stop and ended after it
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted(config, tmp_path, changes):
    expected, curves = run(config(changes), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config(changes), tmp_path / "parts", stop_at=5)
    (checkpoint,) = (tmp_path / "parts").glob("*.ckpt")
    assert 0 < int(checkpoint.stem.partition("=")[2]) < 5
    resumed, resumed_curves = run(config(changes), tmp_path / "parts", resume=checkpoint)
    assert same(weights(resumed), weights(expected))
    assert same(optimizer_state(resumed), optimizer_state(expected))
    assert resumed_curves == curves
    assert resumed.trainer.global_step == 8


def test_a_run_that_is_stopped_twice(config, tmp_path):
    changes = {"model.config.dropout": 0.2, "trainer.val_check_interval": 2}
    expected, curves = run(config(changes), tmp_path / "whole")
    checkpoint = None
    for stop_at in (3, 7):
        with pytest.raises(Stopped):
            run(config(changes), tmp_path / "parts", stop_at=stop_at, resume=checkpoint)
        checkpoint = max((tmp_path / "parts").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    resumed, resumed_curves = run(config(changes), tmp_path / "parts", resume=checkpoint)
    assert same(weights(resumed), weights(expected)) and resumed_curves == curves


def test_a_run_that_was_stopped_after_its_last_step(config, tmp_path):
    """Nothing is left to train; the weights, the curves and the bytes are all there to be written down."""
    expected, curves = run(config(), tmp_path)
    memory = Memory()
    resumed, resumed_curves = fit(config(), memory, ckpt_path=tmp_path / "step=8.ckpt", weights_only=True)
    assert same(weights(resumed), weights(expected)) and resumed_curves == curves
    assert memory.values["optimizer_bytes"] > 2 * memory.values["weight_bytes"] > 0


def test_what_is_told_after_a_resume_goes_on(config, tmp_path):
    with pytest.raises(Stopped):
        run(config(), tmp_path, stop_at=6)
    told = []
    throughput = Throughput(lambda *_: 1.0)
    fit(config(), throughput, Progress(told.append, throughput), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert [progress["step"] for progress in told] == [5, 6, 7, 8]


def test_random_numbers_drawn_elsewhere_do_not_matter(config, tmp_path):
    """Between the two halves of a run anything may have happened to torch's global generator."""
    changes = {"model.config.dropout": 0.2}
    expected, _ = run(config(changes), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config(changes), tmp_path / "parts", stop_at=6)
    torch.manual_seed(12345)
    resumed, _ = run(config(changes), tmp_path / "parts", resume=tmp_path / "parts" / "step=4.ckpt")
    assert same(weights(resumed), weights(expected))
