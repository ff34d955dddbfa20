"""The keys and values of the tokens read so far, so that generating one more token costs one token's work."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import GPT2Config


class LayerCache:
    """One layer's keys and values, [B, G, capacity, D] each, allocated once.

    A windowed layer has capacity for W tokens and no more: the newest token takes the place of the one that has just
    left the window. Its keys are therefore not in order of position; `append` says which position each one has.
    """

    def __init__(self, shape: tuple[int, int, int, int], rolling: bool, dtype: torch.dtype, device: torch.device):
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.positions = torch.empty(shape[2], dtype=torch.long, device=device)
        self.capacity = shape[2]
        self.rolling = rolling
        self.seen = 0

    @property
    def is_empty(self) -> bool:
        return self.seen == 0

    def append(self, k: Tensor, v: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store keys and values [B, G, T, D] of the positions `where` [T]; return all that the new tokens may see.

        Returns:
            keys [B, G, Tk, D], values [B, G, Tk, D] and their positions [Tk].

        Raises:
            UserError: the cache is full.
        """
        T = k.shape[2]
        if not self.rolling and self.seen + T > self.capacity:
            raise UserError(f"KVCache: {self.seen + T} tokens do not fit a capacity of {self.capacity}; make a larger one")
        held = min(self.seen, self.capacity)
        visible = None
        if self.rolling and T > 1:
            # The first of several new tokens still sees keys that the last of them pushes out: join before storing.
            visible = (
                torch.cat((self.keys[:, :, :held], k.to(self.keys.dtype)), 2),
                torch.cat((self.values[:, :, :held], v.to(self.values.dtype)), 2),
                torch.cat((self.positions[:held], where)),
            )
        kept = slice(max(0, T - self.capacity), None)
        slots = torch.arange(self.seen, self.seen + T, device=where.device)[kept] % self.capacity
        self.keys[:, :, slots] = k[:, :, kept].to(self.keys.dtype)
        self.values[:, :, slots] = v[:, :, kept].to(self.values.dtype)
        self.positions[slots] = where[kept]
        self.seen += T
        if visible is not None:
            return visible
        held = min(self.seen, self.capacity)
        return self.keys[:, :, :held], self.values[:, :, :held], self.positions[:held]


class KVCache:
    """The caches of all layers of one model.

    Args:
        config: of the model.
        batch_size: B, how many texts are continued together.
        capacity: most tokens that will be read; default `config.block_size`. A windowed layer never allocates more
            than its window.
        dtype, device: of the stored keys and values.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        capacity = config.block_size if capacity is None else capacity
        if capacity < 1:
            raise UserError(f"KVCache: a capacity of {capacity} holds nothing; give 1 or more")
        rolling = config.window is not None and config.window < capacity
        tokens = config.window if rolling and config.window is not None else capacity
        shape = (batch_size, config.kv_heads, tokens, config.head_dim)
        self.layers = [LayerCache(shape, rolling, dtype, torch.device(device)) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        """How many tokens have been read, whether or not their keys are still held."""
        return self.layers[-1].seen

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values of all layers occupy."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
