"""FlexAttention (Dong et al. 2412.05496): torch compiles the pattern into a kernel that skips the blocks it hides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gpt2_ablate.model.pattern import Pattern


def flex(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]. Knows no dropout."""
    T = q.shape[2]
    if pattern.starts is None:
        blocks = _of_every_text(pattern.window, pattern.dilation, pattern.global_tokens, T, q.device)
    else:
        blocks = block_mask(pattern, T, q.device)
    kernel: Any = _compiled() if q.device.type == "cuda" else flex_attention
    y: Tensor = kernel(q, k, v, block_mask=blocks, enable_gqa=bool(q.shape[1] != k.shape[1]))
    return y


def block_mask(pattern: Pattern, T: int, device: torch.device) -> BlockMask:
    """Which blocks of queries see which blocks of keys, and how to tell within those that see some of them."""
    dilation, starts = pattern.dilation_of_heads(device), pattern.starts

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        own = dilation[h] if isinstance(dilation, Tensor) else dilation
        return pattern.visible(i, j, own, 0 if starts is None else starts[b, i])

    heads = len(dilation) if isinstance(dilation, Tensor) else None
    return create_block_mask(visible, None if starts is None else len(starts), heads, T, T, device=device)


@lru_cache(maxsize=64)  # a few patterns, and the lengths of a training run and its validation
def _of_every_text(window: int | None, dilation: Any, global_tokens: Any, T: int, device: torch.device) -> BlockMask:
    return block_mask(Pattern(window, dilation, global_tokens), T, device)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
