"""How fast a run trains, and how much of the machine it uses."""

from __future__ import annotations

import time
from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_ablate.model import GPT2Config
from gpt2_ablate.utils.system import matmul_peak, synchronise


class Throughput(Callback):
    """Logs throughput/tokens_per_second, /step_seconds, /flops_per_second and /matmul_peak_share.

    The clock is read where losses are logged, not at every step, so that a GPU need not wait; it is stopped during
    validation.

    Args:
        flops_per_token: (config, context length) -> training FLOPs per token.

    Attributes:
        tokens_per_second: over the steps since the last reading.
        first_batch_seconds: of the first batch, in which torch.compile compiles.
    """

    def __init__(self, flops_per_token: Callable[[GPT2Config, int], float]):
        self.flops_per_token = flops_per_token
        self.tokens_per_second = 0.0
        self.first_batch_seconds: float | None = None
        self.seconds, self.batches, self.tokens = 0.0, 0, 0
        self.started: float | None = None  # when the clock was started; None while it is stopped

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config: GPT2Config = pl_module.model.config  # type: ignore[assignment, union-attr]
        self.token_flops = self.flops_per_token(config, config.block_size)
        self.peak = matmul_peak(str(trainer.precision), pl_module.device)
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx) -> None:
        if self.started is None:
            synchronise(pl_module.device)
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if self.first_batch_seconds is None:
            self._stop_clock(pl_module)
            self.first_batch_seconds = self.seconds
        self.batches += 1
        self.tokens += batch[0].numel()
        accumulate = trainer.accumulate_grad_batches
        if (batch_idx + 1) % (trainer.log_every_n_steps * accumulate):  # type: ignore[attr-defined]
            return
        self._stop_clock(pl_module)
        self.tokens_per_second = self.tokens / self.seconds
        flops_per_second = self.tokens_per_second * self.token_flops
        values = {
            "tokens_per_second": self.tokens_per_second,
            "step_seconds": self.seconds / (self.batches / accumulate),
            "flops_per_second": flops_per_second,
            "matmul_peak_share": flops_per_second / self.peak,
        }
        pl_module.log_dict({f"throughput/{name}": value for name, value in values.items()})
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop_clock(pl_module)

    def _restart(self) -> None:
        self.seconds, self.batches, self.tokens = 0.0, 0, 0
        self.started = None

    def _stop_clock(self, pl_module: LightningModule) -> None:
        if self.started is not None:
            synchronise(pl_module.device)
            self.seconds += time.perf_counter() - self.started
            self.started = None
