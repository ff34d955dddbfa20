"""LayerScale: what a layer adds is scaled channel by channel (Touvron et al. 2103.17239, section 2.2)."""

import torch
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.gpt2 import Block


class LayerScale(Block):
    """x + scale * attention(norm(x)), then x + scale * mlp(norm(x)).

    Args:
        start: of all scales; the paper takes 0.1 up to 18 layers, 1e-5 for 24, 1e-6 for more.
    """

    def __init__(self, config: GPT2Config, layer: int, start: float = 0.1):
        super().__init__(config, layer)
        self.attention_scale = nn.Parameter(torch.full((config.n_embd,), start))
        self.mlp_scale = nn.Parameter(torch.full((config.n_embd,), start))

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = x + self.dropout(self.attention_scale * self.attention(self.norm_1(x), context))
        return x + self.dropout(self.mlp_scale * self.mlp(self.norm_2(x)))
