"""Learned absolute positions: one trained vector for each place in the context (Radford et al. 2018, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.parts import part
from gpt2_ablate.model.positions import Positions


@part("positions", "learned")
class LearnedPositions(Positions):
    """A table [block_size, C], added to the token embeddings once, in front of the first block."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.max_length = config.block_size
        self.table = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)
