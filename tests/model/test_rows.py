"""Products of a few rows: C's are torch's, and make the same model, for as long as they are asked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2_ablate.model import generate, rows, stream

from .test_generate import greedy
from .tiny import close, each_variant, tiny_model, tokens


@pytest.fixture
def always(monkeypatch):
    """Also for the small models of these tests."""
    monkeypatch.setattr(rows, "BYTES", 0)
    if not rows.worth_it(tiny_model(), 1, 100):
        pytest.skip("there is no C compiler here")


def products(model):
    return [module.forward for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (7, 31), (64, 32), (129, 768), (50257, 33)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_products_are_right(M, N, K, bias, dtype, error, always):
    x, weight, b = (torch.randn(shape).to(dtype) for shape in ((M, 1, K), (N, K), (N,)))
    with torch.no_grad():
        found = rows._product(weight, b if bias else None)(x)
    exact = F.linear(x.double(), weight.double(), b.double() if bias else None)
    scale = F.linear(x.double().abs(), weight.double().abs(), b.double().abs())  # of what is summed
    assert found.shape == (M, 1, N) and found.dtype == dtype
    assert ((found.double() - exact).abs() <= error * scale).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38, 1.0, 1.00390625, 1.01171875, 1e-40, 0.0])
def test_bf16_is_rounded_as_torch_rounds(value, always):
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    x = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    high = torch.tensor(value).bfloat16()
    weight = torch.stack((high, (torch.tensor(value) - high.float()).bfloat16()))[None]
    with torch.no_grad():
        found = rows._product(weight, None)(x)
    expected = (weight.float().sum(-1, keepdim=True)).bfloat16() * one
    assert torch.equal(found, expected) or (found.isnan().all() and expected.isnan().all())


def test_rows_that_are_not_in_one_piece(always):
    x, weight = torch.randn(40, 3).T, torch.randn(50, 40)
    with torch.no_grad():
        close(rows._product(weight, None)(x), x @ weight.T, 1e-4)
        close(rows._product(weight.T, None)(torch.randn(1, 50) * 0), torch.zeros(1, 40), 0)


@each_variant
def test_it_is_the_same_model(variant, always):
    model, text = tiny_model(**variant), tokens(2, 1)
    expected, ordinary = model(text), products(model)
    with torch.no_grad(), rows.fast_rows(model):
        assert not any(a == b for a, b in zip(products(model), ordinary, strict=True))
        close(model(text), expected, 1e-5)
    assert products(model) == ordinary
    assert torch.equal(model(text), expected)


@each_variant
def test_generated_text_is_the_same(variant, always, monkeypatch):
    used, real = [], rows._product
    monkeypatch.setattr(rows, "_product", lambda *a: used.append(a) or real(*a))
    model = tiny_model(**variant)
    assert torch.equal(generate(model, tokens(3, 5), 20, temperature=0), greedy(model, tokens(3, 5), 20))
    assert len(used) == len(products(model)) + 1


def test_a_bf16_model(always):
    model, text = tiny_model().bfloat16(), tokens(2, 1)
    with torch.no_grad():
        expected = model(text)
        with rows.fast_rows(model):
            found = model(text)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.1


def test_a_model_can_be_trained_while_its_stream_is_open(always):
    model, text = tiny_model(), tokens(2, 20)
    new = stream(model, text[:, :5], 20)
    next(new)
    model.loss(text, text).backward()
    assert all(p.grad is not None for p in model.parameters())
    new.close()
    assert [name for name in ("head", "forward") if name in vars(model)] == []


def test_a_model_can_be_changed_while_its_stream_is_open(always):
    model = tiny_model()
    with torch.no_grad(), rows.fast_rows(model):
        model.load_state_dict(tiny_model(seed=3).state_dict())
        close(model(tokens(1, 1)), tiny_model(seed=3)(tokens(1, 1)), 1e-5)
        model.double()
        close(model(tokens(1, 1)), tiny_model(seed=3).double()(tokens(1, 1)), 1e-12)
        model.bfloat16()
        close(model(tokens(1, 1)), tiny_model(seed=3).bfloat16()(tokens(1, 1)), 0.1)


def test_two_streams_of_one_model_do_not_mix(always):
    model = tiny_model(positions="rotary")
    first, second = (stream(model, tokens(1, 5, seed), 20, temperature=0) for seed in (1, 2))
    pairs = list(zip(first, second, strict=True))
    for seed, found in zip((1, 2), zip(*pairs, strict=True), strict=True):
        assert torch.equal(torch.stack(found, dim=1), greedy(model, tokens(1, 5, seed), 20)[:, 5:])


@pytest.mark.parametrize(("texts", "new"), [(1, 3), (64, 100)])
def test_little_work_and_many_rows_are_not_worth_it(texts, new, always):
    assert not rows.worth_it(tiny_model(), texts, new)


def test_small_models_and_autocast_are_not_worth_it():
    assert not rows.worth_it(tiny_model(), 1, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert not rows.worth_it(tiny_model(n_embd=256, n_layer=40), 1, 100)


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false", "true"])
def test_without_a_compiler_torch_multiplies(compiler, always, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    rows._compiled.cache_clear()
    try:
        model = tiny_model()
        assert not rows.worth_it(model, 1, 100)
        assert torch.equal(generate(model, tokens(1, 5), 20, temperature=0), greedy(model, tokens(1, 5), 20))
    finally:
        rows._compiled.cache_clear()
