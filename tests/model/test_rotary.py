"""Rotary positions: a rotation whose angle is the position, so that inner products know distances only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ablate.model.rotary import RotaryPositions

from .tiny import close, each_kv_heads, each_window, few, tiny, tiny_model, tokens

D = 8
positions = st.integers(0, 150)


def rotary(reach=32, **changes):
    part = RotaryPositions(tiny(positions="rotary", **changes))
    part.reach(reach)
    return part


def heads(T, seed=0, D=D):
    return torch.randn(2, 4, T, D, generator=torch.Generator().manual_seed(seed))


def exact(x, where):
    """Su et al., equation 13: pair i as a complex number, times exp(sqrt(-1) * position * 10000 ** (-2i / D))."""
    half = x.shape[-1] // 2
    angles = where[:, None].double() * 10_000.0 ** (-2 * torch.arange(half).double() / x.shape[-1])
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


@few
@given(m=positions, n=positions, shift=positions, seed=st.integers(0, 99))
def test_inner_products_depend_on_the_distance_only(m, n, shift, seed):
    part = rotary(400)
    q, k = heads(1, seed), heads(1, seed + 1000)

    def product(i, j):
        return (part.rotate(q, torch.tensor([i])) * part.rotate(k, torch.tensor([j]))).sum(-1)

    close(product(m + shift, n + shift), product(m, n), 2e-4)
    if m != n:
        assert (product(m, n) - product(n, n)).abs().max() > 1e-3


@few
@given(m=positions, seed=st.integers(0, 99))
def test_a_rotation_keeps_the_norm(m, seed):
    x = heads(1, seed)
    turned = rotary(400).rotate(x, torch.tensor([m]))
    close(turned.norm(dim=-1), x.norm(dim=-1))
    assert m == 0 or (turned - x).abs().max() > 1e-2


def test_position_zero_is_not_turned():
    x = heads(1)
    assert torch.equal(rotary().rotate(x, torch.tensor([0])), x)


@pytest.mark.parametrize("width", [2, 8, 64])
def test_rotation_is_the_papers(width):
    where = torch.arange(300)
    x = heads(300, D=width)
    turned = rotary(300, n_embd=4 * width).rotate(x, where)
    assert (turned - exact(x, where)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "starcoder2"])
def test_rotation_is_that_of_transformers(name):
    import transformers

    if name == "llama":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4)
    else:
        from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2RotaryEmbedding as Rotary
        from transformers.models.starcoder2.modeling_starcoder2 import apply_rotary_pos_emb

        config = transformers.Starcoder2Config(hidden_size=32, num_attention_heads=4)
    q, k, where = heads(32), heads(32, seed=1), torch.arange(32)
    theirs = apply_rotary_pos_emb(q, k, *Rotary(config)(q, where[None]))
    part = rotary()
    close([part.rotate(q, where), part.rotate(k, where)], list(theirs), 1e-6)


@pytest.mark.parametrize("length", [32, 1100])
def test_angles_are_fp32_under_bf16_autocast(length):
    """Made, extended and used under autocast; a bf16 angle would be off by radians at position 1000."""
    x, where = heads(10), torch.arange(length - 10, length)
    with torch.autocast("cpu", torch.bfloat16):
        part = rotary(length)
        turned = part.rotate(x, where)
        half = part.rotate(x.bfloat16(), where)
    assert turned.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert (turned - exact(x, where)).abs().max() < 5e-4
    assert (half - exact(x, where)).abs().max() < 0.04


@each_kv_heads
@each_window
def test_a_text_may_be_longer_than_the_block(n_kv_head, window):
    """A rotary model is the same function whatever block size it was built with."""
    short = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=window, block_size=8)
    long = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=window, block_size=128, seed=1)
    long.load_state_dict(short.state_dict())
    text = tokens(2, 100)
    assert torch.equal(short(text), long(text))


def test_rotary_has_no_weights_and_leaves_no_trace_in_a_checkpoint():
    part = rotary()
    assert not list(part.parameters())
    assert not part.state_dict()


def test_generating_past_the_block_leaves_a_trainable_model():
    from gpt2_ablate.model import generate

    model = tiny_model(positions="rotary", block_size=8)
    generate(model, tokens(1, 5), 20)
    text = tokens(2, 20)
    model.loss(text, text).backward()
    assert all(p.grad is not None for p in model.parameters())
