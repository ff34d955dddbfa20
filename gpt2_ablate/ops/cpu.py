"""Dense attention: score, mask, softmax, average; by torch's kernel, or by plain products where a CPU is faster with them.

Queries are [N, H, Tq, D], keys [N, G, Tk, D], values [N, G, Tk, Dv]; query head h reads key/value head h // (H / G). The
H / G queries of a group are folded into the query dimension of one product, so that keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SCORES = 2**20  # computed together, unless one sequence has more: 2 MB of bf16, about what a core's cache holds


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention under a dense mask: [N, H, Tq, D] over [N, G, Tk, D] -> [N, H, Tq, Dv].

    Args:
        mask: [N or 1, H or 1, Tq, Tk], True where a query sees a key, or what is added to the scores (-inf: masked).
            Every query sees at least one key.
        dropout: probability of dropping an attention probability.
    """
    H, G = q.shape[1], k.shape[1]
    if mask.dtype == torch.bool and is_slow_in_torch(q, k, v, dropout):
        additive = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
        y = _DenseBf16.apply(fold_groups(q, G), k, v, fold_mask(additive, H, G))
    else:
        folded = fold_mask(mask if mask.dtype == torch.bool else mask.to(q.dtype), H, G)
        y = F.scaled_dot_product_attention(fold_groups(q, G), k, v, attn_mask=folded, dropout_p=dropout)
    return y.reshape(*q.shape[:-1], v.shape[-1])


def unmasked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries that all see every key: [N, H, Tq, D] over [N, G, Tk, D] -> [N, H, Tq, Dv]."""
    if not is_slow_in_torch(q, k, v, 0.0):
        # Unfolded, because torch's kernel divides heads among the cores, but not the queries of one head.
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=bool(q.shape[1] != k.shape[1]))
    folded = fold_groups(q, k.shape[1])
    if folded.shape[2] == 1:
        # In bf16 it is nearly twice as fast for two queries as for one.
        return F.scaled_dot_product_attention(folded.expand(-1, -1, 2, -1), k, v)[:, :, :1]
    return F.scaled_dot_product_attention(folded, k, v).reshape(*q.shape[:-1], v.shape[-1])


def fold_groups(q: Tensor, G: int) -> Tensor:
    """Queries [N, H, Tq, D] -> [N, G, (H / G) Tq, D]."""
    N, H, Tq, D = q.shape
    return q.reshape(N, G, H // G * Tq, D)


def fold_mask(mask: Tensor, H: int, G: int) -> Tensor:
    """The mask [.., H or 1, Tq, Tk] of folded queries: [.., G or 1, (H / G) Tq, Tk]."""
    if mask.shape[1] == H:
        return mask.unflatten(1, (G, H // G)).flatten(2, 3)
    return mask.expand(-1, H // G, -1, -1).flatten(1, 2)[:, None]


def is_slow_in_torch(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether plain products beat torch's kernel: in bf16 on a CPU, 2.5 times."""
    return q.device.type == "cpu" and q.dtype == k.dtype == v.dtype == torch.bfloat16 and not dropout


class _DenseBf16(torch.autograd.Function):
    """`dense_attention` by plain products, a few sequences at a time, where `is_slow_in_torch`.

    Only the inputs are kept for the backward pass; probabilities are computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        return torch.cat([_probabilities(*chunk) @ values for *chunk, values in _chunks(q, k, mask, v)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        found = [_attention_gradients(*chunk) for chunk in _chunks(*ctx.saved_tensors, dy)]
        dq, dk, dv = (torch.cat(chunks) for chunks in zip(*found, strict=True))
        return dq, dk, dv, None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Softmax of the scores, in fp32, then rounded: queries [N, G, Tq, D] over keys [N, G, Tk, D] -> [N, G, Tq, Tk].

    Args:
        mask: [N or 1, G or 1, Tq, Tk], added to the scores: 0, or -inf where a key is masked; which is faster than filling.
    """
    scores = ((q * q.shape[-1] ** -0.5) @ k.mT).add_(mask)
    return torch.softmax(scores, -1, out=scores)


def _attention_gradients(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values, given that [N, G, Tq, Dv] of `_probabilities(q, k, mask) @ v`."""
    p, scale = _probabilities(q, k, mask), q.shape[-1] ** -0.5
    scores = torch._softmax_backward_data(dy @ v.mT, p, -1, p.dtype)
    return (scores @ k).mul_(scale), scores.mT @ (q * scale), p.mT @ dy


def _chunks(q: Tensor, k: Tensor, *others: Tensor) -> Any:
    """All tensors in chunks along N that have at most SCORES scores, or one sequence."""
    sequences = max(1, SCORES // (q.shape[1] * q.shape[2] * k.shape[2]))
    count = -(-len(q) // sequences)
    split = [x.split(sequences) if len(x) == len(q) else [x] * count for x in (q, k, *others)]
    return zip(*split, strict=True)
