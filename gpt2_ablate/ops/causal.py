"""Full causal attention: GPT-2's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2_ablate.ops.cpu import (
    attention_gradients,
    fold_groups,
    fold_mask,
    is_slow_in_torch,
    probabilities,
    sequences_per_chunk,
)
from gpt2_ablate.ops.mask import AttentionMask

QUERIES = 128  # in a block
LONGEST = 16  # tokens per channel of a head; torch's kernel, which never stores scores, catches up at longer sequences


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens to themselves: q [B, H, T, D], k [B, G, T, D], v [B, G, T, Dv] -> [B, H, T, Dv]."""
    if q.shape[2] <= LONGEST * q.shape[3] and is_slow_in_torch(q, k, v, dropout):
        return _CausalBf16.apply(q, k, v)
    is_grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=is_grouped)


class _CausalBf16(torch.autograd.Function):
    """Each block of queries against the keys up to its end: half of the T x T scores are never computed.

    Only the inputs are kept for the backward pass; probabilities are computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        B, H, T, _ = q.shape
        y = q.new_empty(B, T, H, v.shape[-1]).transpose(1, 2)  # in the layout that the output projection reads
        for own, _, qs, ks, vs, mask in _blocks(q, k, v):
            y[own] = (probabilities(qs, ks, mask) @ vs).reshape(y[own].shape)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for own, past, qs, ks, vs, mask in _blocks(q, k, v):
            block_dq, block_dk, block_dv = attention_gradients(qs, ks, vs, mask, fold_groups(dy[own], k.shape[1]))
            dq[own] = block_dq.reshape(dq[own].shape)
            dk[past] += block_dk
            dv[past] += block_dv
        return dq, dk, dv


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[Any, ...]]:
    """For each block: the indices of its queries and of their keys, queries (folded), keys, values and mask."""
    (B, H, T, _), G = q.shape, k.shape[1]
    future = torch.full((1, 1, QUERIES, QUERIES), float("-inf"), dtype=q.dtype).triu(1)
    sequences = sequences_per_chunk(H * min(QUERIES, T) * T)
    for first in range(0, B, sequences):
        for start in range(0, T, QUERIES):
            end = min(start + QUERIES, T)
            batch = slice(first, first + sequences)
            own, past = (batch, slice(None), slice(start, end)), (batch, slice(None), slice(0, end))
            mask = fold_mask(future[:, :, : end - start, : end - start], H, G)
            # A batched product needs them contiguous, and would copy them more slowly.
            yield own, past, fold_groups(q[own], G).contiguous(), k[past].contiguous(), v[past].contiguous(), mask
