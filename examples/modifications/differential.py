"""Differential attention: the difference of two attention maps, so that what both attend to cancels
(Ye et al. 2410.05258, section 2.1)."""

import math

import torch
from torch import Tensor, nn

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.ops.linear import normal_


class DifferentialAttention(SelfAttention):
    """H / 2 pairs of heads; a pair shares values of width 2 D. [B, T, C] -> [B, T, C]."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__(config, layer)
        if config.kv_heads % 2:
            raise UserError(
                f"n_kv_head: {config.kv_heads} heads make no pairs, which differential attention needs; give an even number"
            )
        self.start = 0.8 - 0.6 * math.exp(-0.3 * layer)  # equation 3, where layers count from 1
        self.lambdas = nn.Parameter(torch.empty(4, self.head_dim))
        self.norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5)

    def reset_parameters(self) -> None:
        normal_(self.lambdas, 0.1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_positions: Tensor | None, context: ForwardContext) -> Tensor:
        v = v.unflatten(1, (-1, 2)).transpose(2, 3).flatten(-2)  # [B, G / 2, Tk, 2 D]
        first = super().attend(q[:, 0::2], k[:, 0::2], v, key_positions, context)
        second = super().attend(q[:, 1::2], k[:, 1::2], v, key_positions, context)
        q1, k1, q2, k2 = self.lambdas
        weight = (q1 @ k1).exp() - (q2 @ k2).exp() + self.start
        return (1 - self.start) * self.norm(first - weight * second)  # [B, H / 2, T, 2 D]
