"""A model from tensors that are read one by one, holding hardly more memory than its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config


class _WithoutWeights(TorchFunctionMode):
    """`torch.empty`, which layers make their weights with, allocates nothing; tables are computed as ever."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def empty_model(config: GPT2Config) -> GPT2:
    """A model of that configuration whose weights have shapes but no memory, for `fill`."""
    with torch.random.fork_rng(devices=[]), _WithoutWeights():
        return GPT2(config)


def fill(model: GPT2, write: Callable[[str, Tensor], object]) -> GPT2:
    """The model itself, in evaluation mode, after `write(name, weight)` has written each weight's numbers, fp32, in place.

    The largest are written first: what reading them takes in passing is never on top of all the others.
    """
    for name, p in sorted(model.named_parameters(), key=lambda item: -item[1].numel()):
        weight = torch.empty(p.shape)
        write(name, weight)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(weight))
    return model.eval()


def check_numbers(tensor: Tensor, where: Path, name: str) -> Tensor:
    """The tensor itself, if it holds finite floating-point numbers.

    Raises:
        UserError: it holds others.
    """
    if not tensor.is_floating_point():
        raise UserError(f"{where}: {name}: holds {tensor.dtype}; weights have to be fp32, fp16 or bf16")
    low, high = tensor.aminmax()  # NaN if one number is; without a copy of the tensor
    if not (low.isfinite() and high.isfinite()):
        raise UserError(f"{where}: {name}: holds numbers that are not finite; the file is damaged, or training diverged")
    return tensor
