"""Products of a few rows on a CPU, as fast as memory can be read.

Generating a token reads every weight once and does little else. torch's product of one row reads at a third to a half of the
speed that the memory has, oneDNN's at two thirds; the few lines of C beside this file reach it. They are compiled when they are
first wanted, a third of a second's work, by the machine's own C compiler; where there is none, torch's product serves.
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
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_ablate.model.gpt2 import GPT2
from gpt2_ablate.model.linear import Linear

SOURCE = Path(__file__).with_name("rows.c")
ROWS = 4  # texts continued together, at most: what rows.c knows
BYTES = 2**25  # of weights, at least; what a CPU's cache holds is not read from memory
TOKENS = 16  # to generate, at least; compiling takes as long as these


def worth_it(model: GPT2, rows: int, tokens: int) -> bool:
    """Whether `fast_rows` pays for generating `tokens` tokens of `rows` texts, and can be had here."""
    weight = model.embedding.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_autocast_enabled("cpu")
        and rows <= ROWS
        and tokens >= TOKENS
        and sum(p.nbytes for p in model.parameters()) >= BYTES
        and _compiled() is not None
    )


@contextmanager
def fast_rows(model: GPT2) -> Iterator[None]:
    """Within, all products of the model with four rows at most, without gradients, are made by rows.c."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and type(m) in (nn.Linear, Linear)]
    for linear in linears:
        linear.forward = functools.partial(_product, linear)  # type: ignore[method-assign]
    model.head = functools.partial(_product, model.embedding)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)
        model.__dict__.pop("head", None)


def _product(owner: nn.Linear | nn.Embedding, x: Tensor) -> Tensor:
    """x [..., K] times the owner's weight [N, K], plus its bias if it has one -> [..., N]."""
    weight, bias = owner.weight, getattr(owner, "bias", None)  # as they are now: they may have been changed since
    x, (N, K), run = x.contiguous(), weight.shape, (_compiled() or {}).get(x.dtype)
    read = [x, weight] if bias is None else [x, weight, bias]
    fits = x.shape[-1] == K and x.numel() <= ROWS * K
    if run is None or not fits or torch.is_grad_enabled() or not all(_is_plain(tensor, x.dtype) for tensor in read):
        return F.linear(x, weight, bias)
    wide, y = x.float(), x.new_empty(*x.shape[:-1], N)
    b = None if bias is None else bias.data_ptr()
    run(wide.data_ptr(), weight.data_ptr(), b, y.data_ptr(), y.numel() // N, N, K)
    return y


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether C can read it."""
    return tensor.is_cpu and tensor.dtype == dtype and tensor.is_contiguous() and type(tensor.data) is Tensor


@functools.cache
def _compiled() -> dict[torch.dtype, Callable[..., None]] | None:
    """The functions of rows.c, compiled for this very processor; None where that cannot be done.

    They are linked to no OpenMP, but find the one that torch has loaded: its threads are theirs.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            unlinked, library = Path(folder, "rows.o"), Path(folder, "rows.so")
            _call(*compiler, "-O3", "-march=native", "-fopenmp", "-fPIC", "-c", SOURCE, "-o", unlinked)
            _call(*compiler, "-shared", unlinked, "-o", library)
            loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
    functions: dict[torch.dtype, Callable[..., None]] = {
        torch.float32: loaded.rows_float32,
        torch.bfloat16: loaded.rows_bfloat16,
    }
    for function in functions.values():
        function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3, None  # type: ignore[attr-defined]
    return functions


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
