"""The key/value cache: the same logits as without it, and never more memory than the window needs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import KVCache

from .tiny import W, close, each_kv_heads, each_positions, each_variant, few, refusal, tiny, tiny_model, tokens


def read(model, text, chunks, cache):
    """The logits of a text that is read in chunks of these sizes."""
    with torch.no_grad():
        return torch.cat([model(chunk, cache) for chunk in text.split(chunks, dim=1)], dim=1)


@each_positions
@each_kv_heads
@few
@given(
    window=st.sampled_from([None, 1, 2, W, 100]),
    chunks=st.lists(st.integers(1, 12) | st.just(1), min_size=1, max_size=8),
    spare=st.sampled_from([0, 1, 40]),
    seed=st.integers(0, 99),
)
def test_cached_equals_uncached(positions, n_kv_head, window, chunks, spare, seed):
    """In chunks of any size, shorter and longer than the window, with a cache that just fits or is too large."""
    T = sum(chunks)
    model = tiny_model(positions=positions, n_kv_head=n_kv_head, window=window, block_size=96)
    text = tokens(2, T, seed)
    cache = KVCache(model.config, batch_size=2, capacity=T + spare)
    with torch.no_grad():
        expected = model(text)
    close(read(model, text, chunks, cache), expected, 1e-4)
    assert cache.length == T


@each_variant
def test_one_token_at_a_time_equals_uncached(variant):
    model = tiny_model(**variant)
    text = tokens(3, 32)
    with torch.no_grad():
        expected = model(text)
    close(read(model, text, 1, KVCache(model.config, 3)), expected, 1e-4)


def test_a_rolling_cache_goes_round_many_times():
    model = tiny_model(positions="rotary", window=W)
    text = tokens(1, 20 * W + 1)
    with torch.no_grad():
        expected = model(text)
    for chunk in (1, W - 1, W, W + 1, 4 * W):
        close(read(model, text, chunk, KVCache(model.config, capacity=text.shape[1])), expected, 1e-4)


@each_kv_heads
@few
@given(chunks=st.lists(st.integers(1, 20), min_size=1, max_size=10))
def test_a_windowed_cache_never_holds_more_than_its_window(n_kv_head, chunks):
    model = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=W)
    cache = KVCache(model.config, batch_size=2, capacity=1000)
    for chunk in chunks:
        with torch.no_grad():
            model(tokens(2, chunk), cache)
        shapes = {tensor.shape for layer in cache.layers for tensor in (layer.keys, layer.values)}
        assert shapes == {(2, n_kv_head or 4, W, 8)}
        stored = [tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values)]
        assert cache.nbytes == sum(stored) == 2 * 2 * 2 * (n_kv_head or 4) * W * 8 * 4
    assert cache.length == sum(chunks)


@pytest.mark.parametrize(("window", "capacity", "held"), [(None, None, 32), (None, 50, 50), (6, 50, 6), (6, 4, 4), (50, 50, 50)])
@each_kv_heads
def test_a_cache_is_as_large_as_the_text_or_the_window(window, capacity, held, n_kv_head):
    """2 tensors x L layers x B x G x min(capacity, W) x D x bytes of a number."""
    config = tiny(n_kv_head=n_kv_head, window=window, n_layer=3)
    numbers = 2 * 3 * 5 * (n_kv_head or 4) * held * 8
    assert KVCache(config, 5, capacity).nbytes == 4 * numbers
    assert KVCache(config, 5, capacity, dtype=torch.bfloat16).nbytes == 2 * numbers


@pytest.mark.parametrize("window", [None, 50])
def test_a_full_cache_refuses_more(window):
    model = tiny_model(window=window)
    cache = KVCache(model.config, capacity=10)
    with torch.no_grad():
        model(tokens(1, 8), cache)
        with pytest.raises(UserError) as raised:
            model(tokens(1, 3), cache)
        assert "11" in refusal(raised) and "10" in refusal(raised)
        assert cache.length == 8
        model(tokens(1, 2), cache)
    assert cache.length == 10


def test_learned_positions_end_at_the_block_in_a_cache_too():
    model = tiny_model(window=W)
    cache = KVCache(model.config, capacity=100)
    with torch.no_grad():
        model(tokens(1, 30), cache)
        with pytest.raises(UserError) as raised:
            model(tokens(1, 3), cache)
    assert "33" in refusal(raised) and "32" in refusal(raised)


def test_two_caches_of_one_model_do_not_mix():
    model = tiny_model(window=W)
    first, second = KVCache(model.config), KVCache(model.config)
    texts = tokens(1, 20, seed=1), tokens(1, 20, seed=2)
    with torch.no_grad():
        expected = [model(text) for text in texts]
        starts = [model(texts[0][:, :10], first), model(texts[1][:, :10], second)]
        ends = [model(texts[0][:, 10:], first), model(texts[1][:, 10:], second)]
    close([torch.cat(halves, dim=1) for halves in zip(starts, ends, strict=True)], expected, 1e-4)


@pytest.mark.parametrize("window", [None, W])
def test_keys_and_values_may_be_stored_in_another_dtype(window):
    """`KVCache(dtype=bfloat16)` halves the cache of an fp32 model, at the precision of bf16."""
    model = tiny_model(window=window)
    text = tokens(2, 20)
    with torch.no_grad():
        expected = model(text)
    logits = read(model, text, [8, 5, 1, 1, 5], KVCache(model.config, 2, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.1


@pytest.mark.parametrize("window", [None, W])
def test_a_cache_works_under_autocast(window):
    model = tiny_model(positions="rotary", n_kv_head=2, window=window)
    text = tokens(2, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(text)
        logits = read(model, text, [8, 5, 1, 1, 5], KVCache(model.config, 2))
    assert (logits - expected).abs().max() < 0.15
