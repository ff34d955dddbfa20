"""Value residual: every layer's values are mixed with those of the first layer (Zhou et al. 2410.17897, section 3)."""

import torch
from torch import Tensor, nn

from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext


class ValueResidual(SelfAttention):
    """Self-attention with values mix * v + (1 - mix) * v of layer 0; mix is learned, from 0.5."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__(config, layer)
        if layer > 0:
            self.mix = nn.Parameter(torch.tensor([0.5]))

    def project(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, context)
        if self.layer == 0:
            context.shared["first values"] = v
        else:
            v = self.mix * v + (1 - self.mix) * context.shared["first values"]
        return q, k, v
