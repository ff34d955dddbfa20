"""Products of a matrix with a few vectors (GEMV) on a CPU, as fast as memory can be read.

Generating a token reads every weight once and does little else. torch's product with one vector reads at a third to a half of
the memory's bandwidth, oneDNN's at two thirds; the few lines of C beside this file reach it. They are compiled at first use, in
a third of a second; where there is no compiler, torch's product serves.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gpt2_ablate.ops import native

VECTORS = 4  # at most: what gemv.c can do
BYTES = 2**25  # of weights, at least; what a CPU's cache holds is not read from memory
TOKENS = 16  # to generate, at least; compiling takes as long as these

_enabled = 0  # how many `fast_gemv` are open


def is_profitable(model: nn.Module, batch_size: int, tokens: int) -> bool:
    """Whether `fast_gemv` pays for generating `tokens` tokens of `batch_size` sequences, and can be had here."""
    weight = next(model.parameters())
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_autocast_enabled("cpu")
        and batch_size <= VECTORS
        and tokens >= TOKENS
        and sum(p.nbytes for p in model.parameters()) >= BYTES
        and bool(_compiled())
    )


@contextmanager
def fast_gemv() -> Iterator[None]:
    """Within, `gpt2_ablate.ops.linear.linear` computes what it can by gemv.c."""
    global _enabled
    _enabled += 1
    try:
        yield
    finally:
        _enabled -= 1


def is_enabled() -> bool:
    return _enabled > 0 and not torch.is_grad_enabled()


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """x [..., K] times weight [N, K], plus bias [N] -> [..., N]; None where gemv.c cannot compute it."""
    run = _compiled().get(x.dtype)
    x, (N, K) = x.contiguous(), weight.shape
    fits = x.shape[-1] == K and x.numel() <= VECTORS * K
    if run is None or not fits or not all(_is_plain(t, x.dtype) for t in (x, weight, bias) if t is not None):
        return None
    wide, y = x.float(), x.new_empty(*x.shape[:-1], N)
    b = None if bias is None else bias.data_ptr()
    run(wide.data_ptr(), weight.data_ptr(), b, y.data_ptr(), y.numel() // N, N, K)
    return y


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether C can read it."""
    return tensor.dtype == dtype and tensor.is_contiguous() and native.is_available("gemv", tensor)


@functools.cache
def _compiled() -> dict[torch.dtype, Callable[..., None]]:
    """The functions of gemv.c; none where it cannot be compiled."""
    library = native.library("gemv")
    if library is None:
        return {}
    functions: dict[torch.dtype, Callable[..., None]] = {
        torch.float32: library.gemv_float32,
        torch.bfloat16: library.gemv_bfloat16,
    }
    for function in functions.values():
        function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3, None  # type: ignore[attr-defined]
    return functions
