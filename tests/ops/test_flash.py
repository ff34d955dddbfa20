"""flash.c computes attention: forward and backward, to bf16's precision, on any number of threads, within its tensors."""

import ctypes
import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ablate.ops import flash, native
from gpt2_ablate.ops.attention import attention
from gpt2_ablate.ops.eager import eager_attention
from gpt2_ablate.ops.mask import AttentionMask

from ..model.tiny import few, tiny_model, tokens


@pytest.fixture(scope="module")
def compiled():
    if not native.is_available("flash"):
        pytest.skip("there is no C compiler here")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def qkv(B, H, G, T, D, Dv, seed=0):
    """As the model has them: views of one product, [B, heads, T, D], which lies in memory as [B, T, all heads' channels]."""
    torch.manual_seed(seed)
    widths = H * D, G * D, G * Dv
    parts = (2 * torch.randn(B, T, sum(widths))).bfloat16().split(widths, dim=-1)
    return [x.unflatten(-1, (-1, d)).transpose(1, 2).requires_grad_() for x, d in zip(parts, (D, D, Dv), strict=True)]


def with_gradients(y, inputs):
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return [y, *torch.autograd.grad(y, inputs, cotangent.to(y.dtype))]


def run(inputs, window=None):
    return with_gradients(flash.flash_attention(*inputs, window), inputs)


def assert_right(inputs, window):
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(eager_attention(*exact, AttentionMask(window)), exact)
    for ours, theirs in zip(run(inputs, window), expected, strict=True):
        assert ours.dtype == torch.bfloat16 and ours.shape == theirs.shape
        assert (ours - theirs).norm() < 0.02 * theirs.norm() + 1e-3


@few
@given(
    B=st.integers(1, 2),
    G=st.integers(1, 3),
    R=st.integers(1, 4),
    T=st.integers(1, 200) | st.sampled_from([63, 64, 65, 128, 129]),
    D=st.sampled_from([8, 20, 32, 64, 80, 128]),
    Dv=st.sampled_from([8, 32, 33, 64, 128]),
    window=st.none() | st.integers(1, 200) | st.sampled_from([1, 63, 64, 65, 1000]),
)
def test_it_is_attention(B, G, R, T, D, Dv, window, compiled):
    assert_right(qkv(B, G * R, G, T, D, Dv), window)


@few
@given(T=st.integers(1, 100), window=st.none() | st.integers(1, 100))
def test_tensors_whose_vectors_are_not_in_one_piece(T, window, compiled):
    inputs = [x.detach().mT.contiguous().mT.requires_grad_() for x in qkv(2, 4, 2, T, 32, 32)]
    assert_right(inputs, window)
    assert_right([x.detach()[:1, :1].expand(2, 4, -1, -1).requires_grad_() for x in inputs], window)


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("G", [1, 4])
def test_the_number_of_threads_changes_no_bit(window, G, threads, compiled):
    inputs, found = qkv(2, 4, G, 300, 32, 32), []
    for count in (1, 2, 3):
        threads(count)
        found.append(run(inputs, window))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def in_front_of_a_wall(x):
    """A copy of x at the end of a piece of memory behind which nothing may be read."""
    page = mmap.PAGESIZE
    size = -(-x.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=size - x.nbytes)
    return copy.view(x.shape).copy_(x).requires_grad_()


@pytest.mark.parametrize(("T", "D"), [(1, 8), (63, 20), (64, 32), (100, 64)])
def test_nothing_is_read_beyond_the_tensors(T, D, compiled):
    """Where something is, this process dies."""
    inputs = [in_front_of_a_wall(x.detach()) for x in qkv(1, 2, 1, T, D, D)]
    assert_right(inputs, None)
    assert_right(inputs, 10)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_numbers_that_are_none_stay_in_their_text(wrong, compiled):
    inputs = [x.detach() for x in qkv(2, 4, 2, 130, 32, 32)]
    for x in inputs:
        expected = run([x.clone().requires_grad_() for x in inputs], 100)
        x[0, 0, 70, 3] = wrong
        for found, other in zip(run([x.clone().requires_grad_() for x in inputs], 100), expected, strict=True):
            assert torch.equal(found[1], other[1])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false", "true"])
def test_without_a_compiler_torch_attends(compiler, window, monkeypatch):
    model, text = tiny_model(positions="rotary", window=window, n_kv_head=1), tokens(2, 12)

    def gradients():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(text, text)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    expected = gradients()
    monkeypatch.setenv("CC", compiler)
    native.library.cache_clear()
    try:
        assert not native.is_available("flash")
        found = gradients()
    finally:
        native.library.cache_clear()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_the_models_attention_runs_it(monkeypatch, compiled):
    """Guards the tests above and the speed: full attention and plain windows do end there."""
    calls = []
    monkeypatch.setattr(flash, "flash_attention", lambda *x: calls.append(x[3:]) or x[0])
    q, k, v = qkv(1, 4, 4, 20, 32, 32)
    for mask in (AttentionMask(), AttentionMask(7), AttentionMask(7, dilation=2), AttentionMask(7, global_tokens=(0,))):
        attention(q, k, v, mask)
    assert calls == [(), (7,)]
