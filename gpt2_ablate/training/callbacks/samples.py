"""A text by the model, from the same prompt and the same random numbers every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt2_ablate.model import generate


class Samples(Callback):
    """Writes a continuation of the prompt to TensorBoard's text tab after every validation.

    Args:
        prompt: text to continue.
        encode, decode: the tokenizer's.
        max_new_tokens: of the continuation; fewer where the context ends.
    """

    def __init__(
        self, prompt: str, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], max_new_tokens: int = 60
    ):
        self.prompt, self.encode, self.decode, self.max_new_tokens = prompt, encode, decode, max_new_tokens

    def write(self, pl_module: LightningModule) -> str:
        """The prompt and its continuation: temperature 0.8, top-k 50, always the same seed."""
        model: Any = pl_module.model
        ids = torch.tensor([self.encode(self.prompt)], device=pl_module.device)
        room = model.config.block_size - ids.shape[1]
        generator = torch.Generator(pl_module.device).manual_seed(0)
        text = generate(model, ids, max(0, min(self.max_new_tokens, room)), temperature=0.8, top_k=50, generator=generator)
        return self.decode(text[0].tolist())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text("sample", self.write(pl_module), trainer.global_step)
