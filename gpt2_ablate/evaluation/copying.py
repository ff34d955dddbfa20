"""Copying: what a model makes of a text that stands in its context already.

Transformers learn it at once or not at all, in a phase change that splits a training into before and after (Olsson et al.
2209.11895, "In-context Learning and Induction Heads", argument 1).
"""

from __future__ import annotations

import numpy as np
import torch

from gpt2_ablate.evaluation.perplexity import evaluation_mode
from gpt2_ablate.model import GPT2

TEXTS = 8
SKIPPED = 16  # tokens at the start of each reading, which say where in the text one is


def copy_gain(model: GPT2, ids: np.ndarray, block_size: int) -> float:
    """Nats per token that a text is predicted better when it is read for the second time, half a context after the first.

    Args:
        ids: of the text that has the texts to be read, one after the other [N].
        block_size: T, the context; every text has T / 2 tokens.
    """
    half = block_size // 2
    skipped = min(SKIPPED, half // 2)
    count = max(1, min(TEXTS, len(ids) // half))
    texts = torch.from_numpy(ids[: count * half].astype(np.int64)).view(count, -1).to(model.device)
    tokens = torch.cat((texts, texts), dim=1)
    with evaluation_mode(model):
        losses = model.embedding.token_losses(model.hidden(tokens[:, :-1]), tokens[:, 1:]).double()
    first, second = losses[:, skipped : half - 1], losses[:, half + skipped :]
    return float(first.mean() - second.mean())
