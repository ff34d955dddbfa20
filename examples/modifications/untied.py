"""Untied head: the logits have a matrix of their own (as in Touvron et al. 2302.13971 and most larger models)."""

from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.embedding import TiedEmbedding
from gpt2_ablate.ops.cross_entropy import linear_cross_entropy
from gpt2_ablate.ops.linear import Linear


class UntiedHead(TiedEmbedding):
    """Token embeddings as GPT-2's, and a head [V, C] beside them."""

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def loss(self, hidden: Tensor, targets: Tensor, context: ForwardContext | None = None) -> Tensor:
        return linear_cross_entropy(hidden.flatten(0, -2), self.head.weight, targets.flatten())  # never holds all logits
