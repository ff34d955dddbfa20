"""Products of a few rows: C's are torch's, and make the same model, for as long as they are asked for."""

import copy
import os
import pickle
import shlex
import shutil

import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.model import generate, stream
from gpt2_ablate.ops import gemv, native
from gpt2_ablate.ops.linear import linear

from ..model.test_generate import greedy
from ..model.tiny import close, each_variant, tiny_model, tokens


@pytest.fixture
def small(monkeypatch):
    """Also for the small models of these tests."""
    monkeypatch.setattr(gemv, "BYTES", 0)


@pytest.fixture
def always(small):
    if not shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]):
        pytest.skip("there is no C compiler here")
    assert gemv.is_profitable(tiny_model(), 1, 100)


@pytest.fixture
def only_c(always, monkeypatch):
    """torch's products are out of reach."""

    def forbidden(*a):
        raise AssertionError("torch has multiplied")

    monkeypatch.setattr(F, "linear", forbidden)


def product(x, weight, bias=None):
    with torch.no_grad(), gemv.fast_gemv():
        return linear(x, weight, bias)


@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (7, 31), (64, 32), (129, 768), (50257, 33)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_products_are_right(M, N, K, bias, dtype, error, only_c):
    x, weight, b = (torch.randn(shape).to(dtype) for shape in ((M, 1, K), (N, K), (N,)))
    found = product(x, weight, b if bias else None)
    exact = x.double() @ weight.double().T + (b.double() if bias else 0)
    scale = x.double().abs() @ weight.double().abs().T + b.double().abs()  # of what is summed
    assert found.shape == (M, 1, N) and found.dtype == dtype
    assert ((found.double() - exact).abs() <= error * scale).all()


@pytest.mark.parametrize(
    "pair",
    [(float("nan"), 0), (float("inf"), 0), (float("-inf"), 1), (3.3e38, 3.3e38), (3.38e38, 1e36), (1, 2**-8), (1, 2**-9),
     (1.0078125, 2**-8), (-1, -(2**-8)), (1e-40, 0), (-0.0, -0.0)],
)  # fmt: skip
def test_bf16_is_rounded_as_torch_rounds(pair, only_c):
    weight = torch.tensor([pair], dtype=torch.bfloat16)
    found = product(torch.ones(1, 2, dtype=torch.bfloat16), weight)
    torch.testing.assert_close(found, weight.float().sum(-1, keepdim=True).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_rows_that_are_not_in_one_piece(always):
    x, weight = torch.randn(40, 3).T, torch.randn(50, 40)
    close(product(x, weight), x @ weight.T, 1e-4)
    some = torch.randn(1, 50)
    close(product(some, weight.T), some @ weight, 1e-4)


def test_what_c_cannot_do_torch_does_or_refuses(always):
    x, weight = torch.randn(5, 40), torch.randn(50, 40)
    close(product(x, weight), x @ weight.T, 1e-4)
    close(product(x[:1].double(), weight.double()), (x[:1] @ weight.T).double(), 1e-4)
    assert product(torch.randn(1, 40, device="meta"), weight).is_meta
    for wrong in (torch.randn(1, 39), torch.randn(1, 40).bfloat16()):
        with pytest.raises(RuntimeError):
            product(wrong, weight)


@each_variant
def test_it_is_the_same_model(variant, always, monkeypatch):
    model, text = tiny_model(**variant), tokens(2, 1)
    expected = model(text)
    with torch.no_grad(), gemv.fast_gemv(), monkeypatch.context() as patched:
        patched.delattr(F, "linear")
        close(model(text), expected, 1e-5)
    with torch.no_grad():
        assert torch.equal(model(text), expected)


@each_variant
def test_generated_text_is_the_same(variant, always):
    model = tiny_model(**variant)
    assert torch.equal(generate(model, tokens(3, 5), 20, temperature=0), greedy(model, tokens(3, 5), 20))


def test_a_bf16_model(always):
    model, text = tiny_model().bfloat16(), tokens(2, 1)
    with torch.no_grad():
        expected = model(text)
        with gemv.fast_gemv():
            found = model(text)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.1


def test_a_model_can_be_trained_while_its_stream_is_open(always):
    model, text = tiny_model(), tokens(2, 20)
    new = stream(model, text[:, :5], 20)
    next(new)
    model.loss(text, text).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert gemv._enabled == 1
    new.close()
    assert gemv._enabled == 0


def test_a_model_can_be_changed_while_its_stream_is_open(always):
    model = tiny_model()
    with torch.no_grad(), gemv.fast_gemv():
        model.load_state_dict(tiny_model(seed=3).state_dict())
        close(model(tokens(1, 1)), tiny_model(seed=3)(tokens(1, 1)), 1e-5)
        model.load_state_dict(tiny_model(seed=4).state_dict(), assign=True)
        close(model(tokens(1, 1)), tiny_model(seed=4)(tokens(1, 1)), 1e-5)
        model.double()
        close(model(tokens(1, 1)), tiny_model(seed=4).double()(tokens(1, 1)), 1e-12)
        model.bfloat16()
        close(model(tokens(1, 1)), tiny_model(seed=4).bfloat16()(tokens(1, 1)), 0.1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_while_a_stream_is_open_has_its_own_weights(copied, always):
    model, text = tiny_model(), tokens(1, 1)
    with torch.no_grad(), gemv.fast_gemv():
        other, expected = copied(model), model(text)
        for p in model.parameters():
            p.zero_()
        close(other(text), expected, 1e-5)


def test_two_streams_of_one_model_do_not_mix(always):
    model = tiny_model(positions="rotary")
    first, second = (stream(model, tokens(1, 5, seed), 20, temperature=0) for seed in (1, 2))
    pairs = list(zip(first, second, strict=True))
    for seed, found in zip((1, 2), zip(*pairs, strict=True), strict=True):
        assert torch.equal(torch.stack(found, dim=1), greedy(model, tokens(1, 5, seed), 20)[:, 5:])


@pytest.mark.parametrize(("texts", "new"), [(1, 3), (64, 100)])
def test_little_work_and_many_rows_are_not_profitable(texts, new, always):
    assert not gemv.is_profitable(tiny_model(), texts, new)


def test_autocast_is_not_profitable(always):
    with torch.autocast("cpu", torch.bfloat16):
        assert not gemv.is_profitable(tiny_model(), 1, 100)


def test_a_small_model_is_not_profitable():
    assert not gemv.is_profitable(tiny_model(), 1, 100)


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false", "true"])
def test_without_a_compiler_torch_multiplies(compiler, small, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    for cached in (gemv._compiled, native.library):
        cached.cache_clear()
    try:
        model = tiny_model()
        assert not gemv.is_profitable(model, 1, 100)
        assert torch.equal(generate(model, tokens(1, 5), 20, temperature=0), greedy(model, tokens(1, 5), 20))
    finally:
        for cached in (gemv._compiled, native.library):
            cached.cache_clear()
