"""Logit soft-capping: logits stay between -cap and cap (Gemma 2, 2408.00118, section 2)."""

import torch
from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.embedding import TiedEmbedding


class SoftCapping(TiedEmbedding):
    """cap * tanh(logits / cap); losses and samples follow from these logits."""

    def __init__(self, config: GPT2Config, cap: float = 30.0):
        super().__init__(config)
        self.cap = cap

    def logits(self, hidden: Tensor) -> Tensor:
        return self.cap * torch.tanh(super().logits(hidden) / self.cap)
