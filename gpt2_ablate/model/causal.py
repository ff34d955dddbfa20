"""All of the past, and nothing of the future: GPT-2's own attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_ablate.model.mix import half_on_cpu, slow_in_torch
from gpt2_ablate.model.pattern import Pattern

ROWS = 128  # queries to a block
LONGEST = 16  # tokens per channel of a head; torch's kernel, which never writes scores to memory, catches up with longer texts


def causal(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]."""
    if q.shape[2] <= LONGEST * q.shape[3] and slow_in_torch(q, k, v, dropout):
        return _in_blocks(q, k, v)
    grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each block of queries against the keys up to its end: half of the T x T scores are never made."""
    future = torch.full((1, 1, ROWS, ROWS), float("-inf"), dtype=q.dtype).triu(1)
    blocks = []
    for start in range(0, q.shape[2], ROWS):
        end = min(start + ROWS, q.shape[2])
        hide = future[:, :, : end - start, : end - start]
        blocks.append(half_on_cpu(q[:, :, start:end], k[:, :, :end], v[:, :, :end], hide))
    return torch.cat(blocks, dim=2)
