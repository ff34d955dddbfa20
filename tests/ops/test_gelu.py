"""GELU by C is torch's."""

import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.ops import native
from gpt2_ablate.ops.gelu import gelu


def all_bf16():
    """Every finite number."""
    numbers = torch.arange(2**16).to(torch.int32).to(torch.uint16).view(torch.bfloat16)
    return numbers[numbers.isfinite()]


def test_every_number_is_right():
    x = all_bf16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = gelu(x), F.gelu(exact, approximate="tanh")
    found = (y, *torch.autograd.grad(y.sum(), x)), (expected, *torch.autograd.grad(expected.sum(), exact))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.bfloat16
        known = theirs.isfinite()
        torch.testing.assert_close(ours[known].double(), theirs[known], rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_torchs(dtype):
    x = torch.randn(3, 5, dtype=dtype)
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))


def test_numbers_that_are_not_in_one_piece():
    x = torch.randn(3000, 7).bfloat16().T.requires_grad_()
    y = gelu(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones(7, 1).bfloat16().expand_as(y))
    close = dict(rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(y, F.gelu(x, approximate="tanh"), **close)
    other = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(F.gelu(other, approximate="tanh").sum(), other)
    torch.testing.assert_close(dx.float(), expected, **close)


def test_without_a_compiler_it_is_torchs(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    x = torch.randn(3, 5).bfloat16()
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
