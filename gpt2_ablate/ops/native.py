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
            _call(*compiler, "-O3", "-march=native", "-fopenmp", "-fPIC", "-c", FOLDER / f"{name}.c", "-o", unlinked)
            _call(*compiler, "-shared", unlinked, "-o", shared)
            return ctypes.CDLL(str(shared))
    except (OSError, subprocess.SubprocessError):
        return None


@torch.compiler.assume_constant_result
def is_available(name: str) -> bool:
    """Whether `name`.c can be had here."""
    return library(name) is not None


def is_plain(tensor: Tensor) -> bool:
    """Whether it lies in this process's memory, for C to read."""
    return tensor.is_cpu and type(tensor.data) is Tensor


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
