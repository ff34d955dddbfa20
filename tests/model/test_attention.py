"""Grouped-query attention: fewer heads of keys and values, fewer weights, and nothing else."""

import pytest
import torch

from gpt2_ablate.model import GPT2
from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.positions import Positions

from .tiny import close, each_positions, each_variant, each_window, tiny, tiny_model, tokens


def context(T):
    return ForwardContext(torch.arange(T), torch.arange(T), None, Positions())


def repeated(model):
    """The weights of a grouped model as those of the multi-head model that reads each group's head H / G times."""
    config = model.config
    C, D, G = config.n_embd, config.head_dim, config.n_kv_head
    state = dict(model.state_dict())
    for name in [name for name in state if ".qkv." in name]:
        q, k, v = state[name].split([C, G * D, G * D])
        k, v = (x.unflatten(0, (G, D)).repeat_interleave(config.n_head // G, dim=0).flatten(0, 1) for x in (k, v))
        state[name] = torch.cat((q, k, v))
    return state


@each_positions
@each_window
def test_as_many_key_value_heads_as_heads_is_multi_head_attention(positions, window):
    mha = tiny_model(positions=positions, window=window)
    gqa = tiny_model(positions=positions, window=window, n_kv_head=4)
    gqa.load_state_dict(mha.state_dict())
    text = tokens(3, 20)
    assert torch.equal(gqa(text), mha(text))


@each_positions
@each_window
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_grouped_is_multi_head_with_repeated_projections(positions, window, n_kv_head):
    gqa = tiny_model(positions=positions, window=window, n_kv_head=n_kv_head)
    mha = tiny_model(positions=positions, window=window, seed=1)
    mha.load_state_dict(repeated(gqa))
    text = tokens(3, 20)
    close(gqa(text), mha(text), 1e-4)


@each_variant
def test_each_variant_has_exactly_the_weights_it_needs(variant):
    """GQA saves 2 (H - G) D rows of C weights and a bias in each layer, rotary saves the table, a window nothing."""
    config = tiny(**variant)
    H, G, C, D = 4, variant["n_kv_head"] or 4, 32, 8
    saved = config.n_layer * 2 * (H - G) * D * (C + 1) + (32 * C if variant["positions"] == "rotary" else 0)
    count = sum(p.numel() for p in GPT2(config).parameters())
    assert count == sum(p.numel() for p in GPT2(tiny()).parameters()) - saved


@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
def test_keys_and_values_have_g_heads(n_kv_head):
    attention = SelfAttention(tiny(n_kv_head=n_kv_head), layer=0)
    q, k, v = attention.project(torch.randn(3, 5, 32), context(5))
    assert q.shape == (3, 4, 5, 8)
    assert k.shape == v.shape == (3, n_kv_head or 4, 5, 8)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_weights_are_dropped_in_training_only(window):
    attention = SelfAttention(tiny(dropout=0.5, window=window), layer=0)
    x = torch.randn(2, 10, 32)
    assert not torch.equal(attention(x, context(10)), attention(x, context(10)))
    attention.eval()
    assert torch.equal(attention(x, context(10)), attention(x, context(10)))
