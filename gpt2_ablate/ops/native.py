"""The C beside this file, compiled at first use, for this very processor, by the machine's own C compiler (`cc`, or $CC)."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.c; None where they cannot be compiled.

    They are linked to no OpenMP, but find the one that torch has loaded: its threads are theirs.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            unlinked, shared = Path(folder, f"{name}.o"), Path(folder, f"{name}.so")
            _run(*compiler, "-O3", "-march=native", "-fopenmp", "-fPIC", "-c", FOLDER / f"{name}.c", "-o", unlinked)
            _run(*compiler, "-shared", unlinked, "-o", shared)
            return ctypes.CDLL(str(shared))
    except (OSError, subprocess.SubprocessError):
        return None


def is_available(name: str, *tensors: Tensor) -> bool:
    """Whether the functions of `name`.c can be had here, and can read these tensors. To torch.compile they would be opaque."""
    if torch.compiler.is_compiling() or not all(x.is_cpu and type(x.data) is Tensor for x in tensors):
        return False
    return library(name) is not None


class View(ctypes.Structure):
    """A bf16 tensor [B, heads, T, width] whose vectors are each in one piece, as bf16.h has it."""

    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch_stride", "head_stride", "token_stride", "width")]

    @classmethod
    def of(cls, x: Tensor) -> View:
        return cls(x.data_ptr(), *x.stride()[:3], x.shape[3])


def call(name: str, function: str, *arguments: Tensor | ctypes.Structure | int | None) -> None:
    """Call a function of `name`.c, which takes pointers and 64-bit integers."""
    plain = [
        ctypes.c_void_p(x.data_ptr())
        if isinstance(x, Tensor)
        else ctypes.byref(x)
        if isinstance(x, ctypes.Structure)
        else None
        if x is None
        else ctypes.c_int64(x)
        for x in arguments
    ]
    getattr(library(name), function)(*plain)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
