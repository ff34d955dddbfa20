"""Multi-head latent attention: keys and values are expanded from one small vector a token, and the cache keeps only that
(DeepSeek-V2, 2405.04434, section 2.1)."""

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.kv_cache import LayerCache
from gpt2_ablate.model.parts import build
from gpt2_ablate.ops.linear import Linear


class LatentAttention(SelfAttention):
    """Queries and keys are 2 D wide: D channels of content, and D that carry the position, one such key for all heads.

    Args:
        rank: channels of the latent vector; None: 2 D. A token takes rank + D numbers of the cache, where multi-head
            attention takes 2 H D.
    """

    def __init__(self, config: GPT2Config, layer: int, rank: int | None = None):
        super().__init__(config, layer)
        if config.kv_heads != config.n_head:
            raise UserError(
                f"n_kv_head: {config.n_kv_head} is not used by latent attention, which has no such heads; leave it out"
            )
        H, D, C = config.n_head, config.head_dim, config.n_embd
        self.rank = rank or 2 * D
        del self.qkv
        self.query = Linear(C, H * 2 * D)
        self.compress = Linear(C, self.rank + D)
        self.norm = build("norm", config.norm, self.rank)
        self.expand = Linear(self.rank, H * 2 * D)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        query, positional_query = self._heads(self.query(x)).chunk(2, dim=-1)  # [B, H, T, D] each
        latent, positional_key = self.compress(x)[:, None].split([self.rank, self.head_dim], dim=-1)  # [B, 1, T, ...]
        rotate = context.encoding.rotate
        positional_query, positional_key = rotate(positional_query, context), rotate(positional_key, context)
        latent, positional_key, key_positions = self.remember(self.norm(latent), positional_key, context)
        key, value = self._heads(self.expand(latent[:, 0])).chunk(2, dim=-1)
        q = torch.cat((query, positional_query), dim=-1)
        k = torch.cat((key, positional_key.expand_as(key).type_as(key)), dim=-1)
        y = self.attend(q, k, value, key_positions, context)
        return self.output(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H * width] -> [B, H, T, width]."""
        return x.unflatten(-1, (self.heads[0], -1)).transpose(1, 2)

    def make_cache(self, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        return LayerCache(self.mask, (1, self.rank), (1, self.head_dim), batch_size, capacity, dtype, device)
