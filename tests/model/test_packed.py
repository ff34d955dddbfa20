"""Packed weights make the same model, for as long as they are asked for."""

import pytest
import torch
from torch import nn

from gpt2_ablate.model import generate, packed, stream

from .test_generate import greedy
from .tiny import close, each_variant, tiny_model, tokens


@pytest.fixture
def always(monkeypatch):
    """Also the small models of these tests are packed."""
    monkeypatch.setattr(packed, "BYTES", 0)
    if not packed.worth_packing(tiny_model(), 1, 100):
        pytest.skip("this build of torch has no oneDNN")


def products(model):
    return [module.forward for module in model.modules() if type(module) is nn.Linear]


@each_variant
def test_packed_is_the_same_model(variant, always):
    model, text = tiny_model(**variant), tokens(2, 20)
    expected, ordinary = model(text), products(model)
    with torch.no_grad(), packed.packed(model):
        assert not any(a == b for a, b in zip(products(model), ordinary, strict=True))
        close(model(text), expected, 1e-5)
    assert products(model) == ordinary
    assert torch.equal(model(text), expected)


@each_variant
def test_generated_text_is_the_same(variant, always, monkeypatch):
    used, real = [], packed._product
    monkeypatch.setattr(packed, "_product", lambda *a: used.append(a) or real(*a))
    model = tiny_model(**variant)
    assert torch.equal(generate(model, tokens(3, 5), 20, temperature=0), greedy(model, tokens(3, 5), 20))
    assert len(used) == len(products(model)) + 1


def test_bf16_weights_are_packed_as_they_are(always):
    model, text = tiny_model().bfloat16(), tokens(2, 20)
    with torch.no_grad():
        expected = model(text)
        with packed.packed(model):
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


def test_two_streams_of_one_model_do_not_mix(always):
    model = tiny_model(positions="rotary")
    first, second = (stream(model, tokens(1, 5, seed), 20, temperature=0) for seed in (1, 2))
    pairs = list(zip(first, second, strict=True))
    for seed, found in zip((1, 2), zip(*pairs, strict=True), strict=True):
        assert torch.equal(torch.stack(found, dim=1), greedy(model, tokens(1, 5, seed), 20)[:, 5:])


@pytest.mark.parametrize(("rows", "new"), [(1, 3), (64, 100)])
def test_little_work_and_many_rows_are_not_worth_it(rows, new, always):
    assert not packed.worth_packing(tiny_model(), rows, new)


def test_small_models_and_autocast_are_not_worth_it():
    assert not packed.worth_packing(tiny_model(), 1, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert not packed.worth_packing(tiny_model(n_embd=256, n_layer=40), 1, 100)
