"""Which keys a query sees: the one definition that every attention kernel is an implementation of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_ablate.model.config import GPT2Config

ScoreBias = Callable[[Tensor, Tensor], Tensor] | None

NEVER = torch.iinfo(torch.long).max  # the place of a key that no query comes after


@dataclass(frozen=True, eq=False)
class Pattern:
    """What one layer's queries see. The default is all of the past.

    Args:
        window: W, how many keys a query sees, itself included (Beltagy et al. 2004.05150, section 3.1); None: all.
        dilation: d, how far apart they lie, one number for each query head or one for all.
        global_tokens: places in the text that see all before them and that all after them see, whatever the window.
        starts: [B, T], at which of the T tokens each token's document starts; earlier ones are hidden from it, and
            `global_tokens` count from there. None: at token 0.
        score_bias: what is added to the scores, see `Positions.score_bias`.
    """

    window: int | None = None
    dilation: int | tuple[int, ...] = 1
    global_tokens: tuple[int, ...] = ()
    starts: Tensor | None = None
    score_bias: ScoreBias = None

    @classmethod
    def of(cls, config: GPT2Config) -> Pattern:
        """That of a layer, from one of `GPT2Config.layers` (or a config whose layers are alike)."""
        (layer,) = set(config.layers)
        return cls(layer.window, layer.dilation, layer.global_tokens)  # type: ignore[arg-type]

    def sees_all(self, T: int) -> bool:
        """Whether this is plain causal attention for a text of T tokens."""
        covers = self.window is None or (self.window >= T and self.dilations == {1})
        return covers and self.starts is None and self.score_bias is None

    @property
    def dilations(self) -> set[int]:
        return {self.dilation} if isinstance(self.dilation, int) else set(self.dilation)

    @property
    def reach(self) -> int | None:
        """How many tokens the window of the most dilated head spans, the query's own included; None: all there are."""
        return None if self.window is None else (self.window - 1) * max(self.dilations) + 1

    def held(self, length: int) -> int:
        """How many keys of a text of `length` tokens a cache has to hold for all that may come later."""
        if self.reach is None:
            return length
        # A global token has yet to see all that is before it, and is kept beside the window from then on.
        return min(length, max(self.reach, *(place + 1 for place in self.global_tokens), 0) + len(self.global_tokens))

    def dilation_of_heads(self, device: torch.device) -> int | Tensor:
        """One number where all heads have the same, else [H]."""
        return torch.tensor(self.dilation, device=device) if len(self.dilations) > 1 else min(self.dilations)

    def visible(self, i: Tensor, j: Tensor, dilation: int | Tensor, start: int | Tensor = 0) -> Tensor:
        """Whether the query at place i sees the key at place j, element by element of whatever shapes broadcast.

        Args:
            dilation: of the query's head.
            start: of the query's document; a key at a place before it is hidden.
        """
        past = (i >= j) & (j >= start)
        if self.window is None:
            return past
        distance = i - j
        near = distance < self.window * dilation
        if self.dilations != {1}:
            near = near & (distance % dilation == 0)
        for place in self.global_tokens:
            near = near | (i - start == place) | (j - start == place)
        return past & near
