"""Rotary positions: queries and keys are turned by an angle that grows with their position, so that their inner
product depends on the distance between them alone (Su et al. 2104.09864, section 3.2.2, equations 14 to 16 and 34)."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.parts import part
from gpt2_ablate.model.positions import Positions
from gpt2_ablate.model.rope_scaling import frequencies


@part("positions", "rotary")
class RotaryPositions(Positions):
    """No parameters: the channels of a head are taken in D/2 pairs, and pair i of position m is turned by m times its
    frequency, see `gpt2_ablate.model.rope_scaling`.

    The paper pairs neighbouring channels (`rope_interleaved`). By default channel i of the first half of a head is paired
    with channel i of the second, as Llama and Starcoder2 in transformers do: the same model with the channels of each head
    in another order, see `other_convention`. Angles are fp32 whatever the autocast: at position 1000 a bf16 angle is off by
    up to 2 radians.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        cos, sin = _tables(config.block_size, config)
        # Not parameters, and cheap to make: they stay out of checkpoints.
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reach(self, length: int) -> None:
        # Past the trained context the angles are known all the same; doubling keeps this rare. And model.bfloat16() must
        # not leave the tables rounded.
        if length > len(self.cos) or self.cos.dtype != torch.float32:
            cos, sin = _tables(2 * length, self.config)
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # the same for all heads
        if self.config.rope_interleaved:
            first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2).type_as(x)
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def other_convention(qkv: Tensor, config: GPT2Config) -> Tensor:
    """The weight [(H + 2 G) D, C] or bias [(H + 2 G) D] of `SelfAttention.qkv` of a rotary model of this config, for the
    same model with `rope_interleaved` the other way round: the channels of queries and keys in the other order."""
    turned = (config.n_head + config.kv_heads) * config.head_dim
    heads = qkv[:turned].unflatten(0, (-1, config.head_dim))
    pairs = heads.unflatten(1, (-1, 2) if config.rope_interleaved else (2, -1))
    return torch.cat((pairs.transpose(1, 2).flatten(0, 2), qkv[turned:]))


def _tables(length: int, config: GPT2Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, D/2] of the angles of every position."""
    per_token, scale = frequencies(config)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), per_token)
    return scale * angles.cos(), scale * angles.sin()
