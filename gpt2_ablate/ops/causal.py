"""Full causal attention: GPT-2's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gpt2_ablate.ops import flash
from gpt2_ablate.ops.mask import AttentionMask


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens to themselves: q [B, H, T, D], k [B, G, T, D], v [B, G, T, Dv] -> [B, H, T, Dv]."""
    if flash.is_available(q, k, v, dropout):
        return flash.flash_attention(q, k, v)
    is_grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=is_grouped)
