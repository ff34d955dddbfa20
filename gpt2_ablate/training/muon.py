"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A matrix of gradients is nearly of low rank: few directions take nearly all of a step. With all singular values set to one every
direction is learned alike. Attention's queries and keys are a matrix for each head, because heads learn apart: with all heads
as one matrix, as `torch.optim.Muon` has them, the loudest heads take the step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

MOMENTUM = 0.95
# Of the polynomials a x + b x^3 + c x^5, one after the other, which move singular values towards one: each is the best for what
# the one before it leaves of [0.01, 1] (Amsel et al. 2505.16932, section 3). Three do what takes Jordan's fixed one five times.
COEFFICIENTS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
ADAMW_RMS = 0.2  # of AdamW's steps, about; so that both take one learning rate (Liu et al. 2502.16982, section 2.2)


class Muon(Optimizer):
    """Muon for the matrices of a model, AdamW for its other parameters.

    Args:
        matrices: each with the rows of the matrices that it is made of, one below the other; None: it is one matrix.
        others: the optimizer of all other parameters; from here on it is a part of this one.
        learning_rate: of matrices too.
        weight_decay: of matrices.
    """

    def __init__(
        self, matrices: dict[nn.Parameter, tuple[int, ...] | None], others: AdamW, learning_rate: float, weight_decay: float
    ):
        self.rows, self.others = matrices, others
        super().__init__([{"params": list(matrices)}], {"lr": learning_rate, "weight_decay": weight_decay})
        self.param_groups += others.param_groups
        others.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.others.param_groups, self.others.state = self.param_groups[1:], self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One step of all parameters; returns the closure's loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        group = self.param_groups[0]
        directions = {p: self._direction(p) for p in group["params"] if p.grad is not None}
        for p in directions:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        for weights, updates in _of_one_shape(directions, self.rows):
            rate = group["lr"] * ADAMW_RMS * math.sqrt(max(updates[0].shape))
            for weight, update in zip(weights, orthogonalise(torch.stack(updates)), strict=True):
                weight.sub_(update, alpha=rate)
        self.others.step()
        return loss

    def _direction(self, p: nn.Parameter) -> Tensor:
        """The gradient, with Nesterov's momentum."""
        assert p.grad is not None
        state = self.state[p]
        average = state.setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(average, MOMENTUM)


def _of_one_shape(
    directions: dict[nn.Parameter, Tensor], rows: dict[nn.Parameter, tuple[int, ...] | None]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Matrices and their directions, those of one shape together: a batched product takes a fraction of the time of many."""
    found: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for p, direction in directions.items():
        sizes = rows[p] or (len(p),)
        for weight, update in zip(p.split(sizes), direction.split(sizes), strict=True):
            weights, updates = found[weight.shape]
            weights.append(weight)
            updates.append(update.bfloat16())
    yield from found.values()


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices [n, R, K] with all their singular values moved to about one, by a Newton-Schulz iteration in their precision.

    Those of a hundredth of the matrix's norm (the root of the sum of all their squares) or more end between 0.7 and 1.3.
    """
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32).clamp(min=1e-7).to(x.dtype)
    for a, b, c in COEFFICIENTS:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
