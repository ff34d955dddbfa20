"""What is logged while a model trains. TensorBoard has it under the same names for every variant, so that curves overlay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import tiktoken
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics import MeanMetric

from gpt2_ablate.model import GPT2Config, KVCache, generate
from gpt2_ablate.utils.system import matmul_peak, peak_bytes, synchronise

Curve = list[tuple[int, float]]


class Perplexity(Callback):
    """Logs validation/loss (nats per token), validation/perplexity and validation/bits_per_byte.

    Attributes:
        curves: "train" and "validation", each a list of (step, loss in nats), and "learning_rate" of (step, rate). They are in
            the checkpoint, so that a resumed run has all of them.
    """

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {"train": [], "validation": [], "learning_rate": []}
        # A NaN makes the mean NaN ("disable" would also ignore the batch's weight).
        self.mean = MeanMetric(nan_strategy=math.nan)

    def state_dict(self) -> dict:
        return {"curves": self.curves}

    def load_state_dict(self, state_dict: dict) -> None:
        self.curves |= state_dict["curves"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches share a step; each step is one point.
        is_new = not self.curves["train"] or self.curves["train"][-1][0] < step
        if step and step % trainer.log_every_n_steps == 0 and is_new:  # type: ignore[attr-defined]
            self.curves["train"].append((step, trainer.callback_metrics["train/loss"].item()))
            self.curves["learning_rate"].append((step, trainer.callback_metrics["train/learning_rate"].item()))

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
        data = trainer.datamodule  # type: ignore[attr-defined]
        bytes_per_token = data.bytes_per_token("validation", data.validation_tokens)
        values = {"loss": loss, "perplexity": loss.exp(), "bits_per_byte": loss / math.log(2) / bytes_per_token}
        pl_module.log_dict({f"validation/{name}": value for name, value in values.items()})


class ContextGain(Callback):
    """Logs validation/context_gain (nats per token) of the validation text.

    Args:
        context_gain: (model, token ids, context length) -> nats per token.

    Attributes:
        curve: (step, nats); it is in the checkpoint.
    """

    def __init__(self, context_gain: Callable[..., float]):
        self.context_gain = context_gain
        self.curve: Curve = []

    def state_dict(self) -> dict:
        return {"curve": self.curve}

    def load_state_dict(self, state_dict: dict) -> None:
        self.curve = state_dict["curve"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        gain = self.context_gain(pl_module.model, data.splits["validation"].ids[: data.validation_tokens], data.block_size)
        self.curve.append((trainer.global_step, gain))
        pl_module.log("validation/context_gain", gain)


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


class Memory(Callback):
    """Logs, at the end, memory/peak_bytes, /weight_bytes, /optimizer_bytes, and the bytes of an fp32 key/value cache:
    /kv_bytes_per_token (for one token) and /kv_bytes_full (for a full context)."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = pl_module.model.config  # type: ignore[union-attr]
        state = (value for values in trainer.optimizers[0].state.values() for value in values.values())
        self.values = {
            "peak_bytes": peak_bytes(trainer.strategy.root_device),  # Lightning has moved the module back to the CPU
            "weight_bytes": sum(p.nbytes for p in pl_module.parameters()),
            "optimizer_bytes": sum(value.nbytes for value in state if torch.is_tensor(value)),
            "kv_bytes_per_token": KVCache(config, capacity=1, device="meta").nbytes,  # type: ignore[arg-type]
            "kv_bytes_full": KVCache(config, device="meta").nbytes,  # type: ignore[arg-type]
        }
        for logger in trainer.loggers:
            logger.log_metrics({f"memory/{k}": v for k, v in self.values.items()}, step=trainer.global_step)


class Samples(Callback):
    """Writes a continuation of the prompt to TensorBoard's text tab after every validation.

    Args:
        prompt: text to continue.
        max_new_tokens: of the continuation; fewer where the context ends.
    """

    def __init__(self, prompt: str, tokenizer: tiktoken.Encoding, max_new_tokens: int = 60):
        self.prompt, self.tokenizer, self.max_new_tokens = prompt, tokenizer, max_new_tokens

    def write(self, pl_module: LightningModule) -> str:
        """The prompt and its continuation: temperature 0.8, top-k 50, always the same seed."""
        model: Any = pl_module.model
        ids = torch.tensor([self.tokenizer.encode_ordinary(self.prompt)], device=pl_module.device)
        room = model.config.block_size - ids.shape[1]
        generator = torch.Generator(pl_module.device).manual_seed(0)
        text = generate(
            model, ids, max(0, min(self.max_new_tokens, room)), temperature=0.8, top_k=50, generator=generator,
            vocab_size=self.tokenizer.n_vocab,
        )  # fmt: skip
        return self.tokenizer.decode(text[0].tolist())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text("sample", self.write(pl_module), trainer.global_step)


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
