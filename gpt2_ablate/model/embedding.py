"""The vocabulary at both ends of the model: token ids in, logits and losses out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.ops.cross_entropy import chunked_cross_entropy, chunked_token_losses, linear_cross_entropy, token_losses
from gpt2_ablate.ops.embedding import tied_embedding
from gpt2_ablate.ops.linear import INIT_STD, linear, normal_


class Vocabulary(nn.Module):
    """Base of the `embedding` parts; built as `cls(config, **options)`.

    A part has to say `forward` and `logits`. Everything that trains, scores or samples goes through these methods, and the
    losses follow from the logits.
    """

    def forward(self, ids: Tensor, context: ForwardContext) -> Tensor:
        """Token ids [B, T] -> [B, T, C]."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., C] -> [..., V]."""
        raise NotImplementedError

    def loss(self, hidden: Tensor, targets: Tensor, context: ForwardContext | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets [B, T] given hidden [B, T, C]; targets of -100 do not count.

        Args:
            context: of the forward pass that hidden comes from.
        """
        return chunked_cross_entropy(self.logits, hidden.flatten(0, -2), targets.flatten())

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of each of targets [...] given hidden [..., C], fp32; 0 where the target is -100."""
        return chunked_token_losses(self.logits, hidden.flatten(0, -2), targets.flatten()).view_as(targets)


class TiedEmbedding(Vocabulary):
    """GPT-2's: one matrix [V, C] embeds tokens and, transposed, is the head (Press and Wolf 1608.05859)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))

    def reset_parameters(self) -> None:
        normal_(self.weight, INIT_STD)

    def forward(self, ids: Tensor, context: ForwardContext) -> Tensor:
        x, context.shared["head"] = tied_embedding(self.weight, ids)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight)

    def loss(self, hidden: Tensor, targets: Tensor, context: ForwardContext | None = None) -> Tensor:
        if not self._has_plain_logits:
            return super().loss(hidden, targets, context)
        head = self.weight if context is None else context.shared.pop("head", self.weight)  # for one product only
        return linear_cross_entropy(hidden.flatten(0, -2), head, targets.flatten())

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if not self._has_plain_logits:
            return super().token_losses(hidden, targets)
        return token_losses(hidden.flatten(0, -2), self.weight, targets.flatten()).view_as(targets)

    @property
    def _has_plain_logits(self) -> bool:
        """Whether the losses below may skip `logits`: not where a subclass has other logits."""
        return type(self).logits is TiedEmbedding.logits
