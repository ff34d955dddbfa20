"""One layer's attention: project, turn, attend, project back."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2_ablate.model.attend import attend, attend_cached
from gpt2_ablate.model.cache import LayerCache
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.parts import part
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
        self.window = config.window
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, sum(self.heads) * config.head_dim)
        self.output = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, where: Tensor, positions: Positions, cache: LayerCache | None = None) -> Tensor:
        """x [B, T, C] at the positions `where` [T] -> [B, T, C].

        With a cache, x are the newest tokens of a longer text whose earlier keys and values the cache holds.
        """
        q, k, v = self.project(x)
        q, k = positions.rotate(q, where), positions.rotate(k, where)
        if cache is None or cache.is_empty:
            y = attend(q, k, v, self.window, positions.score_bias, self.dropout if self.training else 0.0)
            if cache is not None:
                cache.append(k, v, where)
        else:
            keys, values, seen = cache.append(k, v, where)
            y = attend_cached(q, keys.type_as(q), values.type_as(q), where, seen, self.window, positions.score_bias)
        return self.output(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> list[Tensor]:
        """x [B, T, C] -> queries [B, H, T, D], keys and values [B, G, T, D]."""
        parts = self.qkv(x).split([heads * self.head_dim for heads in self.heads], dim=-1)
        return [p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts]
