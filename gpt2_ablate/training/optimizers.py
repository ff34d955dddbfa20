"""Which optimizer trains which parameters, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

from gpt2_ablate.model import GPT2
from gpt2_ablate.training.muon import Muon

FINAL_SHARE = 0.1  # of the highest rate, at the last step (Brown et al. 2005.14165, appendix B)


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> AdamW:
    """AdamW that decays matrices and embeddings, but no biases and norms (Brown et al. 2005.14165, appendix B)."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def muon(model: GPT2, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> Muon:
    """Muon for the matrices of the blocks; AdamW for embeddings, positions, biases and norms."""
    matrices = {}
    for module in model.blocks.modules():
        for p in module.parameters(recurse=False):
            if p.ndim == 2:
                matrices[p] = getattr(module, "matrix_rows", None)
    others = adamw((p for p in model.parameters() if p not in matrices), learning_rate, weight_decay, betas)
    return Muon(matrices, others, learning_rate, weight_decay)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": lambda model, *settings: adamw(model.parameters(), *settings),
    "muon": muon,
}


def warmup_cosine(step: int, warmup_steps: int, max_steps: int) -> float:
    """The share of the highest learning rate at a step: linear warm-up, then half a cosine down to a tenth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps)
    return FINAL_SHARE + (1 - FINAL_SHARE) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))
