"""Faster products of a few rows on a CPU.

Generating a token reads every weight once, so memory sets its speed. oneDNN's product of one row, with the weights laid out
for it beforehand as torch.compile does when it freezes a model, comes closer to it than torch's ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_ablate.model.gpt2 import GPT2

ROWS = 4  # texts continued together; with more, the ordinary product catches up
BYTES = 2**25  # of weights; what a CPU's cache holds is not read from memory
TOKENS = 16  # to generate; packing takes as long as three or four


def worth_packing(model: GPT2, rows: int, tokens: int) -> bool:
    """Whether packing pays for generating `tokens` tokens of `rows` texts, and can be done here."""
    weight = model.embedding.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_autocast_enabled("cpu")
        and rows <= ROWS
        and tokens >= TOKENS
        and sum(p.nbytes for p in model.parameters()) >= BYTES
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


@contextmanager
def packed(model: GPT2) -> Iterator[None]:
    """Within, all products of the model without gradients are made from packed copies of its weights."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    for linear in linears:
        linear.forward = _product(linear.weight, linear.bias)  # type: ignore[assignment, method-assign]
    model.head = _product(model.embedding.weight, None)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)
        model.__dict__.pop("head", None)


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)

    def product(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # somebody trains the model while its stream is open
            return F.linear(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, layout, bias, "none", [], "")

    return product
