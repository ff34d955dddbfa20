"""How far a run is, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_ablate.training.callbacks.throughput import Throughput


class Progress(Callback):
    """Calls `on_progress` after each optimizer step with {"step", "steps", "loss" (as last logged), "tokens_per_second"}.

    Args:
        on_progress: is given the dictionary; if it raises, the run stops.
        throughput: the callback that measures the speed.
    """

    def __init__(self, on_progress: Callable[[dict], None], throughput: Throughput):
        self.on_progress, self.throughput = on_progress, throughput
        self.loss: float | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.loss = trainer.callback_metrics["train/loss"].item()  # waits for a GPU, so not at every step
        self.on_progress({
            "step": trainer.global_step,
            "steps": trainer.max_steps,
            "loss": self.loss,
            "tokens_per_second": self.throughput.tokens_per_second,
        })  # fmt: skip
