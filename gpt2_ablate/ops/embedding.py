"""One matrix at both ends of a model, and one gradient for both (Press and Wolf 1608.05859)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def tied_embedding(weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [B, T, C] of weight [V, C] for ids [B, T], and the weight for the head: of both uses, one gradient.

    Autograd would make one of [V, C] for either and add them, though the one is zero for nearly all tokens. Here it is added
    into the head's, which therefore must be nobody else's: give the head to one product, or to none.
    """
    if not torch.is_grad_enabled():
        return F.embedding(ids, weight), weight
    return _TiedEmbedding.apply(weight, ids)


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor | None, dweight: Tensor | None) -> tuple[Tensor | None, None]:
        (ids,) = ctx.saved_tensors
        if dx is None:
            return dweight, None
        dweight = dx.new_zeros(ctx.shape) if dweight is None else dweight.contiguous()
        ids, dx = ids.flatten(), dx.flatten(0, -2).to(dweight.dtype)
        # Whichever adds the vectors of a token in the same order every time.
        if dweight.is_cuda:
            return dweight.index_put_((ids,), dx, accumulate=True), None
        return dweight.index_add_(0, ids, dx), None
