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

from gpt2_ablate.model.mix import masked
from gpt2_ablate.model.pattern import NEVER, Pattern
from gpt2_ablate.model.reference import rows


def sliding(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention through a window of W: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]."""
    places = torch.tensor([p for p in pattern.global_tokens if p < q.shape[2]], dtype=torch.long, device=q.device)
    y = _each_dilation(q, k, v, pattern, places, dropout)
    if len(places):
        # Few rows, and each sees all its past.
        everything = torch.arange(q.shape[2], device=q.device)
        y = y.index_copy(2, places, rows(q[:, :, places], k, v, pattern, places, everything, dropout))
    return y


def _each_dilation(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, places: Tensor, dropout: float) -> Tensor:
    """Heads of one dilation at a time. Those of one group share keys, so groups of like heads are taken together."""
    H, G = q.shape[1], k.shape[1]
    if len(pattern.dilations) == 1:
        return _dilated(q, k, v, replace(pattern, dilation=min(pattern.dilations)), places, dropout)
    assert isinstance(pattern.dilation, tuple)
    R, bias = H // G, pattern.score_bias
    groups = [pattern.dilation[g * R : (g + 1) * R] for g in range(G)]
    found, order = [], []
    for like in sorted(set(groups)):
        shared = [g for g in range(G) if groups[g] == like]
        for d in sorted(set(like)):
            heads = [g * R + r for g in shared for r in range(R) if like[r] == d]
            own = None if bias is None else (lambda i, j, heads=heads: bias(i, j)[heads])
            part = replace(pattern, dilation=d, score_bias=own)
            found.append(_dilated(q[:, heads], k[:, shared], v[:, shared], part, places, dropout))
            order += heads
    return torch.cat(found, dim=1)[:, sorted(range(H), key=order.__getitem__)]


def _dilated(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, places: Tensor, dropout: float) -> Tensor:
    """Dilation d takes a text apart into d texts, each of every d-th token and none seeing another, and W cuts them."""
    B, _, T, _ = q.shape
    d = pattern.dilation
    assert isinstance(d, int) and pattern.window is not None
    W = min(pattern.window, -(-T // d))
    n = -(-T // (d * W))  # blocks of each text

    def blocks(x: Tensor) -> Tensor:  # [B, heads, T, D] -> [B, d, n, heads, W, D]
        x = F.pad(x, (0, 0, 0, d * n * W - x.shape[2]))  # at the end, where causality hides it
        return x.unflatten(2, (n, W, d)).permute(0, 4, 2, 1, 3, 5)

    def two_blocks(x: Tensor) -> Tensor:  # [B, d, n, heads, W, D] -> [B, d, n - 1, heads, 2 W, D]
        return torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=-2)

    def and_everywhere(x: Tensor, few: Tensor) -> Tensor:  # [B, d, n, heads, K, D], [B, heads, P, D] -> [.., K + P, D]
        return torch.cat((x, few[:, None, None].expand(*x.shape[:3], *few.shape[1:])), dim=-2)

    queries, keys, values = blocks(q), blocks(k), blocks(v)
    where = blocks(torch.arange(d * n * W, device=q.device)[None, None, :, None])
    starts = None if pattern.starts is None else blocks(pattern.starts[:, None, :, None])
    # The first block sees itself alone, and all others themselves and the block before.
    near = [(slice(0, 1), lambda x: x[:, :, :1]), (slice(1, None), two_blocks)]
    found = []
    for own, seen in near[: min(n, 2)]:
        i, j, ks, vs = where[:, :, own], seen(where), seen(keys), seen(values)
        if len(places):
            # A global key counts once, as the one that all blocks have.
            j = and_everywhere(j.masked_fill(torch.isin(j, places), NEVER), places[None, None, :, None])
            ks, vs = and_everywhere(ks, k[:, :, places]), and_everywhere(vs, v[:, :, places])
        mask = _mask(pattern, i, j, None if starts is None else starts[:, :, own], B)
        y = masked(queries[:, :, own].flatten(0, 2), ks.flatten(0, 2), vs.flatten(0, 2), mask, dropout)
        found.append(y.unflatten(0, (B, d, -1)))
    return torch.cat(found, dim=2).permute(0, 3, 2, 4, 1, 5).flatten(2, 4)[:, :, :T]


def _mask(pattern: Pattern, i: Tensor, j: Tensor, starts: Tensor | None, B: int) -> Tensor:
    """What `masked` needs for queries at the places i [1, d, n, 1, W, 1] and keys at the places j [1, d, n, 1, Tk, 1]."""
    assert isinstance(pattern.dilation, int)
    if starts is not None or pattern.global_tokens:
        visible = pattern.visible(i, j.mT, pattern.dilation, 0 if starts is None else starts)
        return visible.expand(B, -1, -1, -1, -1, -1).flatten(0, 2)
    # All blocks look alike: one mask serves them all.
    i, j = i[0, 0, 0, 0, :, 0], j[0, 0, 0, 0, :, 0]
    visible = pattern.visible(i[:, None], j[None, :], pattern.dilation)
    if pattern.score_bias is None:
        return visible[None, None]
    return pattern.score_bias(i, j).masked_fill(~visible, float("-inf"))[None]
