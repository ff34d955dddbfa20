"""Parallel block: attention and MLP read the same norm and are added together (Chowdhery et al. 2204.02311, section 2)."""

from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.gpt2 import Block


class ParallelBlock(Block):
    """x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__(config, layer)
        del self.norm_2

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        normed = self.norm_1(x)
        return x + self.dropout(self.attention(normed, context)) + self.dropout(self.mlp(normed))
