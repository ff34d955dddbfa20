"""Products of a matrix with a few vectors (GEMV) on a CPU, as fast as memory can be read.

Generating a token reads every weight once and does little else. torch's product with one vector reads at a third to a half of
the memory's bandwidth, oneDNN's at two thirds; the few lines of C beside this file reach it. They are compiled at first use, in
a third of a second, by the machine's own C compiler; where there is none, torch's product serves.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("gemv.c")
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
        and _compiled() is not None
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
    run = (_compiled() or {}).get(x.dtype)
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
    return tensor.is_cpu and tensor.dtype == dtype and tensor.is_contiguous() and type(tensor.data) is Tensor


@functools.cache
def _compiled() -> dict[torch.dtype, Callable[..., None]] | None:
    """The functions of gemv.c, compiled for this very processor; None where that cannot be done.

    They are linked to no OpenMP, but find the one that torch has loaded: its threads are theirs.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            unlinked, library = Path(folder, "gemv.o"), Path(folder, "gemv.so")
            _call(*compiler, "-O3", "-march=native", "-fopenmp", "-fPIC", "-c", SOURCE, "-o", unlinked)
            _call(*compiler, "-shared", unlinked, "-o", library)
            loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
    functions: dict[torch.dtype, Callable[..., None]] = {
        torch.float32: loaded.gemv_float32,
        torch.bfloat16: loaded.gemv_bfloat16,
    }
    for function in functions.values():
        function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3, None  # type: ignore[attr-defined]
    return functions


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
