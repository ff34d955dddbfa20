"""What a model gains from its context."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt2_ablate.evaluation.perplexity import evaluation_mode
from gpt2_ablate.model import GPT2


def context_gain(model: GPT2, ids: np.ndarray, block_size: int, batch_size: int = 8) -> float:
    """Nats per token that the second half of a context is predicted better from all that stands before than from little.

    The same tokens are predicted twice: in windows of T tokens, and in pieces of T / 4 whose last T / 8 count. So the gain
    is one of the further context alone; the in-context learning score of Olsson et al. (2209.11895) compares late tokens with
    other, early ones.

    Args:
        ids: token ids [N], more than T.
        block_size: T.
    """
    count, counted = (len(ids) - 1) // block_size, max(1, block_size // 8)
    piece = min(block_size, 2 * counted)
    first = block_size // 2 - (piece - counted)  # where the first piece starts
    text = torch.from_numpy(ids[: count * block_size + 1].astype(np.int64)).to(model.device)
    windows, targets = text[:-1].view(count, -1), text[1:].view(count, -1)
    pieces = windows[:, first:].unfold(1, piece, counted).flatten(0, 1)
    near = _losses(model, pieces, targets[:, first:].unfold(1, piece, counted).flatten(0, 1), batch_size * 4)
    far = _losses(model, windows, targets, batch_size)[:, block_size // 2 :]
    near = near[:, -counted:].reshape(count, -1)
    return float((near - far[:, : near.shape[1]]).mean())


def _losses(model: GPT2, inputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    """Of each target [n, T], in nats."""
    with evaluation_mode(model):
        batches = zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
        return torch.cat([model.embedding.token_losses(model.hidden(x), y).double() for x, y in batches])
