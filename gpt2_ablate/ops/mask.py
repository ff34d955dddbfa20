"""Which keys a query sees: the one definition that every attention kernel implements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ScoreBias = Callable[[Tensor, Tensor], Tensor] | None

MASKED_POSITION = torch.iinfo(torch.long).max  # the position of a key that no query may see


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """What the queries of one layer see. The default is full causal attention.

    Args:
        window: W, how many keys a query sees, itself included (Beltagy et al. 2004.05150, section 3.1); None: all.
        dilation: d, how far apart they are, one number for each query head or one for all.
        global_tokens: positions that see all before them and that all after them see, whatever the window.
        document_starts: [B, T], the position at which the document of each token starts; earlier keys are masked, and
            `global_tokens` count from there. None: every row is one document.
        score_bias: added to the scores, see `gpt2_ablate.model.positions.Positions.score_bias`.
    """

    window: int | None = None
    dilation: int | tuple[int, ...] = 1
    global_tokens: tuple[int, ...] = ()
    document_starts: Tensor | None = None
    score_bias: ScoreBias = None

    def is_full(self, T: int) -> bool:
        """Whether this is plain causal attention for T tokens."""
        covers = self.window is None or (self.window >= T and self.dilations == {1})
        return covers and self.document_starts is None and self.score_bias is None

    @property
    def dilations(self) -> set[int]:
        return {self.dilation} if isinstance(self.dilation, int) else set(self.dilation)

    @property
    def span(self) -> int | None:
        """How many tokens the window of the most dilated head spans, the query's own included; None: all."""
        return None if self.window is None else (self.window - 1) * max(self.dilations) + 1

    def cache_size(self, length: int) -> int:
        """How many keys of `length` tokens a cache has to keep for all queries that may follow."""
        if self.span is None:
            return length
        # A global token has yet to see all that is before it, and is kept beside the window from then on.
        return min(length, max(self.span, *(position + 1 for position in self.global_tokens), 0) + len(self.global_tokens))

    def visible_pairs(self, T: int, n_head: int) -> int:
        """How many pairs of a query and a key `visible` allows, over n_head heads, among T tokens of one document."""
        if self.window is None:
            return n_head * T * (T + 1) // 2
        dilations = [self.dilation] * n_head if isinstance(self.dilation, int) else self.dilation
        return sum(n * self._window_pairs(T, d) for d, n in Counter(dilations).items())

    def _window_pairs(self, T: int, dilation: int) -> int:
        """Of one head: the keys of its window, and those that global tokens add."""
        assert self.window is not None
        i = torch.arange(T, device="cpu")
        keys = (i // dilation + 1).clamp(max=self.window)
        global_tokens = [position for position in self.global_tokens if position < T]
        for position in global_tokens:
            distance = i - position
            is_near = (distance < self.window * dilation) & (distance % dilation == 0)
            keys = keys + ((distance > 0) & ~is_near)
        for position in global_tokens:
            keys[position] = position + 1
        return int(keys.sum())

    def head_dilation(self, device: torch.device) -> int | Tensor:
        """One number where all heads have the same dilation, else [H]."""
        return torch.tensor(self.dilation, device=device) if len(self.dilations) > 1 else min(self.dilations)

    def visible(self, i: Tensor, j: Tensor, dilation: int | Tensor, start: int | Tensor = 0) -> Tensor:
        """Whether the query at position i sees the key at position j, elementwise over whatever shapes broadcast.

        Args:
            dilation: of the query's head.
            start: of the query's document; a key at an earlier position is masked.
        """
        past = (i >= j) & (j >= start)
        if self.window is None:
            return past
        distance = i - j
        near = distance < self.window * dilation
        if self.dilations != {1}:
            near = near & (distance % dilation == 0)
        for position in self.global_tokens:
            near = near | (i - start == position) | (j - start == position)
        return past & near
