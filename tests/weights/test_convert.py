"""Surgery: exact wherever the function can stay the same, the stated rule where it cannot, refused where there is none."""

from dataclasses import replace

import pytest
import torch

from gpt2_ablate.weights import convert, to_grouped_query, to_rotary, to_window

from .models import same, tiny_model, tokens


def model(seed=0, **changes):
    return tiny_model(seed, **{**dict(n_head=8), **changes})


def logits(made):
    with torch.no_grad():
        return made(tokens())


def assert_same_logits(one, other):
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-4, atol=1e-4)


def heads_of(made, layer=1):
    """Keys' and values' weights [2, G, D, C] and biases [2, G, D] of a layer."""
    qkv, config = made.blocks[layer].attention.qkv, made.config
    first = config.n_head * config.head_dim
    return tuple(x[first:].unflatten(0, (2, config.kv_heads, config.head_dim)) for x in (qkv.weight, qkv.bias))


def with_equal_heads(made, n_kv_head):
    """The model after each group of neighbouring heads has become equal to its first."""
    for layer in range(2):
        for x in heads_of(made, layer):
            groups = x.data.unflatten(1, (n_kv_head, -1))
            groups.copy_(groups[:, :, :1].expand_as(groups).clone())
    return made


def test_as_many_heads_as_before_is_the_same_model():
    assert same(to_grouped_query(model(), 8), model())


