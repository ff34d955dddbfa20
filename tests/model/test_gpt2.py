"""The whole model: what it may see, how large it is, where its weights start, and what dropout does."""

import itertools
import math

import pytest
import torch

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config

from .tiny import (
    KV_HEADS,
    POSITIONS,
    V,
    each_kv_heads,
    each_positions,
    each_variant,
    influence,
    refusal,
    sees,
    tiny,
    tiny_model,
    tokens,
)


def distances(T):
    places = torch.arange(T)
    return places[None, :] - places[:, None]  # row j, column i: i - j


@each_variant
@pytest.mark.parametrize("T", [1, 12, 20])
def test_no_token_sees_a_later_one(variant, T):
    moved = influence(tiny_model(**variant), T)
    assert (moved[distances(T) < 0] < 1e-9).all()
    assert moved.diagonal().min() > 1e-3


@each_positions
@each_kv_heads
def test_without_a_window_every_token_sees_all_of_its_past(positions, n_kv_head):
    model = tiny_model(positions=positions, n_kv_head=n_kv_head)
    assert torch.equal(sees(model, 20), distances(20) >= 0)


@each_positions
@each_kv_heads
@pytest.mark.parametrize("window", [1, 2, 5, 6, 19, 20])
@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_with_a_window_a_token_is_seen_this_far_and_no_farther(positions, n_kv_head, window, n_layer):
    """Key j reaches query i iff i - W < j <= i, so L layers carry token j to exactly j + L (W - 1)."""
    model = tiny_model(positions=positions, n_kv_head=n_kv_head, window=window, n_layer=n_layer)
    distance = distances(20)
    assert torch.equal(sees(model, 20), (distance >= 0) & (distance <= n_layer * (window - 1)))


@each_positions
@each_kv_heads
def test_a_window_as_long_as_the_text_is_no_window(positions, n_kv_head):
    windowed = tiny_model(positions=positions, n_kv_head=n_kv_head, window=20)
    full = tiny_model(positions=positions, n_kv_head=n_kv_head)
    assert torch.equal(windowed(tokens(2, 20)), full(tokens(2, 20)))
    assert not torch.allclose(windowed(tokens(2, 21)), full(tokens(2, 21)), atol=1e-3)


@each_variant
def test_logits_are_b_t_v_and_texts_of_a_batch_do_not_see_each_other(variant):
    model, text = tiny_model(**variant), tokens(3, 20)
    logits = model(text)
    assert logits.shape == (3, 20, V)
    torch.testing.assert_close(logits, torch.cat([model(row[None]) for row in text]), rtol=1e-4, atol=1e-4)


