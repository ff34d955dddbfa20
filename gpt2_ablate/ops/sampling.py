"""Drawing a token from logits: temperature, the k likeliest, the nucleus (Holtzman et al. 1904.09751, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """How a token is drawn.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens only.
        top_p: draw only among the likeliest tokens that together have this probability, of those that top_k leaves.
        generator: source of randomness; torch's global one if None.
        vocab_size: draw among the ids below this one only: those above are padding, which no text has.

    Raises:
        UserError: an argument is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature: {self.temperature} is not a temperature; give 0 (greedy) or more, but no infinity")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k: {self.top_k} leaves no token to choose; give 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} is not a share of the probability; give a number above 0, up to 1")

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, V] -> one token id for each row [B]."""
        logits = logits[:, : self.vocab_size]
        if self.temperature == 0:
            return logits.argmax(-1)
        # Below the likeliest, so that hardly any temperature leaves that one alone; an fp32 zero or infinity would divide to NaN.
        fp32 = torch.finfo(torch.float32)
        scaled = (logits - logits.amax(-1, keepdim=True)) / min(max(self.temperature, fp32.tiny), fp32.max)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept = logits.topk(self.top_k).values[:, -1:]
            scaled = scaled.masked_fill(logits < kept, float("-inf"))
        probabilities = scaled.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            likeliest, tokens = probabilities.sort(-1, descending=True)
            # A token is left out if those before it have top_p together; the likeliest has none before it.
            left_out = likeliest.cumsum(-1) - likeliest >= self.top_p
            left_out[:, 0] = False  # also where top_p is zero in fp32
            probabilities = probabilities.scatter(-1, tokens, likeliest.masked_fill(left_out, 0.0))
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]
