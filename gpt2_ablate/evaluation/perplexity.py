"""How well a model predicts a text that it has never seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from gpt2_ablate.data.batches import IGNORED, EvaluationBatches, number_documents
from gpt2_ablate.model import GPT2
from gpt2_ablate.model.loss import token_losses


@dataclass(frozen=True)
class Score:
    """Loss on a text.

    Attributes:
        loss: mean cross-entropy in nats per token.
        by_position: the same for each place in the context, [T]: entry t is the loss of tokens predicted from t + 1.
    """

    loss: float
    by_position: np.ndarray

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss in a unit that compares across tokenizers."""
        return self.loss / math.log(2) / bytes_per_token


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats; infinite where that is more than a number can hold."""
    return math.exp(loss) if loss < 700 else math.inf


@torch.inference_mode()
def score(model: GPT2, ids: np.ndarray, block_size: int, batch_size: int = 8, separate_documents: bool = False) -> Score:
    """Score token ids [N] in consecutive windows of `block_size`; every token but the first counts once.

    Args:
        separate_documents: whether the documents of a window are hidden from each other.

    Raises:
        UserError: the text is shorter than a window, or the window longer than the model's positions.
    """
    device = model.embedding.weight.device
    total = torch.zeros(block_size, dtype=torch.float64, device=device)
    count = torch.zeros(block_size, dtype=torch.float64, device=device)
    batches = EvaluationBatches(ids, block_size, batch_size)
    was_training = model.training
    model.eval()
    try:
        for n in range(len(batches)):
            inputs, targets = (x.to(device) for x in batches[n])
            hidden = model.hidden(inputs, documents=number_documents(inputs) if separate_documents else None)
            losses = token_losses(hidden.flatten(0, 1), model.embedding.weight, targets.flatten())
            total += losses.view_as(targets).sum(0)
            count += (targets != IGNORED).sum(0)
    finally:
        model.train(was_training)
    return Score(float(total.sum() / count.sum()), (total / count.clamp(min=1)).cpu().numpy())
