"""The layers that work on each token alone: norm and MLP."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.ops.gelu import gelu
from gpt2_ablate.ops.linear import Linear


class LayerNorm(nn.LayerNorm):
    """GPT-2's normalisation: with bias, eps 1e-5 (Radford et al. 2019, section 2.3). [..., width] -> [..., width]."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5)


class MLP(nn.Module):
    """Four times as wide inside, tanh-approximated GELU (Radford et al. 2018). [B, T, C] -> [B, T, C].

    Args:
        width: inside, instead of 4 C.
    """

    def __init__(self, config: GPT2Config, layer: int, width: int | None = None):
        super().__init__()
        width = 4 * config.n_embd if width is None else width
        if width < 1:
            raise UserError(f"mlp: width: {width} is too small; give 1 or more")
        self.input = Linear(config.n_embd, width)
        self.output = Linear(width, config.n_embd, std=config.residual_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(gelu(self.input(x)))
