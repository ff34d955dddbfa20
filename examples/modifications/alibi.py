"""ALiBi: scores fall linearly with distance, in each head at its own rate (Press et al. 2108.12409, section 3)."""

import torch
from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.positions import Positions


class ALiBi(Positions):
    """No parameters, and no limit to the length."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        rates = 2.0 ** (-8.0 * torch.arange(1, config.n_head + 1) / config.n_head)
        self.register_buffer("rates", rates, persistent=False)

    def score_bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Added to the scores [H, Tq, Tk]."""
        distance = query_positions[:, None] - key_positions[None, :]
        return -self.rates[:, None, None] * distance
