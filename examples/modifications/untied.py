"""Untied head: the logits have a matrix of their own (as in Touvron et al. 2302.13971 and most larger models)."""

from torch import Tensor

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.embedding import TiedEmbedding
from gpt2_ablate.ops.linear import Linear


class UntiedHead(TiedEmbedding):
    """Token embeddings as GPT-2's, and a head [V, C] beside them."""

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        self.output = Linear(config.n_embd, config.vocab_size, bias=False)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, self.output.weight
