"""SwiGLU: an MLP whose hidden units are gated (Shazeer 2002.05202, section 2, equation 6)."""

import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.ops.linear import Linear


class SwiGLU(nn.Module):
    """[B, T, C] -> [B, T, C].

    Args:
        width: hidden units; None: as many as give it the parameters of GPT-2's MLP, about 8/3 C.
    """

    def __init__(self, config: GPT2Config, layer: int, width: int | None = None):
        super().__init__()
        C = config.n_embd
        width = width or round((8 * C**2 + 4 * C) / (3 * C + 2))
        self.input = Linear(C, 2 * width)  # gate and value in one product
        self.output = Linear(width, C, std=config.residual_std)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.input(x).chunk(2, dim=-1)
        return self.output(F.silu(gate) * value)
