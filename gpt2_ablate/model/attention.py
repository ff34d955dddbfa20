"""One layer's attention: project, turn, attend, project back."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from gpt2_ablate.model.attend import attend, attend_cached, find_kernel
from gpt2_ablate.model.cache import LayerCache
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.linear import Linear
from gpt2_ablate.model.parts import part
from gpt2_ablate.model.pattern import Pattern
from gpt2_ablate.model.positions import Positions


@part("attention", "self_attention")
class SelfAttention(nn.Module):
    """Causal self-attention with H query heads that share G key/value heads, H / G queries to a group.

    G = H is multi-head attention (Vaswani et al. 1706.03762, section 3.2.2), G = 1 multi-query attention, anything
    between grouped-query attention (Ainslie et al. 2305.13245, section 2.2). Head h reads key/value head h // (H / G).
    The projections hold H + 2 G heads, so fewer key/value heads are fewer weights, not repeated ones.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)
        self.head_dim = config.head_dim
        self.pattern = Pattern.of(config)
        self.kernel = config.kernel
        find_kernel(config.kernel)
        self.dropout = config.dropout
        self.qkv = Linear(config.n_embd, sum(self.heads) * config.head_dim)
        self.output = Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Tensor, where: Tensor, positions: Positions, cache: LayerCache | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """x [B, T, C] at the places `where` [T] -> [B, T, C].

        With a cache, x are the newest tokens of a longer text whose earlier keys and values the cache holds. With
        `starts` [B, T], the place where each token's document starts, it sees and counts from there.
        """
        q, k, v = self.project(x)
        told = where if starts is None else where - starts
        q, k = positions.rotate(q, told), positions.rotate(k, told)
        pattern = replace(self.pattern, starts=starts, score_bias=positions.score_bias)
        if cache is None or cache.is_empty:
            y = attend(q, k, v, pattern, self.dropout if self.training else 0.0, self.kernel)
            if cache is not None:
                cache.append(k, v, where, starts)
        else:
            keys, values, seen = cache.append(k, v, where, starts)
            y = attend_cached(q, keys.type_as(q), values.type_as(q), where, seen, pattern)
        return self.output(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> list[Tensor]:
        """x [B, T, C] -> queries [B, H, T, D], keys and values [B, G, T, D]."""
        parts = self.qkv(x).split([heads * self.head_dim for heads in self.heads], dim=-1)
        return [p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts]
