"""FlexAttention (Dong et al. 2412.05496): torch compiles the mask into a kernel that skips the blocks it hides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gpt2_ablate.ops.mask import AttentionMask


def flex_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens to themselves: q [B, H, T, D], k [B, G, T, D], v [B, G, T, Dv] -> [B, H, T, Dv].

    Dropout is not supported.
    """
    T = q.shape[2]
    if mask.document_starts is None:
        blocks = _shared_block_mask(mask.window, mask.dilation, mask.global_tokens, T, q.device)
    else:
        blocks = block_mask(mask, T, q.device)
    kernel: Any = _compiled() if q.device.type == "cuda" else torch_flex.flex_attention
    y: Tensor = kernel(q, k, v, block_mask=blocks, enable_gqa=bool(q.shape[1] != k.shape[1]))
    return y


def block_mask(mask: AttentionMask, T: int, device: torch.device) -> BlockMask:
    """Which blocks of queries see which blocks of keys, and the rule within those that see some of them."""
    dilation, starts = mask.head_dilation(device), mask.document_starts

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        own = dilation[h] if isinstance(dilation, Tensor) else dilation
        return mask.visible(i, j, own, 0 if starts is None else starts[b, i])

    heads = len(dilation) if isinstance(dilation, Tensor) else None
    return create_block_mask(visible, None if starts is None else len(starts), heads, T, T, device=device)


@lru_cache(maxsize=64)  # a few masks, and the lengths of a training run and its validation
def _shared_block_mask(window: int | None, dilation: Any, global_tokens: Any, T: int, device: torch.device) -> BlockMask:
    return block_mask(AttentionMask(window, dilation, global_tokens), T, device)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(torch_flex.flex_attention, dynamic=False)
