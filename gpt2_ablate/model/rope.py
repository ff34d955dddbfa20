"""Rotary positions (RoPE): queries and keys are rotated by an angle that grows with their position, so that their inner
product depends on the distance between them alone (Su et al. 2104.09864, section 3.2.2, equations 14 to 16 and 34)."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.positions import Positions
from gpt2_ablate.ops.rope import Rope, rotate, rotation_tables


class RotaryPositions(Positions):
    """No parameters: the channels of a head are taken in D/2 pairs, and pair i of position m is rotated by m times its
    frequency, see `gpt2_ablate.ops.rope`.

    The paper pairs neighbouring channels (`rope_interleaved`). By default channel i of the first half of a head is paired
    with channel i of the second, as Llama and Starcoder2 in transformers do: the same model with the channels of each head
    in another order, see `other_convention`. Angles are fp32 whatever the autocast: at position 1000 a bf16 angle is off by
    up to 2 radians.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.rope = Rope(config.head_dim, config.rope_base, config.rope_scaling, config.rope_factor, config.block_size)
        self.is_interleaved = config.rope_interleaved
        cos, sin = rotation_tables(self.rope, config.block_size)
        # Not parameters, and cheap to make: they stay out of checkpoints.
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def prepare(self, length: int) -> None:
        # Past the trained context the angles are known all the same; doubling keeps this rare. And model.bfloat16() must
        # not leave the tables rounded.
        if length > len(self.cos) or self.cos.dtype != torch.float32:
            cos, sin = rotation_tables(self.rope, 2 * length)
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)

    def begin(self, context: ForwardContext) -> None:
        for name, table in (("cos", self.cos), ("sin", self.sin)):
            context.shared[name] = table[context.position_ids].unsqueeze(-3)  # the same for all heads

    def rotate(self, x: Tensor, context: ForwardContext) -> Tensor:
        return rotate(x, context.shared["cos"], context.shared["sin"], self.is_interleaved)


def other_convention(qkv: Tensor, config: GPT2Config) -> Tensor:
    """The weight [(H + 2 G) D, C] or bias [(H + 2 G) D] of `SelfAttention.qkv` of a rotary model of this config, for the
    same model with `rope_interleaved` the other way round: the channels of queries and keys in the other order."""
    rotated = (config.n_head + config.kv_heads) * config.head_dim
    heads = qkv[:rotated].unflatten(0, (-1, config.head_dim))
    pairs = heads.unflatten(1, (-1, 2) if config.rope_interleaved else (2, -1))
    return torch.cat((pairs.transpose(1, 2).flatten(0, 2), qkv[rotated:]))
