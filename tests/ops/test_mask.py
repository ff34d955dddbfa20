"""Windows, dilation, global tokens and packed documents, in every combination: each kernel equals the definition, which is
written out pair by pair in `sees` below."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gpt2_ablate.ops import cpu as cpu_kernels
from gpt2_ablate.ops.attention import attention, select_kernel
from gpt2_ablate.ops.flex import block_mask, flex_attention
from gpt2_ablate.ops.mask import AttentionMask

from ..model.tiny import close, few, refusal
from .test_attention import qkv, with_gradients

CPU = torch.device("cpu")
HEADS = [(4, 4), (4, 2), (4, 1), (6, 3), (6, 2)]
dilations = st.sampled_from([1, 2, 3, "mixed", "last"])
places = st.sets(st.integers(0, 30), max_size=3).map(lambda found: tuple(sorted(found)))


def of_heads(dilation, H):
    return {"mixed": tuple(1 + h % 3 for h in range(H)), "last": (1,) * (H - 1) + (2,)}.get(dilation, dilation)


def sees(i, j, window, dilation, global_tokens, start):
    """Longformer's rules for one pair (Beltagy et al., section 3.1), made causal and kept within the document."""
    if j > i or j < start:
        return False
    if window is None or any(j == i - m * dilation for m in range(window)):
        return True
    return j - start in global_tokens or i - start in global_tokens


def mask(pattern, B, H, T):
    dilation = pattern.dilation if isinstance(pattern.dilation, tuple) else (pattern.dilation,) * H
    starts = torch.zeros(B, T, dtype=torch.long) if pattern.document_starts is None else pattern.document_starts
    seen = torch.zeros(B, H, T, T, dtype=torch.bool)
    for b, h, i, j in itertools.product(range(B), range(H), range(T), range(T)):
        seen[b, h, i, j] = sees(i, j, pattern.window, dilation[h], pattern.global_tokens, int(starts[b, i]))
    return seen


def defined(q, k, v, pattern):
    B, H, T, D = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT / D**0.5
    return scores.masked_fill(~mask(pattern, B, H, T), float("-inf")).softmax(-1) @ v


def cut(lengths, T):
    """[T]: where the document of each of T tokens starts, the documents having these lengths."""
    starts = [start for start, n in zip([0, *itertools.accumulate(lengths)], [*lengths, T], strict=True) for _ in range(n)]
    return torch.tensor(starts[:T])


@pytest.mark.parametrize(("H", "G"), HEADS)
@few
@given(T=st.integers(1, 26), window=st.integers(1, 9), dilation=dilations, global_tokens=places, seed=st.integers(0, 99))
def test_a_window_is_its_definition(H, G, T, window, dilation, global_tokens, seed):
    """Forward and gradients, whatever the length, the dilation of each head, the global tokens and the grouping."""
    inputs = qkv(H, G, T, seed=seed)
    pattern = AttentionMask(window, of_heads(dilation, H), global_tokens)
    expected = with_gradients(defined(*inputs, pattern), inputs)
    for kernel in ("auto", "eager", "sliding"):
        close(with_gradients(attention(*inputs, pattern, kernel=kernel), inputs), expected, 1e-9)


@pytest.mark.parametrize(("H", "G"), HEADS)
@few
@given(
    T=st.integers(1, 22), window=st.none() | st.integers(1, 7), dilation=dilations, global_tokens=places,
    lengths=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=2, max_size=2),
)  # fmt: skip
def test_packed_documents_do_not_see_each_other(H, G, T, window, dilation, global_tokens, lengths):
    inputs = qkv(H, G, T)
    pattern = AttentionMask(window, of_heads(dilation, H), global_tokens, torch.stack([cut(row, T) for row in lengths]))
    expected = with_gradients(defined(*inputs, pattern), inputs)
    for kernel in ("auto", "eager"):
        close(with_gradients(attention(*inputs, pattern, kernel=kernel), inputs), expected, 1e-9)


@few
@given(T=st.integers(1, 22), window=st.integers(1, 7), dilation=dilations)
def test_the_bias_of_positions_meets_dilation(T, window, dilation):
    inputs = qkv(4, 2, T)
    slopes = torch.tensor([1.0, 0.5, -0.25, 2.0], dtype=torch.float64)[:, None, None]
    pattern = AttentionMask(window, of_heads(dilation, 4), score_bias=lambda i, j: slopes * (j[None, :] - i[:, None]))
    expected = with_gradients(attention(*inputs, pattern, kernel="eager"), inputs)
    close(with_gradients(attention(*inputs, pattern, kernel="sliding"), inputs), expected, 1e-9)


