"""Linear layers that keep no second copy of their weights.

Under autocast a product's weights are copies in a narrower type, and autograd keeps those of all layers from the forward pass
to the backward pass: half as many bytes again as the weights. Making a copy anew takes a fortieth of the time of the layer's
three products (of 1,024 tokens, on a CPU).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt2_ablate.ops import gemv
from gpt2_ablate.ops.precision import autocast_dtype

INIT_STD = 0.02  # of GPT-2's matrices (the released code, model.py)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] times weight [N, K], plus bias [N] -> [..., N]. Under autocast there is no second derivative."""
    if gemv.is_enabled() and (y := gemv.gemv(x, weight, bias)) is not None:
        return y
    dtype = autocast_dtype(x)
    if dtype is not None and torch.is_grad_enabled():
        return _NarrowLinear.apply(x, weight, bias, dtype)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """[..., K] -> [..., N], as torch's; weights start at N(0, std), biases at zero.

    Args:
        matrix_rows: of the matrices that the weight is made of, one below the other, where it is not one: an optimizer may
            treat each as a matrix of its own.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        std: float = INIT_STD,
        matrix_rows: tuple[int, ...] | None = None,
    ):
        self.std, self.matrix_rows = std, matrix_rows
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        normal_(self.weight, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@torch.no_grad()
def normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill a tensor from N(0, std) by the generator of the CPU: the same numbers on every device, none on meta."""
    if tensor.is_meta:
        return tensor
    return tensor.copy_(torch.empty(tensor.shape, device="cpu").normal_(0.0, std))


class _NarrowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        narrow = x.to(dtype)
        ctx.save_for_backward(narrow, weight)
        ctx.x_dtype = x.dtype
        return F.linear(narrow, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_grad_x, needs_grad_weight, needs_grad_bias, _ = ctx.needs_input_grad
        flat = dy.reshape(-1, dy.shape[-1])
        return (
            (dy @ weight.to(dy.dtype)).to(ctx.x_dtype) if needs_grad_x else None,
            (flat.T @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if needs_grad_weight else None,
            flat.sum(0, dtype=weight.dtype) if needs_grad_bias else None,
            None,
        )
