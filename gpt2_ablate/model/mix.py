"""Masked attention, the step that the kernels are made of: score, hide, softmax, average.

Queries are [N, H, Tq, D], keys and values [N, G, Tk, D]; query head h reads key/value head h // (H / G). The H / G queries
of a group are folded into the rows of one product, so that keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SCORES = 2**20  # worked on together, unless one text has more: 2 MB of bf16, about what a core's cache holds


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention under a mask: [N, H, Tq, D] over [N, G, Tk, D] -> [N, H, Tq, D].

    Args:
        mask: [N or 1, H or 1, Tq, Tk], True where a query sees a key, or what is added to the scores (-inf: not seen).
            Every query sees at least one key.
        dropout: probability of dropping an attention weight.
    """
    if mask.dtype == torch.bool and slow_in_torch(q, k, v, dropout):
        hide = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
        return _HalfOnCPU.apply(folded(q, k.shape[1]), k, v, folded_mask(hide, q.shape[1], k.shape[1])).reshape(q.shape)
    mask = folded_mask(mask if mask.dtype == torch.bool else mask.to(q.dtype), q.shape[1], k.shape[1])
    y = F.scaled_dot_product_attention(folded(q, k.shape[1]), k, v, attn_mask=mask, dropout_p=dropout)
    return y.reshape(q.shape)


def unmasked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries that all see every key: [N, H, Tq, D] over [N, G, Tk, D] -> [N, H, Tq, D]."""
    if not slow_in_torch(q, k, v, 0.0):
        # Unfolded, because torch's kernel shares heads among the cores, but not the rows of one.
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=bool(q.shape[1] != k.shape[1]))
    rows = folded(q, k.shape[1])
    if rows.shape[2] == 1:
        # It is nearly twice as fast for two rows of bf16 as for one.
        return F.scaled_dot_product_attention(rows.expand(-1, -1, 2, -1), k, v)[:, :, :1]
    return F.scaled_dot_product_attention(rows, k, v).reshape(q.shape)


def folded(q: Tensor, G: int) -> Tensor:
    """Queries [N, H, Tq, D] -> [N, G, (H / G) Tq, D]."""
    N, H, Tq, D = q.shape
    return q.reshape(N, G, H // G * Tq, D)


def folded_mask(mask: Tensor, H: int, G: int) -> Tensor:
    """The mask [.., H or 1, Tq, Tk] of folded queries: [.., G or 1, (H / G) Tq, Tk]."""
    if mask.shape[1] == H:
        return mask.unflatten(1, (G, H // G)).flatten(2, 3)
    return mask.expand(-1, H // G, -1, -1).flatten(1, 2)[:, None]


def slow_in_torch(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether plain products beat torch's kernel: for bf16 on a CPU, 2.5 times."""
    return q.device.type == "cpu" and q.dtype == k.dtype == v.dtype == torch.bfloat16 and not dropout


class _HalfOnCPU(torch.autograd.Function):
    """`masked` by plain products, a few texts at a time, where `slow_in_torch`.

    Only the inputs are kept for the backward pass; the weights are computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hide: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, hide)
        return torch.cat([weights(*piece) @ values for *piece, values in _pieces(q, k, hide, v)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        found = [gradients(*piece) for piece in _pieces(*ctx.saved_tensors, dy)]
        dq, dk, dv = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return dq, dk, dv, None


def weights(q: Tensor, k: Tensor, hide: Tensor) -> Tensor:
    """The softmax of the scores: queries [N, G, Tq, D] over keys [N, G, Tk, D] -> [N, G, Tq, Tk], in fp32, then rounded.

    Args:
        hide: [N or 1, G or 1, Tq, K], added to the scores of the last K keys: 0, or -inf where a key is not seen. All see
            the earlier ones.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores[..., -hide.shape[-1] :] += hide  # which is faster than filling
    return torch.softmax(scores, -1, out=scores)


def gradients(q: Tensor, k: Tensor, v: Tensor, hide: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values, given that [N, G, Tq, D] of `weights(q, k, hide) @ v`."""
    p, scale = weights(q, k, hide), q.shape[-1] ** -0.5
    scores = torch._softmax_backward_data(dy @ v.mT, p, -1, p.dtype)
    return (scores @ k).mul_(scale), scores.mT @ (q * scale), p.mT @ dy


def _pieces(q: Tensor, k: Tensor, *others: Tensor) -> Any:
    """All tensors in pieces along N that have at most SCORES scores, or one text."""
    texts = texts_at_a_time(q.shape[1] * q.shape[2] * k.shape[2])
    count = -(-len(q) // texts)
    split = [x.split(texts) if len(x) == len(q) else [x] * count for x in (q, k, *others)]
    return zip(*split, strict=True)


def texts_at_a_time(scores: int) -> int:
    """How many texts of so many scores each are worked on together."""
    return max(1, SCORES // scores)