@pytest.mark.parametrize("T", [64, 50, 300])
@pytest.mark.parametrize("dilation", [1, 2, (1, 1, 1, 2)])
@pytest.mark.parametrize("global_tokens", [(), (0, 20)])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("scores", [2**20, 1])
def test_bf16_is_right_to_its_precision(T, dilation, global_tokens, documents, scores, monkeypatch):
    """Against the same bf16 numbers in double precision, however many blocks are worked on together; a CPU has kernels for it."""
    monkeypatch.setattr(cpu_kernels, "SCORES", scores)
    inputs = qkv(4, 2, T, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    pattern = AttentionMask(8, dilation, global_tokens, torch.stack([cut([19, 7], T)] * 2) if documents else None)
    y, expected = attention(*inputs, pattern), attention(*exact, pattern, kernel="eager")
    cotangent = torch.randn_like(y)
    found = y, *torch.autograd.grad(y, inputs, cotangent)
    for ours, theirs in zip(found, (expected, *torch.autograd.grad(expected, exact, cotangent.double())), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("T", [1, 100, 128, 300])
@pytest.mark.parametrize("G", [1, 2, 4])
def test_plain_causal_bf16_is_right_to_its_precision(T, G):
    """The same."""
    inputs = qkv(4, G, T, B=3, D=32, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = attention(*inputs, AttentionMask(), kernel="causal"), attention(*exact, AttentionMask(), kernel="eager")
    cotangent = torch.randn_like(y)
    found = y, *torch.autograd.grad(y, inputs, cotangent)
    for ours, theirs in zip(found, (expected, *torch.autograd.grad(expected, exact, cotangent.double())), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 0.02 * theirs.norm() + 1e-6


@pytest.mark.parametrize("window", [None, 8])
def test_autocast_brings_queries_keys_and_values_to_one_dtype(window):
    """As where a part normalises queries and keys, which autocast does in fp32."""
    q, k, v = qkv(4, 2, 20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(q, k, v.bfloat16(), AttentionMask(window))
    assert y.dtype == torch.bfloat16
    assert (y - attention(q, k, v, AttentionMask(window))).abs().max() < 0.1
    y.sum().backward()
    assert q.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dilation", [1, 3, (1, 2, 1, 1)])
@pytest.mark.parametrize("global_tokens", [(), (0, 7)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_flex_attention_is_given_the_same_pattern(window, dilation, global_tokens, packed):
    """Its mask pair by pair, and its result without compiling, which is all that there is without a GPU."""
    T = 40
    q, k, v = (x.detach() for x in qkv(4, 2, T, D=16, dtype=torch.float32))  # it has no backward pass on a CPU
    starts = torch.stack((cut([11, 14], T), cut([30], T))) if packed else None
    pattern = AttentionMask(window, dilation, global_tokens, starts) if window else AttentionMask(document_starts=starts)
    blocks = block_mask(pattern, T, CPU)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 4, T, T)), indexing="ij")
    assert torch.equal(blocks.mask_mod(b, h, i, j), mask(pattern, 2, 4, T))
    close(flex_attention(q, k, v, pattern), defined(q, k, v, pattern), 1e-5)


@pytest.mark.parametrize("dilation", [1, 2, (1, 1, 2, 2)])
@pytest.mark.parametrize("global_tokens", [(), (0, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_work_and_memory_grow_with_the_length(dilation, global_tokens, dtype):
    """From 512 to 1,024 tokens as from 1,024 to 1,536: FLOPs, and bytes of what is kept for the backward pass."""

    def cost(T, kernel):
        inputs, kept = qkv(4, 2, T, B=1, dtype=dtype), {}

        def keep(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        pattern = AttentionMask(16, dilation, global_tokens)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            attention(*inputs, pattern, kernel=kernel)
        meta = [x.detach().to("meta").requires_grad_() for x in inputs]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            attention(*meta, pattern, kernel=kernel).sum().backward()
        return counter.get_total_flops(), sum(kept.values())

    for short, middle, long in zip(*(cost(T, "sliding") for T in (512, 1024, 1536)), strict=True):
        assert long - middle == pytest.approx(middle - short, rel=0.02)
        assert middle < 2.05 * short
    for short, long in zip(*(cost(T, "eager") for T in (1024, 2048)), strict=True):
        assert long > 3 * short  # the gauges work


@pytest.mark.parametrize(
    ("pattern", "T", "dropout", "cpu", "cuda"),
    [
        (AttentionMask(), 100, 0.0, "causal", "causal"),
        (AttentionMask(window=100), 100, 0.1, "causal", "causal"),
        (AttentionMask(window=99), 100, 0.0, "sliding", "flex"),
        (AttentionMask(window=99), 100, 0.1, "sliding", "sliding"),
        (AttentionMask(window=100, dilation=2), 100, 0.0, "sliding", "flex"),
        (AttentionMask(window=9, global_tokens=(0,)), 100, 0.0, "sliding", "flex"),
        (AttentionMask(document_starts=torch.zeros(1, 100)), 100, 0.0, "eager", "flex"),
        (AttentionMask(window=9, document_starts=torch.zeros(1, 100)), 100, 0.0, "sliding", "flex"),
        (AttentionMask(window=9, global_tokens=(0,), document_starts=torch.zeros(1, 100)), 100, 0.0, "eager", "flex"),
        (AttentionMask(score_bias=lambda i, j: i), 100, 0.0, "eager", "eager"),
        (AttentionMask(window=9, score_bias=lambda i, j: i), 100, 0.0, "sliding", "sliding"),
    ],
)
def test_each_device_takes_its_best_kernel(pattern, T, dropout, cpu, cuda):
    assert select_kernel(pattern, CPU, T, dropout) == cpu
    assert select_kernel(pattern, torch.device("cuda"), T, dropout) == cuda


@pytest.mark.parametrize(
    ("pattern", "kernel", "words"),
    [
        (AttentionMask(), "flex", ("flex", "cpu", "auto")),
        (AttentionMask(), "sliding", ("sliding", "no window")),
        (AttentionMask(window=3), "causal", ("causal", "hides")),
        (AttentionMask(), "fast", ("'fast'", "sliding", "eager", "auto")),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(pattern, kernel, words):
    with pytest.raises(ValueError) as raised:
        attention(*qkv(4, 2, 8), pattern, kernel=kernel)
    assert refusal(raised).startswith("kernel:")
    assert all(word in refusal(raised) for word in words)


@given(st.integers(1, 40), st.sampled_from([1, 3, 4]), st.none() | st.integers(1, 45), dilations, places)
def test_pairs_are_counted_as_they_are_seen(T, H, window, dilation, global_tokens):
    pattern = AttentionMask(window, of_heads(dilation, H), global_tokens)
    assert pattern.visible_pairs(T, H) == int(mask(pattern, 1, H, T).sum())