@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_pooling_equal_heads_changes_nothing(how, n_kv_head, positions):
    before = with_equal_heads(model(positions=positions), n_kv_head)
    after = to_grouped_query(before, n_kv_head, how)
    assert after.config == replace(before.config, n_kv_head=n_kv_head)
    for pooled, heads in zip(heads_of(after), heads_of(before), strict=True):
        assert torch.equal(pooled, heads[:, :: 8 // n_kv_head])
    assert_same_logits(after, before)


@pytest.mark.parametrize("n_head", [6, 12])
def test_the_mean_of_three_equal_heads_is_that_head_bit_for_bit(n_head):
    before = with_equal_heads(model(n_head=n_head, n_embd=4 * n_head), n_head // 3)
    for pooled, heads in zip(heads_of(to_grouped_query(before, n_head // 3)), heads_of(before), strict=True):
        assert torch.equal(pooled, heads[:, ::3])


def test_the_mean_is_over_neighbours():
    for pooled, heads in zip(heads_of(to_grouped_query(model(), 2)), heads_of(model()), strict=True):
        torch.testing.assert_close(pooled[:, 0], heads[:, :4].mean(1))
        torch.testing.assert_close(pooled[:, 1], heads[:, 4:].mean(1))


def test_groups_of_groups_are_groups():
    """8 -> 4 -> 2 heads is 8 -> 2."""
    twice = to_grouped_query(to_grouped_query(model(), 4), 2)
    for one, other in zip(twice.parameters(), to_grouped_query(model(), 2).parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_not_pooled_stays_bit_for_bit():
    before, after = model(), to_grouped_query(model(), 2, "random")
    weights = dict(after.named_parameters())
    for name, p in before.named_parameters():
        kept = 128 if "qkv" in name else len(p)
        assert torch.equal(p[:kept], weights[name][:kept]), name


def test_random_heads_are_new_by_seed_and_small():
    one, again, other = (to_grouped_query(model(), 2, "random", seed) for seed in (0, 0, 1))
    assert same(one, again) and not same(one, other)
    weight, bias = heads_of(one)
    assert 0.018 < weight.std() < 0.022 and not bias.any()
    assert not torch.equal(weight[0], weight[1]) and not torch.equal(heads_of(one, 0)[0], weight)


def test_the_mean_is_nearer_to_the_model_than_random_heads():
    """Figure 4 of the GQA paper, where heads are alike, as they are not in a model of random numbers."""
    before = with_equal_heads(model(), 2)
    for x in heads_of(before):
        x.data.add_(0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    distance = {how: (logits(to_grouped_query(before, 2, how)) - logits(before)).norm() for how in ("mean", "first", "random")}
    assert distance["mean"] < distance["first"] < distance["random"]


@pytest.mark.parametrize("window", [20, 32, 100])
def test_a_window_as_long_as_the_text_changes_nothing(window):
    after = to_window(model(), window)
    assert after.config.window == window and same(after, model())
    assert torch.equal(logits(after), logits(model()))


def test_a_window_shorter_than_the_text_hides_what_is_before_it():
    after = to_window(model(n_layer=1), 5)
    changed = tokens().clone()
    changed[:, :10] += 1
    changed %= 97
    with torch.no_grad():
        torch.testing.assert_close(after(tokens())[:, 15:], after(changed)[:, 15:])
    assert not torch.allclose(logits(after), logits(model(n_layer=1)))


def test_rotary_drops_the_table_and_nothing_else():
    before, after = model(), to_rotary(model())
    weights = dict(before.named_parameters())
    assert after.config.positions == "rotary"
    assert set(weights) - {name for name, _ in after.named_parameters()} == {"positions.table.weight"}
    assert all(torch.equal(p, weights[name]) for name, p in after.named_parameters())
    assert torch.isfinite(logits(after)).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_two_conventions_of_rotary_positions_are_one_function(interleaved):
    before = model(positions="rotary", n_kv_head=2, rope_interleaved=interleaved)
    after = convert(before, replace(before.config, rope_interleaved=not interleaved))
    assert not same(after, before)
    assert_same_logits(after, before)
    assert same(convert(after, before.config), before)


def test_everything_at_once_is_one_after_the_other():
    config = replace(model().config, n_kv_head=2, positions="rotary", window=6, block_size=64, dropout=0.1)
    at_once = convert(model(), config)
    assert at_once.config == config and not at_once.training
    assert same(at_once, to_window(to_rotary(to_grouped_query(model(), 2)), 6))


def test_a_shorter_context_keeps_the_first_positions():
    before = model()
    after = convert(before, replace(before.config, block_size=20))
    assert torch.equal(logits(after), logits(before))


def test_the_model_that_is_converted_stays_as_it_is():
    before = model().train()
    after = convert(before, replace(before.config, n_kv_head=2))
    for p in after.parameters():
        p.data.zero_()
    assert before.training and same(before, model())


def test_a_converted_model_can_be_trained():
    after = to_rotary(to_grouped_query(model(), 1)).train()
    after.loss(tokens()[:, :-1], tokens()[:, 1:]).backward()
    assert all(p.grad is not None for p in after.parameters())


@pytest.mark.parametrize(
    ("start", "changes", "words"),
    [
        (dict(positions="rotary"), dict(positions="learned"), ["positions", "rotary", "learned"]),
        (dict(n_kv_head=2), dict(n_kv_head=4), ["n_kv_head", 2, 4]),
        (dict(n_kv_head=2), dict(n_kv_head=None), ["n_kv_head", 2, 8]),
        (dict(n_kv_head=4, n_head=12, n_embd=96), dict(n_kv_head=3), ["n_kv_head", 4, 3, "1, 2, 4"]),
        ({}, dict(block_size=33), ["block_size", 32, 33]),
        ({}, dict(vocab_size=98), ["vocab_size"]),
        ({}, dict(n_layer=1), ["n_layer"]),
        ({}, dict(n_head=4), ["n_head"]),
        ({}, dict(n_embd=64), ["n_embd"]),
        ({}, dict(mlp="swiglu"), ["mlp", "swiglu"]),
        ({}, dict(positions="alibi"), ["positions", "alibi"]),
    ],
    ids=str,
)
def test_what_trained_weights_cannot_become_is_refused(refused, start, changes, words):
    before = model(**start)
    with refused(*words):
        convert(before, replace(before.config, **changes))


@pytest.mark.parametrize(("how", "seed", "word"), [("median", 0, "median"), ("random", -1, "-1"), ("random", 2**63, "seed")])
def test_another_way_or_seed_is_refused(refused, how, seed, word):
    with refused(word):
        to_grouped_query(model(), 2, how, seed)
