"""The vocabulary at both ends of the model: token ids in, logits and losses out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.ops.cross_entropy import chunked_cross_entropy, chunked_token_losses, linear_cross_entropy, token_losses
from gpt2_ablate.ops.embedding import tied_embedding
from gpt2_ablate.ops.linear import INIT_STD, linear, normal_


class TiedEmbedding(nn.Module):
    """GPT-2's: one matrix [V, C] embeds tokens and, transposed, is the head (Press and Wolf 1608.05859).

    It is the base of other `embedding` parts, which are built as `cls(config, **options)`. Everything that trains, scores or
    samples goes through its methods, and the losses follow from `head` and `logits`: they never hold all logits.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))

    def reset_parameters(self) -> None:
        normal_(self.weight, INIT_STD)

    def forward(self, ids: Tensor, context: ForwardContext) -> Tensor:
        """Token ids [B, T] -> [B, T, C]."""
        x, context.shared["head"] = tied_embedding(self.weight, ids)
        return x

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[..., C] -> what is multiplied to logits: [..., E] and a matrix [V, E]."""
        return hidden, self.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., C] -> [..., V]."""
        return linear(*self.head(hidden))

    def loss(self, hidden: Tensor, targets: Tensor, context: ForwardContext | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets [B, T] given hidden [B, T, C]; targets of -100 do not count.

        Args:
            context: of the forward pass that hidden comes from.
        """
        hidden, targets = hidden.flatten(0, -2), targets.flatten()
        if not self._has_plain_logits:
            return chunked_cross_entropy(self.logits, hidden, targets, list(self.parameters()))
        hidden, weight = self.head(hidden)
        if weight is self.weight and context is not None:
            weight = context.shared.pop("head", weight)  # for one product only
        return linear_cross_entropy(hidden, weight, targets)

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of each of targets [...] given hidden [..., C], fp32; 0 where the target is -100."""
        flat, of = hidden.flatten(0, -2), targets.flatten()
        if not self._has_plain_logits:
            return chunked_token_losses(self.logits, flat, of).view_as(targets)
        return token_losses(*self.head(flat), of).view_as(targets)

    @property
    def _has_plain_logits(self) -> bool:
        """Whether they are the product that `head` says: not where a subclass has other logits."""
        return type(self).logits is TiedEmbedding.logits
