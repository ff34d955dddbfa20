"""Attention kernels: from queries, keys and values to mixed values, doing no more work than the pattern needs.

Queries are [B, H, T, D], keys and values [B, G, T, D]; query head h reads key/value head h // (H / G). Under a mask, the
H / G queries of a group are folded into the rows of one product, so that keys and values are not repeated; without one,
torch's kernel is told about the groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ScoreBias = Callable[[Tensor, Tensor], Tensor] | None


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, score_bias: ScoreBias = None, dropout: float = 0.0
) -> Tensor:
    """Causal attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D].

    Args:
        window: W, query i sees keys i - W < j <= i; None: all keys up to i.
        score_bias: what is added to the scores, see `Positions.score_bias`.
        dropout: probability of dropping an attention weight.
    """
    if window is not None and window < q.shape[2]:
        return _attend_sliding(q, k, v, window, score_bias, dropout)
    if score_bias is not None:
        where = torch.arange(q.shape[2], device=q.device)
        return attend_cached(q, k, v, where, where, window, score_bias, dropout)
    return _unmasked(q, k, v, dropout, is_causal=True)


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor,
    window: int | None = None, score_bias: ScoreBias = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Attention of the newest Tq tokens over Tk cached ones in any order: [B, H, Tq, D] over [B, G, Tk, D].

    Every pair is scored, and the pairs that the pattern hides are masked: right where Tq is small. It is also the plain
    definition of the pattern that the faster kernels are tested against.
    """
    if q.shape[2] == 1 and score_bias is None:
        # One new token sees all that the cache holds: nothing to mask.
        return _unmasked(q, k, v, dropout, is_causal=False)
    return _masked(q, k, v, _mask(q, query_positions, key_positions, window, score_bias), dropout)


def _attend_sliding(q: Tensor, k: Tensor, v: Tensor, window: int, score_bias: ScoreBias, dropout: float) -> Tensor:
    """Blocks of W queries against the two blocks of W keys that they can see: work and memory grow with T x W.

    Longformer's sliding chunks (Beltagy et al. 2004.05150, section 3.2 and appendix A), causal, without overlap copies
    of the queries.
    """
    B, _, T, D = q.shape
    q, k, v = (_pad(x, -T % window) for x in (q, k, v))
    where = torch.arange(2 * window, device=q.device)

    # The first block sees only itself, and all of its past is in the window.
    first = attend(q[:, :, :window], k[:, :, :window], v[:, :, :window], None, score_bias, dropout)

    # All others see themselves and the block before, through one band mask [W, 2W] that they share.
    def blocks(x: Tensor, n: int) -> Tensor:  # [B, heads, T, D] -> [B, T/W - 1, heads, n W, D]
        return x.unfold(2, n * window, window).permute(0, 2, 1, 4, 3)

    queries = blocks(q[:, :, window:], 1).flatten(0, 1)
    keys, values = (blocks(x, 2).flatten(0, 1) for x in (k, v))
    rest = _masked(queries, keys, values, _mask(queries, where[window:], where, window, score_bias), dropout)
    rest = rest.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)
    return torch.cat((first, rest), dim=2)[:, :, :T]


def _unmasked(q: Tensor, k: Tensor, v: Tensor, dropout: float, is_causal: bool) -> Tensor:
    """SDPA without a mask: torch's kernels know groups, and on a CPU share one row of many heads among the cores."""
    grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal, enable_gqa=grouped)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """SDPA with the H / G queries of each group as rows of one product: [B, H, Tq, D] seen as [B, G, H/G Tq, D]."""
    B, H, Tq, D = q.shape
    G = k.shape[1]
    # [Tq, Tk] serves every head; [H, Tq, Tk] (a bias) has a row for each. Both become [1 or G, H/G Tq, Tk].
    mask = mask.repeat(H // G, 1) if mask.ndim == 2 else mask.unflatten(0, (G, H // G)).flatten(1, 2)
    y = F.scaled_dot_product_attention(q.reshape(B, G, -1, D), k, v, attn_mask=mask, dropout_p=dropout)
    return y.reshape(B, H, Tq, D)


def _mask(q: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None, score_bias: ScoreBias) -> Tensor:
    """Which keys each query sees [Tq, Tk], or with a bias what is added to the scores [H, Tq, Tk] (-inf: not seen)."""
    distance = query_positions[:, None] - key_positions[None, :]
    visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if score_bias is None:
        return visible
    return score_bias(query_positions, key_positions).masked_fill(~visible, float("-inf")).to(q.dtype)


def _pad(x: Tensor, tokens: int) -> Tensor:
    # At the end, where causality hides the padding from every real query.
    return F.pad(x, (0, 0, 0, tokens)) if tokens else x
