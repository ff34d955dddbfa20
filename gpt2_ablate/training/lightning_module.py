"""A GPT-2 variant as a LightningModule: its training and validation steps."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.training.optimizers import OPTIMIZERS, warmup_cosine


class NonFiniteLoss(UserError):
    """The loss is NaN or infinite: training has diverged."""


class LanguageModel(LightningModule):
    """Next-token training of one variant.

    Args:
        config: of the model.
        optimizer: adamw, as GPT-2 was trained, or muon, which learns more from a token (see `gpt2_ablate.training.muon`).
        learning_rate: the highest, reached after warm-up.
        warmup_steps: optimizer steps of linear warm-up; then the rate falls along half a cosine to a tenth of the highest at
            the last step.
        weight_decay: of matrices and embeddings, see `gpt2_ablate.training.optimizers`.
        betas: AdamW's decay rates of the averages of gradients and of squared gradients.
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
        optimizer: str = "adamw",
    ):
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer: there is no {optimizer!r}; give {' or '.join(OPTIMIZERS)}")
        if not learning_rate > 0:
            raise UserError(f"learning_rate: {learning_rate} does not train; give a number above 0")
        if warmup_steps < 0:
            raise UserError(f"warmup_steps: {warmup_steps} is negative; give 0 or more")
        if not weight_decay >= 0:
            raise UserError(f"weight_decay: {weight_decay} would let weights grow; give 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas: {betas} are not decay rates; give numbers from 0 up to, not including, 1")
        self.optimizer, self.learning_rate, self.warmup_steps = optimizer, learning_rate, warmup_steps
        self.weight_decay, self.betas = weight_decay, betas
        self.seed = torch.initial_seed() % 2**32
        self.model = GPT2(config) if init is None else _converted(init, config)
        self.loss = torch.compile(self.model.loss) if compile else self.model.loss
        self.losses: list[Tensor] = []  # of the batches of this optimizer step
        self.save_hyperparameters(
            {**config.to_dict(), "learning_rate": learning_rate, "warmup_steps": warmup_steps, "weight_decay": weight_decay}
        )

    def on_train_batch_start(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Make dropout a function of (seed, step), as the batches are: a resumed run drops the same."""
        if self.model.config.dropout:
            torch.manual_seed(self.seed * 1_000_003 + batch_idx)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Mean loss of one batch: input_ids and targets [B, T], and documents [B, T] if they are separated."""
        loss = self.loss(*batch)
        self.losses.append(loss.detach())
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return loss
        mean, self.losses = torch.stack(self.losses).mean(), []
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            if not mean.isfinite():
                raise NonFiniteLoss(
                    f"the loss became {mean.item()} by step {self.global_step + 1}; lower learning_rate "
                    f"(now {self.learning_rate:g}) or give more warmup_steps (now {self.warmup_steps})"
                )
            self.log("train/loss", mean, prog_bar=True)
            self.log("train/perplexity", mean.exp())
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Mean loss of one batch."""
        return self.model.loss(*batch)

    def configure_optimizers(self):
        """The learning rate is set at every step."""
        optimizer = OPTIMIZERS[self.optimizer](self.model, self.learning_rate, self.weight_decay, self.betas)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, self.warmup_steps, self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the gradient's norm. Lightning's own refuses a fused optimizer under autocast because of loss scaling, which
        bf16 does not need."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def _converted(init: str, config: GPT2Config) -> GPT2:
    from gpt2_ablate.weights import convert, load_pretrained  # a run from random weights does not need them

    return convert(load_pretrained(init), config)
