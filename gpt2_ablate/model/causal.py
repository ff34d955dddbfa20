"""All of the past, and nothing of the future: GPT-2's own attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_ablate.model.mix import masked, slow_in_torch
from gpt2_ablate.model.pattern import Pattern

ROWS = 128  # queries to a block
LONGEST = 2048  # tokens; for longer texts torch's kernel, which never holds a block's scores, catches up


def causal(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]."""
    if q.shape[2] <= LONGEST and slow_in_torch(q, k, v, dropout):
        return _in_blocks(q, k, v)
    return fused(q, k, v, dropout, is_causal=True)


def fused(q: Tensor, k: Tensor, v: Tensor, dropout: float, is_causal: bool) -> Tensor:
    """torch's kernel without a mask: it knows groups, and on a CPU shares one row of many heads among the cores."""
    grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal, enable_gqa=grouped)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each block of queries against the keys up to its end: half of the T x T scores are never made."""
    places = torch.arange(q.shape[2], device=q.device)
    blocks = []
    for start in range(0, q.shape[2], ROWS):
        end = min(start + ROWS, q.shape[2])
        sees = places[start:end, None] >= places[None, :end]
        blocks.append(masked(q[:, :, start:end], k[:, :, :end], v[:, :, :end], sees[None, None]))
    return torch.cat(blocks, dim=2)
