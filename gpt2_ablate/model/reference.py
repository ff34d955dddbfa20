"""Attention by its definition: every pair is scored, and those that the pattern hides are masked.

Right for a few queries (a cache's newest), and what the faster kernels are tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.model.mix import masked
from gpt2_ablate.model.pattern import Pattern


def reference(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]."""
    where = torch.arange(q.shape[2], device=q.device)
    return rows(q, k, v, pattern, where, where, dropout)


def rows(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, i: Tensor, j: Tensor, dropout: float = 0.0) -> Tensor:
    """Some rows of it: queries [B, H, Tq, D] at the places i [Tq] over keys at the places j [Tk] or [B, Tk], in any order.

    `pattern.starts`, if there, is [B, Tq]: of these queries.
    """
    mask = _visible(pattern, i, j)
    if pattern.score_bias is not None:
        mask = pattern.score_bias(i, j).masked_fill(~mask, float("-inf"))
    return masked(q, k, v, mask, dropout)


def _visible(pattern: Pattern, i: Tensor, j: Tensor) -> Tensor:
    """[B or 1, H or 1, Tq, Tk]: which keys each query sees."""
    dilation = pattern.dilation_of_heads(i.device)
    if isinstance(dilation, Tensor):
        dilation = dilation[:, None, None]
    start = 0 if pattern.starts is None else pattern.starts[:, None, :, None]
    visible = pattern.visible(i[:, None], j[..., None, None, :], dilation, start)
    return visible[(None,) * (4 - visible.ndim)]
