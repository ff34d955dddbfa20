"""All of the past, and nothing of the future: GPT-2's own attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2_ablate.model.mix import folded, folded_mask, gradients, slow_in_torch, texts_at_a_time, weights
from gpt2_ablate.model.pattern import Pattern

ROWS = 128  # queries to a block
LONGEST = 16  # tokens per channel of a head; torch's kernel, which never writes scores to memory, catches up with longer texts


def causal(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]."""
    if q.shape[2] <= LONGEST * q.shape[3] and slow_in_torch(q, k, v, dropout):
        return _InBlocks.apply(q, k, v)
    grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)


class _InBlocks(torch.autograd.Function):
    """Each block of queries against the keys up to its end: half of the T x T scores are never made.

    Only the inputs are kept for the backward pass; the weights are computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        B, H, T, D = q.shape
        y = q.new_empty(B, T, H, D).transpose(1, 2)  # as the projection that comes next reads it
        for own, _, qs, ks, vs, hide in _blocks(q, k, v):
            y[own] = (weights(qs, ks, hide) @ vs).reshape(y[own].shape)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for own, seen, qs, ks, vs, hide in _blocks(q, k, v):
            of_q, of_k, of_v = gradients(qs, ks, vs, hide, folded(dy[own], k.shape[1]))
            dq[own] = of_q.reshape(dq[own].shape)
            dk[seen] += of_k
            dv[seen] += of_v
        return dq, dk, dv


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[Any, ...]]:
    """For each block: where its queries and their keys are, queries (folded), keys and values, and what is hidden."""
    (B, H, T, _), G = q.shape, k.shape[1]
    future = torch.full((1, 1, ROWS, ROWS), float("-inf"), dtype=q.dtype).triu(1)
    texts = texts_at_a_time(H * min(ROWS, T) * T)
    for first in range(0, B, texts):
        for start in range(0, T, ROWS):
            end = min(start + ROWS, T)
            some = slice(first, first + texts)
            own, seen = (some, slice(None), slice(start, end)), (some, slice(None), slice(0, end))
            hide = folded_mask(future[:, :, : end - start, : end - start], H, G)
            # A product of batches wants them in one piece, and would copy them more slowly.
            yield own, seen, folded(q[own], G).contiguous(), k[seen].contiguous(), v[seen].contiguous(), hide
