"""This machine: its best precision, how fast it multiplies matrices, how much memory is in use."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt in glibc's malloc.h


def auto_precision() -> str:
    """Lightning's name for the best precision here: bf16-mixed if the hardware computes in bf16, else 32-true."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported()  # torch before 2.13


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The context that Lightning runs a step in under this precision."""
    if precision == "bf16-mixed":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@functools.cache
def matmul_peak(precision: str, device: torch.device) -> float:
    """FLOP/s of a large square matrix product, median of a few: the peak that a training step is compared with."""
    a = random_square(torch.bfloat16 if precision == "bf16-mixed" else torch.float32, device)
    seconds = []
    for _ in range(8):
        synchronise(device)
        start = time.perf_counter()
        a @ a
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * len(a) ** 3 / statistics.median(seconds[2:])


def random_square(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A random matrix [n, n], large enough that its product with itself runs at the device's peak."""
    n = 8192 if device.type == "cuda" else 1536
    generator = torch.Generator(device).manual_seed(0)  # the run's own random numbers must not change
    return torch.randn(n, n, device=device, generator=generator).to(dtype)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work, as has to be done before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process reuse the memory of freed tensors, if its C library is glibc; False restores (nearly) the default.

    By default glibc returns the free top of its heap to the kernel, which gives it back at the next step page by page, zeroed.
    """
    _mallopt(M_MMAP_THRESHOLD, 2**25)  # the highest that glibc's dynamic default reaches
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**26)


def release_freed_memory() -> None:
    """Let glibc map and unmap each large tensor by itself: slow, but the peak of the process is then that of the tensors in
    use, without the fragmentation of a heap, which differs from run to run."""
    _mallopt(M_MMAP_THRESHOLD, 2**16)


def _mallopt(name: int, value: int) -> None:
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(name, value)


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of torch's tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def current_bytes(device: torch.device) -> int:
    """Memory in use now, counted like `peak_bytes`."""
    import psutil

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def describe() -> dict[str, object]:
    """Hardware, cores and threads, for a run's record."""
    cuda = torch.cuda.is_available()
    return {
        "hardware": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "device": "cuda" if cuda else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
