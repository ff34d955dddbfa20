"""One matrix at both ends of the model: the rows that tokens look up, and the head (Press and Wolf 1608.05859)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def tied(weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, T, C] of weight [V, C] for ids [B, T], and the weight for the head: of both uses, one gradient.

    Autograd would make one of [V, C] for either and add them up, though nearly all rows of the one are zero. Here the rows' is
    added into the head's, which therefore has to be nobody else's: give the head to one product and to nothing else.
    """
    return _Tied.apply(weight, ids)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor, of_weight: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        ids, rows = ids.flatten(), of_rows.flatten(0, -2).to(of_weight.dtype)
        of_weight = of_weight.contiguous()
        # Whichever adds the rows of a token in the same order every time.
        if of_weight.is_cuda:
            return of_weight.index_put_((ids,), rows, accumulate=True), None
        return of_weight.index_add_(0, ids, rows), None
