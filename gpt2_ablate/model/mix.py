"""Masked attention, the step that the kernels are made of: score, hide, softmax, average.

Queries are [N, H, Tq, D], keys and values [N, G, Tk, D]; query head h reads key/value head h // (H / G). The H / G queries
of a group are folded into the rows of one product, so that keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 2**20  # held at a time by `_HalfOnCPU`: 2 MB, about what a core's cache holds


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention under a mask: [N, H, Tq, D] over [N, G, Tk, D] -> [N, H, Tq, D].

    Args:
        mask: [N or 1, H or 1, Tq, Tk], True where a query sees a key, or what is added to the scores (-inf: not seen).
            Every query sees at least one key.
        dropout: probability of dropping an attention weight.
    """
    N, H, Tq, D = q.shape
    G, R = k.shape[1], H // k.shape[1]
    if mask.shape[1] == H:
        mask = mask.unflatten(1, (G, R)).flatten(2, 3)
    elif R > 1:
        mask = mask.expand(-1, R, -1, -1).flatten(1, 2)[:, None]
    q = q.reshape(N, G, R * Tq, D)
    if mask.dtype == torch.bool and slow_in_torch(q, k, v, dropout):
        hide = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))  # adding is faster than filling
        y = _HalfOnCPU.apply(q * D**-0.5, k, v, hide)
    else:
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return y.reshape(N, H, Tq, D)


def slow_in_torch(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether this is what `_HalfOnCPU` is for."""
    return q.device.type == "cpu" and q.dtype == k.dtype == v.dtype == torch.bfloat16 and not dropout


class _HalfOnCPU(torch.autograd.Function):
    """The same by plain products, a few texts at a time, where torch's kernel is slow: bf16 on a CPU, 2.5 times.

    Only the inputs are kept for the backward pass; the weights are computed again. The softmax reads and writes bf16 but
    works in fp32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hide: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, hide)
        return torch.cat([_weights(*piece) @ values for *piece, values in _pieces(q, k, hide, v)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for q, k, v, hide, dy in _pieces(*ctx.saved_tensors, *gradients):
            weights = _weights(q, k, hide)
            scores = torch._softmax_backward_data(dy @ v.mT, weights, -1, weights.dtype)
            found.append((scores @ k, scores.mT @ q, weights.mT @ dy))
        dq, dk, dv = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return dq, dk, dv, None


def _weights(q: Tensor, k: Tensor, hide: Tensor) -> Tensor:
    return (q @ k.mT).add_(hide).softmax(-1)


def _pieces(q: Tensor, k: Tensor, *others: Tensor) -> Any:
    """All tensors in pieces along N that have at most SCORES scores, or one text."""
    texts = max(1, SCORES // (q.shape[1] * q.shape[2] * k.shape[2]))
    count = -(-len(q) // texts)
    split = [x.split(texts) if len(x) == len(q) else [x] * count for x in (q, k, *others)]
    return zip(*split, strict=True)
