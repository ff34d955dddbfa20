"""Loss on a held-out text, in consecutive windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from gpt2_ablate.data.batches import IGNORED, EvaluationBatches, number_documents
from gpt2_ablate.data.tokenizer import end_of_text_id
from gpt2_ablate.model import GPT2


@dataclass(frozen=True)
class Score:
    """Loss on a text, read in windows of T tokens."""

    losses: np.ndarray  # [windows, T], cross-entropy in nats of the token after each; not a number where there is none

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return float(np.nanmean(self.losses))

    @property
    def by_position(self) -> np.ndarray:
        """[T], the same for each position in the context: entry t is the mean loss of predictions from t + 1 tokens."""
        return np.nanmean(self.losses, axis=0)

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss in a unit that compares across tokenizers."""
        return self.loss / math.log(2) / bytes_per_token


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats; infinite if that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


@contextmanager
def evaluation_mode(model: GPT2) -> Iterator[None]:
    """Without dropout and gradients; afterwards the model is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def score(model: GPT2, ids: np.ndarray, block_size: int, batch_size: int = 8, separate_documents: bool = False) -> Score:
    """Score token ids [N] in consecutive windows of `block_size`; every token but the first counts once.

    Args:
        separate_documents: whether tokens attend only to their own document.

    Raises:
        UserError: the text is shorter than a window, or the window longer than the model can encode.
    """
    batches, end = EvaluationBatches(ids, block_size, batch_size), end_of_text_id(model.config.vocab_size)
    losses = []
    with evaluation_mode(model):
        for n in range(len(batches)):
            inputs, targets = (x.to(model.device) for x in batches[n])
            hidden = model.hidden(inputs, documents=number_documents(inputs, end) if separate_documents else None)
            found = model.embedding.token_losses(hidden, targets).double().masked_fill(targets == IGNORED, math.nan)
            losses.append(found.cpu().numpy())
    return Score(np.concatenate(losses))
