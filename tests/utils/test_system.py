"""What this machine is, and what a record needs to know of it."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2_ablate.utils.system import auto_precision, autocast, describe, matmul_peak, synchronise

CPU = torch.device("cpu")


def test_the_best_precision_is_one_that_lightning_takes(tmp_path):
    assert auto_precision() in ("bf16-mixed", "32-true")
    assert auto_precision() == auto_precision()
    assert Trainer(precision=auto_precision(), logger=False, default_root_dir=tmp_path).precision == auto_precision()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_products_within_autocast_have_the_number_format(precision, dtype):
    a = torch.ones(4, 4)
    with autocast(precision, CPU):
        assert (a @ a).dtype == dtype
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16-mixed")
    assert (a @ a).dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@pytest.fixture
def measured_anew():
    matmul_peak.cache_clear()
    yield
    matmul_peak.cache_clear()


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_measuring_the_peak_leaves_random_numbers_alone(measured_anew, precision):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    peak = matmul_peak(precision, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e8 < peak < 1e16
    assert matmul_peak(precision, CPU) == peak  # measured once, so that shares of it compare within a process


class Products(TorchDispatchMode):
    """Keeps the FLOPs and the dtype of every matrix product."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.found.append((2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1], args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_the_peak_is_the_operations_of_a_product_over_its_seconds(measured_anew, monkeypatch, precision, dtype):
    """By a clock that moves on two seconds whenever it is read."""
    seconds = itertools.count(0, 2)
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    with Products() as products:
        peak = matmul_peak(precision, CPU)
    assert {(2 * peak, dtype)} == set(products.found)


MEMORY = """
import torch
from gpt2_ablate.utils.system import current_bytes, peak_bytes
cpu = torch.device("cpu")
before = current_bytes(cpu)
large = torch.ones(50_000_000)
during = current_bytes(cpu)
del large
print(before, during, peak_bytes(cpu))
"""


def test_memory_in_use_is_seen_and_the_most_so_far_is_kept():
    """200 MB, in a process of its own: in this one they may fit into what earlier tests have freed."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, during, peak = map(int, run.stdout.split())
    assert 150e6 < during - before < 400e6
    assert during - 50e6 < peak < 100e9


def test_synchronise_is_harmless_on_a_cpu():
    assert synchronise(CPU) is None


def test_the_description_has_what_a_record_needs():
    found = describe()
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found["cores"] == os.cpu_count() and found["threads"] == torch.get_num_threads()
    for name in ("hardware", "platform"):
        assert isinstance(found[name], str) and found[name].strip()


def test_threads_are_those_in_use():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert describe()["threads"] == threads + 1
    finally:
        torch.set_num_threads(threads)
