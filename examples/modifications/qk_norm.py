"""QK-norm: queries and keys are normalised before they meet (Henry et al. 2010.04245; Dehghani et al. 2302.05442, section 2)."""

from torch import Tensor

from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.parts import build


class QKNorm(SelfAttention):
    """Self-attention with a norm over the channels of each query head and each key head."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__(config, layer)
        self.query_norm = build("norm", config.norm, self.head_dim)
        self.key_norm = build("norm", config.norm, self.head_dim)

    def project(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, context)
        return self.query_norm(q), self.key_norm(k), v
