"""The keys and values of the tokens read so far, so that generating one more token costs one token's work."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.parts import build
from gpt2_ablate.ops.mask import MASKED_POSITION, AttentionMask


class LayerCache:
    """One layer's keys [B, heads, cache size, width] and values, which may have other heads and widths, allocated once.

    A layer with a window has room for the window and no more, however long the sequence: the newest token takes the place of
    the one that has just left it. Its keys are therefore not in order; `append` says at which position each one is. Global
    tokens never leave: they have slots of their own, in front of the others.

    Args:
        mask: of the layer.
        key_shape, value_shape: (heads, width).
        batch_size: B.
        capacity: most tokens that will be read.
        dtype, device: of the stored numbers.
    """

    def __init__(
        self,
        mask: AttentionMask,
        key_shape: tuple[int, int],
        value_shape: tuple[int, int],
        batch_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        size = mask.cache_size(capacity)
        self.is_rolling = size < capacity
        self.fixed = len(mask.global_tokens) if self.is_rolling else 0
        self.capacity = size - self.fixed

        def empty(heads: int, width: int) -> Tensor:
            # Zeros, because a global token's slot may be read before it is written: masked, so times a probability of zero.
            return torch.zeros(batch_size, heads, size, width, dtype=dtype, device=device)

        self.keys, self.values = empty(*key_shape), empty(*value_shape)
        self.positions = torch.zeros(self.capacity, dtype=torch.long, device=device)
        self.global_tokens = torch.tensor(mask.global_tokens[: self.fixed], dtype=torch.long, device=device)
        self.document_start: Tensor | None = None
        self.length = 0  # tokens read

    @property
    def is_empty(self) -> bool:
        return self.length == 0

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor, document_starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Store keys and values [B, heads, T, width] at positions [T]; return all that the new tokens may see.

        Args:
            document_starts: [B, T], where the document of each token starts; None: at 0.

        Returns:
            keys [B, heads, Tk, width], values [B, heads, Tk, width] and their positions [Tk] or [B, Tk].

        Raises:
            UserError: the cache is full.
        """
        T = k.shape[2]
        if not self.is_rolling and self.length + T > self.capacity:
            raise UserError(f"KVCache: {self.length + T} tokens do not fit a capacity of {self.capacity}; make a larger one")
        k, v = k.to(self.keys.dtype), v.to(self.values.dtype)
        if self.is_rolling and T > 1:
            # The first of several new tokens still sees keys that the last of them pushes out: join before storing.
            keys, values, stored = self._stored()
            stored = torch.cat((stored, positions.expand(*stored.shape[:-1], -1)), dim=-1)
            found = torch.cat((keys, k), 2), torch.cat((values, v), 2), stored
            self._store(k, v, positions, document_starts)
            return found
        self._store(k, v, positions, document_starts)
        return self._stored()

    def _store(self, k: Tensor, v: Tensor, positions: Tensor, document_starts: Tensor | None) -> None:
        T = k.shape[2]
        first = max(0, T - self.capacity)
        while first < T:  # in two pieces where the end of the room is reached
            slot = (self.length + first) % self.capacity
            last = min(T, first + self.capacity - slot)
            read, slots = slice(first, last), slice(slot, slot + last - first)
            self.keys[:, :, self.fixed :][:, :, slots] = k[:, :, read]
            self.values[:, :, self.fixed :][:, :, slots] = v[:, :, read]
            self.positions[slots] = positions[read]
            first = last
        self.document_start = None if document_starts is None else document_starts[:, -1:]
        batch = torch.arange(len(k), device=positions.device)
        for slot, position in enumerate(self._global_positions().unbind(-1)):  # [B], or one for all
            new = (position - self.length).expand(len(k)).clamp(0, T - 1)
            is_new = ((position >= self.length) & (position < self.length + T)).expand(len(k))[:, None, None]
            self.keys[:, :, slot] = torch.where(is_new, k[batch, :, new], self.keys[:, :, slot])
            self.values[:, :, slot] = torch.where(is_new, v[batch, :, new], self.values[:, :, slot])
        self.length += T

    def _stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything stored, and its positions."""
        size = min(self.length, self.capacity)
        positions = self.positions[:size]
        if self.fixed:
            # A global token is found in its own slot alone, once it has been read.
            fixed = self._global_positions()
            is_global = (positions[:, None] == fixed[..., None, :]).any(-1)
            fixed = fixed.masked_fill(fixed >= self.length, MASKED_POSITION)
            positions = torch.cat((fixed, positions.expand_as(is_global).masked_fill(is_global, MASKED_POSITION)), dim=-1)
        size += self.fixed
        return self.keys[:, :, :size], self.values[:, :, :size], positions

    def _global_positions(self) -> Tensor:
        """[fixed], or [B, fixed] where each row's open document starts at a position of its own."""
        return self.global_tokens if self.document_start is None else self.global_tokens + self.document_start


class KVCache:
    """The caches of all layers of one model, each made by its block.

    Args:
        config: of the model.
        batch_size: B, how many sequences are continued together.
        capacity: most tokens that will be read; default `config.block_size`. A layer with a window never allocates more
            than the window needs.
        dtype, device: of the stored keys and values. On "meta" nothing is allocated, and `nbytes` is right all the same.
        blocks: of the model, where there is one; None: built for the purpose, without weights.

    Attributes:
        layers: one cache a layer, see `LayerCache`.
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
        blocks: Iterable[nn.Module] | None = None,
    ):
        capacity = config.block_size if capacity is None else capacity
        if capacity < 1:
            raise UserError(f"KVCache: a capacity of {capacity} has no room; give 1 or more")
        if blocks is None:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                blocks = [build("block", config.block, config, layer) for layer in range(config.n_layer)]
        self.layers = [block.make_cache(batch_size, capacity, dtype, torch.device(device)) for block in blocks]  # type: ignore[operator]
        self.document: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """How many tokens have been read, whether or not their keys are still stored."""
        return self.layers[-1].length

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values of all layers occupy."""
        return sum(layer.nbytes for layer in self.layers)
