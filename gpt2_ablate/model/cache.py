"""The keys and values of the tokens read so far, so that generating one more token costs one token's work."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.pattern import NEVER, Pattern


class LayerCache:
    """One layer's keys and values, [B, G, capacity, D] each, allocated once.

    A layer with a window has room for what the window reaches and no more, however long the text: the newest token takes
    the place of the one that has just left it. Its keys are therefore not in order; `append` says where each one stands.
    Global tokens never leave: they have slots of their own, in front of the others.
    """

    def __init__(self, config: GPT2Config, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device):
        pattern = Pattern.of(config)
        held = pattern.held(capacity)
        self.rolling = held < capacity
        self.fixed = len(pattern.global_tokens) if self.rolling else 0
        self.capacity = held - self.fixed
        # Zeros, because a global token's slot may be read before it is written: hidden, so times a weight of zero.
        self.keys = torch.zeros(batch_size, config.kv_heads, held, config.head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.positions = torch.zeros(self.capacity, dtype=torch.long, device=device)
        self.places = torch.tensor(pattern.global_tokens[: self.fixed], dtype=torch.long, device=device)
        self.start: Tensor | None = None
        self.seen = 0

    @property
    def is_empty(self) -> bool:
        return self.seen == 0

    def append(self, k: Tensor, v: Tensor, where: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Store keys and values [B, G, T, D] of the places `where` [T]; return all that the new tokens may see.

        Args:
            starts: [B, T], where the document of each token starts; None: at 0.

        Returns:
            keys [B, G, Tk, D], values [B, G, Tk, D] and their places [Tk] or [B, Tk].

        Raises:
            UserError: the cache is full.
        """
        T = k.shape[2]
        if not self.rolling and self.seen + T > self.capacity:
            raise UserError(f"KVCache: {self.seen + T} tokens do not fit a capacity of {self.capacity}; make a larger one")
        k, v = k.to(self.keys.dtype), v.to(self.values.dtype)
        if self.rolling and T > 1:
            # The first of several new tokens still sees keys that the last of them pushes out: join before storing.
            keys, values, places = self._held()
            places = torch.cat((places, where.expand(*places.shape[:-1], -1)), dim=-1)
            found = torch.cat((keys, k), 2), torch.cat((values, v), 2), places
            self._store(k, v, where, starts)
            return found
        self._store(k, v, where, starts)
        return self._held()

    def _store(self, k: Tensor, v: Tensor, where: Tensor, starts: Tensor | None) -> None:
        T = k.shape[2]
        first = max(0, T - self.capacity)
        while first < T:  # in two pieces where the end of the room is reached
            slot = (self.seen + first) % self.capacity
            last = min(T, first + self.capacity - slot)
            read, slots = slice(first, last), slice(slot, slot + last - first)
            self.keys[:, :, self.fixed :][:, :, slots] = k[:, :, read]
            self.values[:, :, self.fixed :][:, :, slots] = v[:, :, read]
            self.positions[slots] = where[read]
            first = last
        self.start = None if starts is None else starts[:, -1:]
        for slot, place in enumerate(self._global_places().unbind(-1)):  # [B], or one for all
            new = (place - self.seen).expand(len(k)).clamp(0, T - 1)
            is_new = ((place >= self.seen) & (place < self.seen + T)).expand(len(k))[:, None, None]
            rows = torch.arange(len(k), device=where.device)
            self.keys[:, :, slot] = torch.where(is_new, k[rows, :, new], self.keys[:, :, slot])
            self.values[:, :, slot] = torch.where(is_new, v[rows, :, new], self.values[:, :, slot])
        self.seen += T

    def _held(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything stored, and where it stands."""
        held = min(self.seen, self.capacity)
        places = self.positions[:held]
        if self.fixed:
            # A global token is found in its own slot alone, once it has been read.
            mine = self._global_places()
            is_global = (places[:, None] == mine[..., None, :]).any(-1)
            mine = mine.masked_fill(mine >= self.seen, NEVER)
            places = torch.cat((mine, places.expand_as(is_global).masked_fill(is_global, NEVER)), dim=-1)
        held += self.fixed
        return self.keys[:, :, :held], self.values[:, :, :held], places

    def _global_places(self) -> Tensor:
        """[fixed], or [B, fixed] where each row's open document starts at a place of its own."""
        return self.places if self.start is None else self.places + self.start


class KVCache:
    """The caches of all layers of one model.

    Args:
        config: of the model.
        batch_size: B, how many texts are continued together.
        capacity: most tokens that will be read; default `config.block_size`. A layer with a window never allocates more
            than the window reaches.
        dtype, device: of the stored keys and values.

    Attributes:
        layers: one LayerCache a layer.
        document: number and start [B, 1] of each row's open document; None where every row is one.

    Raises:
        UserError: there is no room for a single token.
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
        self.layers = [LayerCache(layer, batch_size, capacity, dtype, torch.device(device)) for layer in config.layers]
        self.document: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """How many tokens have been read, whether or not their keys are still held."""
        return self.layers[-1].seen

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values of all layers occupy."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
