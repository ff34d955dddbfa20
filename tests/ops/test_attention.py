"""The attention kernels equal the definition of attention, written out in `defined` below."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ablate.ops import attention as kernels
from gpt2_ablate.ops.mask import AttentionMask

from ..model.tiny import close, few, largest_allocation

HEADS = [(4, 4), (4, 2), (4, 1), (6, 3), (1, 1)]
lengths = st.integers(1, 26)
windows = st.none() | st.integers(1, 9) | st.just(100)
biases = st.booleans()


def alibi(queries, keys):
    """A score bias [H, Tq, Tk] for up to six heads; `attend` gets it through `bias_for`, which picks its H."""
    slopes = torch.tensor([1.0, 0.5, 0.25, 0.125, -0.25, 2.0], dtype=torch.float64)
    return slopes[:, None, None] * (keys[None, :] - queries[:, None])


def bias_for(H, wanted=True):
    return (lambda queries, keys: alibi(queries, keys)[:H]) if wanted else None


def defined(q, k, v, window=None, bias=None):
    """Attention by its definition: every score, keys and values repeated, hidden pairs at minus infinity."""
    H, T, D = q.shape[1:]
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    where = torch.arange(T)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / D**0.5
    if bias is not None:
        scores = scores + bias(where, where).to(q.dtype)
    distance = where[:, None] - where[None, :]
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def attention(q, k, v, window=None, bias=None, **options):
    return kernels.attention(q, k, v, AttentionMask(window, score_bias=bias), **options)


def attend_cached(q, k, v, i, j, window=None, bias=None):
    return kernels.attention(q, k, v, AttentionMask(window, score_bias=bias), i, j)


def qkv(H, G, T, B=2, D=8, seed=0, dtype=torch.float64):
    """Queries, keys and values large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, D), (B, G, T, D), (B, G, T, D))
    return [(2 * torch.randn(s, generator=generator, dtype=dtype)).requires_grad_() for s in shapes]


def with_gradients(y, inputs):
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, inputs, cotangent)]


@pytest.mark.parametrize(("H", "G"), HEADS)
@few
@given(T=lengths, window=windows, biased=biases, seed=st.integers(0, 99))
def test_attend_is_attention(H, G, T, window, biased, seed):
    """Forward and gradients, whatever the length, the window, the grouping and the bias."""
    inputs = qkv(H, G, T, seed=seed)
    bias = bias_for(H, biased)
    actual = with_gradients(attention(*inputs, window, bias), inputs)
    close(actual, with_gradients(defined(*inputs, window, bias), inputs), 1e-9)


@pytest.mark.parametrize(("H", "G"), HEADS)
@few
@given(T=lengths, window=windows, biased=biases)
def test_attend_equals_masked_attention(H, G, T, window, biased):
    """The kernels that skip work equal the one that scores every pair and masks, forward and gradients."""
    inputs = qkv(H, G, T)
    where = torch.arange(T)
    bias = bias_for(H, biased)
    masked = with_gradients(attend_cached(*inputs, where, where, window, bias), inputs)
    close(with_gradients(attention(*inputs, window, bias), inputs), masked, 1e-9)


@pytest.mark.parametrize("T", [16, 24, 17, 23, 9, 8, 7])
@pytest.mark.parametrize("biased", [False, True])
def test_attend_with_lengths_around_the_multiples_of_the_window(T, biased):
    inputs = qkv(4, 2, T, dtype=torch.float32)
    close(attention(*inputs, 8, bias_for(4, biased)), defined(*inputs, 8, bias_for(4, biased)), 1e-5)


@few
@given(T=st.integers(2, 20), new=st.integers(1, 20), window=windows, biased=biases, seed=st.integers(0, 99))
def test_the_order_of_cached_keys_does_not_matter(T, new, window, biased, seed):
    """Keys in any order, each with its position, and the newest tokens alone: the last rows of attention."""
    new = min(new, T)
    q, k, v = qkv(4, 2, T)
    shuffled = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    if window is not None and new == 1:
        shuffled = shuffled[shuffled >= T - window]  # one new token: the cache holds no more than it may see
    where = torch.arange(T)
    bias = bias_for(4, biased)
    keys, values, newest = k[:, :, shuffled], v[:, :, shuffled], slice(T - new, None)
    y = attend_cached(q[:, :, newest], keys, values, where[newest], shuffled, window, bias)
    close(y, defined(q, k, v, window, bias)[:, :, newest], 1e-9)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("H", "G"), HEADS)
def test_the_layout_of_a_kernels_result_does_not_matter(H, G, window, monkeypatch):
    """CUDA's fused kernels return [B, T, H, D] seen as [B, H, T, D], where the CPU's is contiguous."""
    real = F.scaled_dot_product_attention

    def as_on_cuda(*args, **kwargs):
        return real(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    q, k, v = qkv(H, G, 12)
    where = torch.arange(12)
    expected = defined(q, k, v, window)
    monkeypatch.setattr(F, "scaled_dot_product_attention", as_on_cuda)
    close(attention(q, k, v, window), expected, 1e-9)
    close(attend_cached(q, k, v, where, where, window), expected, 1e-9)


def test_a_window_of_one_copies_the_values():
    q, k, v = qkv(4, 2, 10)
    close(attention(q, k, v, window=1), v.repeat_interleave(2, dim=1), 1e-12)


def test_the_bias_changes_the_result():
    """Guards the tests above: a bias that both sides ignored would pass them."""
    inputs = qkv(4, 2, 12)
    for window in (None, 5):
        assert (attention(*inputs, window, bias_for(4)) - attention(*inputs, window)).abs().max() > 0.1


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_dropout_drops_weights_and_keeps_their_mean(window, biased):
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in qkv(4, 2, 12, B=1, dtype=torch.float32))
    bias = bias_for(4, biased)
    n = 4000
    many = attention(*(x.expand(n, -1, -1, -1) for x in (q, k, v)), window, bias, dropout=0.5)
    spread, expected = many.std(dim=0), attention(q, k, v, window, bias)[0]
    assert spread.min() > 1e-3 and spread.mean() > 0.5
    assert ((many.mean(dim=0) - expected).abs() < 5 * spread / n**0.5).all()


def test_the_memory_of_a_window_grows_with_the_length_and_not_with_its_square():
    def bytes_at(T, kernel):
        inputs = qkv(4, 2, T, B=1, dtype=torch.float32)
        return largest_allocation(lambda: kernel(*inputs).sum().backward())

    def masked(q, k, v):
        where = torch.arange(q.shape[2])
        return attend_cached(q, k, v, where, where, 16)

    assert bytes_at(1024, masked) > 3.5 * bytes_at(512, masked)  # the gauge works
    assert bytes_at(1024, lambda *x: attention(*x, 16)) < 2.2 * bytes_at(512, lambda *x: attention(*x, 16))
    assert bytes_at(1024, lambda *x: attention(*x, 16)) < 1024 * 1024
