"""Rotary positions: queries and keys are turned by an angle that grows with their position, so that their inner
product depends on the distance between them alone (Su et al. 2104.09864, section 3.2.2, equations 14 to 16 and 34)."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.parts import part
from gpt2_ablate.model.positions import Positions

BASE = 10_000.0


@part("positions", "rotary")
class RotaryPositions(Positions):
    """No parameters: channel i of the first half of a head is paired with channel i of the second half, and pair i of
    position m is turned by m * BASE ** (-2i / D).

    The paper pairs neighbouring channels; pairing halves is the same model with the channels of each head in another
    order, and is what Llama and Starcoder2 in transformers do. Angles are fp32 whatever the autocast: at position
    1000 a bf16 angle is off by up to 2 radians.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.head_dim = config.head_dim
        cos, sin = _tables(config.block_size, config.head_dim)
        # Not parameters, and cheap to make: they stay out of checkpoints.
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reach(self, length: int) -> None:
        # Past the trained context the angles are known all the same; doubling keeps this rare. And model.bfloat16() must
        # not leave the tables rounded.
        if length > len(self.cos) or self.cos.dtype != torch.float32:
            cos, sin = _tables(2 * length, self.head_dim)
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.cos[positions], self.sin[positions]
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def _tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, D/2] of the angles of every position."""
    frequencies = BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
