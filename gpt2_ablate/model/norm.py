"""GPT-2's normalisation: LayerNorm with bias, eps 1e-5 (Radford et al. 2019, section 2.3)."""

from __future__ import annotations

from torch import nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.parts import part


@part("norm", "layer_norm")
class Norm(nn.LayerNorm):
    """[..., C] -> [..., C]."""

    def __init__(self, config: GPT2Config):
        super().__init__(config.n_embd, eps=1e-5)
