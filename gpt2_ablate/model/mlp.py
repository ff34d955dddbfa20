"""The position-wise feed-forward network: four times as wide inside, tanh-approximated GELU (Radford et al. 2018)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.linear import Linear
from gpt2_ablate.model.parts import part


@part("mlp", "mlp")
class MLP(nn.Module):
    """[B, T, C] -> [B, T, C], each token by itself."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.input = Linear(config.n_embd, 4 * config.n_embd)
        self.output = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.input(x), approximate="tanh"))
