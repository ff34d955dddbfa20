"""Validation loss, perplexity and bits per byte; and the loss curves of a run, kept across interruptions."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MeanMetric

Curve = list[tuple[int, float]]


class Perplexity(Callback):
    """Logs validation/loss (nats per token), validation/perplexity and validation/bits_per_byte.

    Attributes:
        curves: "train" and "validation", each a list of (step, loss in nats). They are in the checkpoint, so that a resumed
            run has all of them.
    """

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {"train": [], "validation": []}
        # A NaN makes the mean NaN ("disable" would also ignore the batch's weight).
        self.mean = MeanMetric(nan_strategy=math.nan)

    def state_dict(self) -> dict:
        return {"curves": self.curves}

    def load_state_dict(self, state_dict: dict) -> None:
        self.curves = state_dict["curves"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches share a step; each step is one point.
        is_new = not self.curves["train"] or self.curves["train"][-1][0] < step
        if step and step % trainer.log_every_n_steps == 0 and is_new:  # type: ignore[attr-defined]
            self.curves["train"].append((step, trainer.callback_metrics["train/loss"].item()))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mean = self.mean.to(pl_module.device)
        self.mean.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        self.mean.update(outputs, weight=(batch[1] >= 0).sum())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = self.mean.compute()
        self.curves["validation"].append((trainer.global_step, loss.item()))
        bytes_per_token = trainer.datamodule.bytes_per_token  # type: ignore[attr-defined]
        values = {"loss": loss, "perplexity": loss.exp(), "bits_per_byte": loss / math.log(2) / bytes_per_token}
        pl_module.log_dict({f"validation/{name}": value for name, value in values.items()})
