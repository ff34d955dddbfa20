"""Attention by its definition: every pair is scored, and masked where the query does not see the key.

It computes any mask, serves the few queries of a cache, and is what the faster kernels are tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.ops.cpu import dense_attention
from gpt2_ablate.ops.mask import AttentionMask


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens to themselves: q [B, H, T, D], k [B, G, T, D], v [B, G, T, Dv] -> [B, H, T, Dv]."""
    positions = torch.arange(q.shape[2], device=q.device)
    return masked_attention(q, k, v, mask, positions, positions, dropout)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, i: Tensor, j: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of queries [B, H, Tq, D] at positions i [Tq] over keys at positions j [Tk] or [B, Tk], in any order.

    `mask.document_starts`, if there, is [B, Tq]: of these queries.
    """
    dense = _visible(mask, i, j)
    if mask.score_bias is not None:
        dense = mask.score_bias(i, j).masked_fill(~dense, float("-inf"))
    return dense_attention(q, k, v, dense, dropout)


def _visible(mask: AttentionMask, i: Tensor, j: Tensor) -> Tensor:
    """[B or 1, H or 1, Tq, Tk]: which keys each query sees."""
    dilation = mask.head_dilation(i.device)
    if isinstance(dilation, Tensor):
        dilation = dilation[:, None, None]
    start = 0 if mask.document_starts is None else mask.document_starts[:, None, :, None]
    visible = mask.visible(i[:, None], j[..., None, None, :], dilation, start)
    return visible[(None,) * (4 - visible.ndim)]
