"""The optimizer, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

FINAL_SHARE = 0.1  # of the highest rate, at the last step (Brown et al. 2005.14165, appendix B)


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> AdamW:
    """AdamW that decays matrices and embeddings, but no biases and norms (Brown et al. 2005.14165, appendix B)."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def warmup_cosine(step: int, warmup_steps: int, max_steps: int) -> float:
    """The share of the highest learning rate at a step: linear warm-up, then half a cosine down to a tenth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps)
    return FINAL_SHARE + (1 - FINAL_SHARE) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))
