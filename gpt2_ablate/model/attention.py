"""One layer's attention: project, rotate, attend, project back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.kv_cache import LayerCache
from gpt2_ablate.ops.attention import attention, find_kernel
from gpt2_ablate.ops.linear import Linear


class SelfAttention(nn.Module):
    """Causal self-attention with H query heads that share G key/value heads, H / G queries to a group.

    G = H is multi-head attention (Vaswani et al. 1706.03762, section 3.2.2), G = 1 multi-query attention, anything
    between grouped-query attention (Ainslie et al. 2305.13245, section 2.2). Head h reads key/value head h // (H / G).
    The projections hold H + 2 G heads, so fewer key/value heads are fewer weights, not repeated ones.

    Base of the `attention` parts; built as `cls(config, layer, **options)`. A part may override one of `project`, `attend`,
    `make_cache` and `remember`, or `forward` as a whole.
    """

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.layer = layer
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)
        self.head_dim = config.head_dim
        self.mask = config.masks[layer]
        self.kernel = config.kernel
        find_kernel(config.kernel)
        self.dropout = config.dropout
        D, (H, G, _) = config.head_dim, self.heads
        self.qkv = Linear(config.n_embd, (H + 2 * G) * D, matrix_rows=(*[D] * (H + G), G * D))
        self.output = Linear(config.n_head * config.head_dim, config.n_embd, std=config.residual_std)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        q, k, v = self.project(x, context)
        q, k = context.encoding.rotate(q, context), context.encoding.rotate(k, context)
        k, v, key_positions = self.remember(k, v, context)
        y = self.attend(q, k, v, key_positions, context)
        return self.output(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] -> queries [B, H, T, D], keys and values [B, G, T, D], not yet rotated."""
        q, k, v = self.qkv(x).split([heads * self.head_dim for heads in self.heads], dim=-1)
        return self.split_heads(q), self.split_heads(k), self.split_heads(v)

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, T, heads * D] -> [B, heads, T, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def remember(self, k: Tensor, v: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put keys and values [B, G, T, D] into the cache, if there is one.

        Returns:
            what the queries may see: keys and values [B, G, Tk, D] and the keys' positions [Tk] or [B, Tk]; or the given
            ones and None where nothing came before them.
        """
        if context.cache is None:
            return k, v, None
        cache = context.cache.layers[self.layer]
        was_empty = cache.is_empty
        keys, values, positions = cache.append(k, v, context.positions, context.document_starts)
        return (k, v, None) if was_empty else (keys, values, positions)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_positions: Tensor | None, context: ForwardContext) -> Tensor:
        """Queries [B, H, T, D] over keys [B, G, Tk, D] and values [B, G, Tk, Dv] -> [B, H, T, Dv]."""
        mask = replace(self.mask, document_starts=context.document_starts, score_bias=context.encoding.score_bias)
        dropout = self.dropout if self.training else 0.0
        return attention(q, k, v, mask, context.positions, key_positions, dropout, self.kernel)

    def make_cache(self, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """An empty cache for B sequences of up to `capacity` tokens; see `LayerCache` for what it has to do."""
        shape = (self.heads[1], self.head_dim)
        return LayerCache(self.mask, shape, shape, batch_size, capacity, dtype, device)