@each_positions
def test_the_order_of_tokens_matters(positions):
    """Swapping two earlier tokens changes the last logits of one layer: positions do something."""
    model, text = tiny_model(positions=positions, n_layer=1), tokens(1, 10)
    swapped = text[:, [0, 5, 2, 3, 4, 1, 6, 7, 8, 9]]
    assert (model(text)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-3


def test_learned_positions_end_at_the_block():
    model = tiny_model()
    assert model(tokens(1, 32)).shape == (1, 32, V)
    with pytest.raises(UserError) as raised:
        model(tokens(1, 33))
    assert "33" in refusal(raised) and "32" in refusal(raised)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_the_released_sizes(name, parameters):
    with torch.device("meta"):
        model = GPT2(GPT2Config.preset(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("n_layer", [2, 8])
@pytest.mark.parametrize("changes", [dict(), dict(positions="rotary", n_kv_head=1)], ids=["baseline", "rope-gqa"])
def test_weights_start_as_they_are_published(n_layer, changes):
    """N(0, 0.02), learned positions N(0, 0.01), the two projections into the residual stream N(0, 0.02 / sqrt(2 n_layer)),
    biases 0, norms 1."""
    torch.manual_seed(0)
    model = GPT2(tiny(n_embd=64, n_layer=n_layer, **changes))
    residual = {name for name, _ in model.named_parameters() if name.endswith("output.weight")}
    assert len(residual) == 2 * n_layer
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * n_layer) if name in residual else 0.01 if name.startswith("positions") else 0.02
            assert abs(p.std().item() / std - 1) < 5 / math.sqrt(2 * p.numel()), name
            assert abs(p.mean().item() / std) < 5 / math.sqrt(p.numel()), name


def test_variants_that_share_a_tensor_start_from_the_same_one():
    """Under one torch seed, so that the difference of two variants is the modification's and not the draw's."""

    def weights(positions, n_kv_head, window):
        torch.manual_seed(0)
        return dict(GPT2(tiny(positions=positions, n_kv_head=n_kv_head, window=window)).named_parameters())

    starts = [weights(*variant) for variant in itertools.product(POSITIONS, KV_HEADS, (None, 6))]
    for a, b in itertools.combinations(starts, 2):
        shared = [name for name in a if name in b and a[name].shape == b[name].shape]
        assert {"embedding.weight", "blocks.0.mlp.input.weight", "blocks.1.attention.output.weight"} <= set(shared)
        assert [name for name in shared if not torch.equal(a[name], b[name])] == []


def test_tensors_of_one_model_start_differently():
    weights = [p for name, p in GPT2(tiny(n_layer=3)).named_parameters() if p.ndim > 1]
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_the_seed_decides_where_weights_start():
    def start(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in GPT2(tiny()).parameters() if p.ndim > 1])

    assert torch.equal(start(1), start(1))
    assert (start(1) == start(2)).float().mean() < 0.01


def test_initialise_forgets_what_was_learned():
    """Whatever the weights were, one seed draws one model."""
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    for model in (first, second):
        torch.manual_seed(0)
        model.initialise()
    drawn = dict(second.named_parameters())
    assert [name for name, p in first.named_parameters() if not torch.equal(p, drawn[name])] == []


def test_a_fresh_model_knows_nothing():
    """Its loss is near that of guessing, ln V."""
    torch.manual_seed(0)
    model, text = GPT2(tiny()), tokens(8, 32)
    assert abs(model.loss(text[:, :-1], text[:, 1:]).item() - math.log(V)) < 0.05


@each_variant
def test_every_weight_has_a_gradient(variant):
    model, text = tiny_model(**variant), tokens(2, 32)
    model.loss(text, text.roll(-1, 1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@each_variant
def test_dropout_acts_in_training_only(variant):
    model, text = tiny_model(dropout=0.3, **variant), tokens(2, 20)
    assert torch.equal(model(text), model(text))
    assert torch.equal(model(text), tiny_model(dropout=0.0, **variant)(text))
    model.train()
    assert not torch.allclose(model(text), model(text), atol=1e-2)


@pytest.mark.parametrize("site", ["embedding.weight", "attention.output.bias", "mlp.output.bias"])
def test_dropout_reaches_embeddings_and_both_residual_updates(site):
    """A model whose only signal is ones from one place: in training each is dropped, or doubled to keep the mean."""
    model = tiny_model(dropout=0.5, n_layer=1).train()
    model.norm = torch.nn.Identity()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1 if name.endswith(site) else 0)
    hidden = model.hidden(tokens(8, 32))
    assert set(hidden.unique().tolist()) == {0.0, 2.0}
    assert abs(hidden.mean().item() - 1) < 0.1
    assert (model.eval().hidden(tokens(8, 32)) == 1).all()


@each_variant
def test_without_dropout_training_and_evaluation_are_the_same_function(variant):
    model, text = tiny_model(**variant), tokens(2, 20)
    assert torch.equal(model.train()(text), model.eval()(text))


@each_variant
def test_bf16_autocast_is_close_to_fp32(variant):
    model, text = tiny_model(**variant), tokens(2, 20)
    with torch.no_grad():
        exact = model(text)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(text)
    assert 0 < (half - exact).abs().max() < 0.15
