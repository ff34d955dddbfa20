"""A window in blocks: work and memory grow with T x W instead of T x T.

Longformer's sliding chunks (Beltagy et al. 2004.05150, section 3.2 and appendix A), causal: blocks of W queries against
the two blocks of W keys that they can see. Dilation and global tokens become the same blocks: a window dilated by d is a
plain window over every d-th token, and global keys are a few more keys of every block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_ablate.ops import flash
from gpt2_ablate.ops.cpu import dense_attention
from gpt2_ablate.ops.eager import masked_attention
from gpt2_ablate.ops.mask import MASKED_POSITION, AttentionMask


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float = 0.0) -> Tensor:
    """Attention through a window of W: q [B, H, T, D], k [B, G, T, D], v [B, G, T, Dv] -> [B, H, T, Dv]."""
    is_plain = mask.dilations == {1} and not mask.global_tokens and mask.document_starts is None and mask.score_bias is None
    if is_plain and flash.is_available(q, k, v, dropout):
        return flash.flash_attention(q, k, v, mask.window)
    everywhere = torch.tensor([p for p in mask.global_tokens if p < q.shape[2]], dtype=torch.long, device=q.device)
    y = _each_dilation(q, k, v, mask, everywhere, dropout)
    if len(everywhere):
        # Few queries, and each sees all its past.
        positions = torch.arange(q.shape[2], device=q.device)
        global_y = masked_attention(q[:, :, everywhere], k, v, mask, everywhere, positions, dropout)
        y = y.index_copy(2, everywhere, global_y)
    return y


def _each_dilation(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, everywhere: Tensor, dropout: float) -> Tensor:
    """Heads of one dilation at a time. Those of one group share keys, so groups of like heads are taken together."""
    H, G = q.shape[1], k.shape[1]
    if len(mask.dilations) == 1:
        return _dilated(q, k, v, replace(mask, dilation=min(mask.dilations)), everywhere, dropout)
    assert isinstance(mask.dilation, tuple)
    R, bias = H // G, mask.score_bias
    groups = [mask.dilation[g * R : (g + 1) * R] for g in range(G)]
    found, order = [], []
    for like in sorted(set(groups)):
        shared = [g for g in range(G) if groups[g] == like]
        for d in sorted(set(like)):
            heads = [g * R + r for g in shared for r in range(R) if like[r] == d]
            own = None if bias is None else (lambda i, j, heads=heads: bias(i, j)[heads])
            part = replace(mask, dilation=d, score_bias=own)
            found.append(_dilated(q[:, heads], k[:, shared], v[:, shared], part, everywhere, dropout))
            order += heads
    return torch.cat(found, dim=1)[:, sorted(range(H), key=order.__getitem__)]


def _dilated(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, everywhere: Tensor, dropout: float) -> Tensor:
    """Dilation d splits a sequence into d, each of every d-th token and none seeing another; W cuts them into blocks.

    Args:
        everywhere: [P], the global tokens, whose keys every block sees.
    """
    B, _, T, _ = q.shape
    d = mask.dilation
    assert isinstance(d, int) and mask.window is not None
    W = min(mask.window, -(-T // d))
    n = -(-T // (d * W))  # blocks of each sequence

    def blocks(x: Tensor) -> Tensor:  # [B, heads, T, D] -> [B, d, n, heads, W, D]
        x = F.pad(x, (0, 0, 0, d * n * W - x.shape[2]))  # at the end, where causality hides it
        return x.unflatten(2, (n, W, d)).permute(0, 4, 2, 1, 3, 5)

    def first_block(x: Tensor) -> Tensor:
        return x[:, :, :1]

    def two_blocks(x: Tensor) -> Tensor:  # [B, d, n, heads, W, D] -> [B, d, n - 1, heads, 2 W, D]
        return torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=-2)

    def with_global(x: Tensor, few: Tensor) -> Tensor:  # [B, d, n, heads, K, D], [B, heads, P, D] -> [.., K + P, D]
        return torch.cat((x, few[:, None, None].expand(*x.shape[:3], *few.shape[1:])), dim=-2)

    queries, keys, values = blocks(q), blocks(k), blocks(v)
    positions = blocks(torch.arange(d * n * W, device=q.device)[None, None, :, None])
    starts = None if mask.document_starts is None else blocks(mask.document_starts[:, None, :, None])
    found = []
    for own, near in ((slice(0, 1), first_block), (slice(1, None), two_blocks))[: min(n, 2)]:
        i, j, ks, vs = positions[:, :, own], near(positions), near(keys), near(values)
        if len(everywhere):
            # A global key counts once, as the one that all blocks have.
            j = with_global(j.masked_fill(torch.isin(j, everywhere), MASKED_POSITION), everywhere[None, None, :, None])
            ks, vs = with_global(ks, k[:, :, everywhere]), with_global(vs, v[:, :, everywhere])
        dense = _dense_mask(mask, i, j, None if starts is None else starts[:, :, own], B)
        y = dense_attention(queries[:, :, own].flatten(0, 2), ks.flatten(0, 2), vs.flatten(0, 2), dense, dropout)
        found.append(y.unflatten(0, (B, d, -1)))
    return torch.cat(found, dim=2).permute(0, 3, 2, 4, 1, 5).flatten(2, 4)[:, :, :T]


def _dense_mask(mask: AttentionMask, i: Tensor, j: Tensor, starts: Tensor | None, B: int) -> Tensor:
    """What `dense_attention` needs for queries at positions i [1, d, n, 1, W, 1], keys at positions j [1, d, n, 1, Tk, 1]."""
    assert isinstance(mask.dilation, int)
    if starts is not None or mask.global_tokens:
        visible = mask.visible(i, j.mT, mask.dilation, 0 if starts is None else starts)
        return visible.expand(B, -1, -1, -1, -1, -1).flatten(0, 2)
    # All blocks are alike: one mask serves them all.
    i, j = i[0, 0, 0, 0, :, 0], j[0, 0, 0, 0, :, 0]
    visible = mask.visible(i[:, None], j[None, :], mask.dilation)
    if mask.score_bias is None:
        return visible[None, None]
    return mask.score_bias(i, j).masked_fill(~visible, float("-inf"))[None]
