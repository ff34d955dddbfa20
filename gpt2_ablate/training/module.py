"""A GPT-2 variant as a LightningModule: its loss, its optimizer and its learning rate over time."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config


class NonFiniteLoss(UserError):
    """The loss is no longer a number; training on would only waste time."""


class LanguageModel(LightningModule):
    """Next-token training of one variant.

    Args:
        config: of the model.
        learning_rate: the highest, reached after warm-up.
        warmup_steps: optimizer steps over which the rate grows linearly; then it falls along half a cosine to a tenth
            of the highest at the last step.
        weight_decay: of matrices and embeddings; biases and norms are not decayed (Brown et al. 2005.14165, appendix B).
        betas: AdamW's averaging of gradients and of their squares.
        init: a checkpoint to start from, converted to `config` (see `gpt2_ablate.weights`); None: random weights.
        compile: whether training steps go through torch.compile; the first takes minutes.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        config: GPT2Config,
        learning_rate: float = 6e-4,
        warmup_steps: int = 100,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        init: str | None = None,
        compile: bool = False,
    ):
        super().__init__()
        if not learning_rate > 0:
            raise UserError(f"learning_rate: {learning_rate} does not train; give a number above 0")
        if warmup_steps < 0:
            raise UserError(f"warmup_steps: {warmup_steps} is negative; give 0 or more")
        if not weight_decay >= 0:
            raise UserError(f"weight_decay: {weight_decay} would let weights grow; give 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas: {betas} are not shares of the past to keep; give numbers from 0 up to, not including, 1")
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.weight_decay, self.betas = weight_decay, betas
        self.seed = torch.initial_seed() % 2**32
        self.model = GPT2(config) if init is None else _converted(init, config)
        self.loss = torch.compile(self.model.loss) if compile else self.model.loss
        self.save_hyperparameters(
            {**asdict(config), "learning_rate": learning_rate, "warmup_steps": warmup_steps, "weight_decay": weight_decay}
        )

    def on_train_batch_start(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Make what is dropped at each step a function of (seed, step), as the batches are: a resumed run drops the same."""
        if self.model.config.dropout:
            torch.manual_seed(self.seed * 1_000_003 + batch_idx)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Mean loss of one batch: input_ids and targets [B, T] each, and documents [B, T] where they are kept apart."""
        loss = self.loss(*batch)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            if not loss.isfinite():
                raise NonFiniteLoss(
                    f"the loss became {loss.item()} by step {self.global_step + 1}; lower learning_rate "
                    f"(now {self.learning_rate:g}) or give more warmup_steps (now {self.warmup_steps})"
                )
            self.log("train/loss", loss.detach(), prog_bar=True)
            self.log("train/perplexity", loss.detach().exp())
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Mean loss of one batch."""
        return self.model.loss(*batch)

    def configure_optimizers(self):
        """AdamW over all weights, its rate set anew at every step."""
        decayed = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=self.learning_rate, betas=self.betas, fused=True,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _share_of_rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.trainer.max_steps - 1 - self.warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the gradient's norm. Lightning's own refuses a fused optimizer under autocast, for fear of a loss scaler;
        bf16 has none."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def _converted(init: str, config: GPT2Config) -> GPT2:
    from gpt2_ablate.weights import convert, load_pretrained  # what a run from nothing does not need

    return convert(load_pretrained(init), config)
