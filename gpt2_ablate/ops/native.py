"""The C beside this file, compiled at first use, for this very processor, by the machine's own C compiler (`cc`, or $CC)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.c; None where they cannot be compiled.

    What is compiled is kept below $XDG_CACHE_HOME or ~/.cache, for this source, compiler and processor. It is linked to no
    OpenMP, but finds the one that torch has loaded: its threads are theirs.
    """
    compiler = *shlex.split(os.environ.get("CC", "cc")), "-O3", "-march=native", "-fopenmp", "-fPIC"
    try:
        known = _run(*compiler, "-dM", "-E", "-x", "c", os.devnull)  # all that the compiler knows of itself and the processor
        sources = b"".join(path.read_bytes() for path in (FOLDER / f"{name}.c", *sorted(FOLDER.glob("*.h"))))
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gpt2-ablate" / "native"
        kept = cache / f"{name}-{hashlib.sha256(known + sources).hexdigest()}.so"
        if kept.exists():
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory() as folder:
            unlinked, shared = Path(folder, f"{name}.o"), Path(folder, f"{name}.so")
            _run(*compiler, "-c", FOLDER / f"{name}.c", "-o", unlinked)
            _run(*compiler[:-4], "-shared", unlinked, "-o", shared)
            loaded = ctypes.CDLL(str(shared))
            with contextlib.suppress(OSError):  # a home that cannot be written to
                cache.mkdir(parents=True, exist_ok=True)
                own = shutil.copy(shared, kept.with_suffix(f".{os.getpid()}"))
                os.replace(own, kept)
            return loaded
    except (OSError, subprocess.SubprocessError):
        return None


def is_available(name: str, *tensors: Tensor) -> bool:
    """Whether the functions of `name`.c can be had here, and can read these tensors. To torch.compile they would be opaque."""
    if torch.compiler.is_compiling() or not all(x.is_cpu and type(x) in (Tensor, nn.Parameter) for x in tensors):
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
    run = getattr(library(name), function)
    if run.argtypes is None:
        run.argtypes, run.restype = [ctypes.c_int64] * len(arguments), None  # pointers are as wide
    run(*map(_plain, arguments))


def _plain(argument: Tensor | ctypes.Structure | int | None) -> int:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return ctypes.addressof(argument) if isinstance(argument, ctypes.Structure) else argument or 0


def _run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
