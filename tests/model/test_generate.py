"""Generation: the same text as without a cache, the prompt untouched, and what cannot work refused."""

import pytest
import torch

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import generate
from gpt2_ablate.model.generate import stream

from .tiny import V, each_kv_heads, each_variant, each_window, refusal, tiny_model, tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def greedy(model, text, new):
    """The likeliest token, again and again, reading the whole text each time."""
    with torch.no_grad():
        for _ in range(new):
            text = torch.cat((text, model(text)[:, -1:].argmax(-1)), dim=1)
    return text


@each_variant
@pytest.mark.parametrize("T", [1, 5, 12])
def test_greedy_is_the_uncached_argmax_loop(variant, T):
    model = tiny_model(**variant)
    prompt = tokens(4, T)
    text = generate(model, prompt, 18, temperature=0)
    assert torch.equal(text, greedy(model, prompt, 18))
    assert (text[:, T:] != text[:, T : T + 1]).any()  # not the same token over and over


@each_variant
def test_sampling_is_the_uncached_loop(variant):
    """Each token from a fresh reading of the whole text, by the same random numbers."""
    model, text, uncached = tiny_model(**variant), tokens(3, 5), seeded()
    expected = text
    for _ in range(20):
        expected = generate(model, expected, 1, 0.9, 40, uncached, top_p=0.9)
    assert torch.equal(generate(model, text, 20, 0.9, 40, seeded(), top_p=0.9), expected)


@each_variant
@pytest.mark.parametrize("new", [0, 1, 7])
def test_the_text_is_the_prompt_and_as_many_new_tokens(variant, new):
    prompt = tokens(3, 5)
    text = generate(tiny_model(**variant), prompt, new, generator=seeded())
    assert text.shape == (3, 5 + new) and text.dtype == prompt.dtype
    assert torch.equal(text[:, :5], prompt)
    assert text.min() >= 0 and text.max() < V
    assert torch.equal(prompt, tokens(3, 5))


@each_variant
def test_one_seed_one_text(variant):
    model, prompt = tiny_model(**variant), tokens(2, 4)
    first, again, other = (generate(model, prompt, 20, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_the_global_seed_decides():
    model, prompt = tiny_model(), tokens(2, 4)

    def text(seed):
        torch.manual_seed(seed)
        return generate(model, prompt, 20)

    assert torch.equal(text(1), text(1))
    assert not torch.equal(text(1), text(2))


def test_with_a_generator_the_global_random_numbers_are_left_alone():
    model = tiny_model()
    before = torch.get_rng_state()
    generate(model, tokens(2, 4), 5, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@each_variant
def test_the_best_of_one_is_greedy(variant):
    model, prompt = tiny_model(**variant), tokens(3, 4)
    assert torch.equal(generate(model, prompt, 20, top_k=1), generate(model, prompt, 20, temperature=0))


@pytest.mark.parametrize("arguments", [dict(temperature=t) for t in (1e-6, 1e-30, 1e-45, 1e-320)] + [dict(top_p=1e-300)], ids=str)
@pytest.mark.parametrize("top_k", [None, 5])
def test_hardly_any_temperature_and_hardly_any_probability_are_greedy(arguments, top_k):
    model, prompt = tiny_model(), tokens(3, 4)
    assert torch.equal(generate(model, prompt, 20, top_k=top_k, **arguments), generate(model, prompt, 20, temperature=0))


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_highest_temperature_makes_all_tokens_alike(top_k):
    drawn = generate(tiny_model(), tokens(1, 3).expand(1000, -1), 1, 1e308, top_k, seeded())[:, -1]
    shares = drawn.bincount(minlength=V).float() / 1000
    assert (shares > 0).sum() == (top_k or V) and shares.max() < 0.05 + (0.2 if top_k else 0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 5, 1000])
def test_tokens_are_drawn_by_their_probability(temperature, top_k):
    """20,000 first tokens against softmax(logits / temperature), renormalised over the k likeliest."""
    model, n = tiny_model(), 20_000
    with torch.no_grad():
        logits = model(tokens(1, 3))[0, -1] / temperature
    if top_k is not None and top_k < V:
        logits[logits < logits.topk(top_k).values[-1]] = float("-inf")
    drawn = generate(model, tokens(1, 3).expand(n, -1), 1, temperature, top_k, seeded())[:, -1]
    expected = logits.softmax(-1)
    shares = drawn.bincount(minlength=V) / n
    assert shares[expected == 0].sum() == 0
    assert ((shares - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 4 / n).all()  # 4: rare tokens


def test_texts_of_a_batch_do_not_see_each_other():
    model, prompts = tiny_model(positions="rotary", window=6), tokens(3, 5)
    together = generate(model, prompts, 15, temperature=0)
    alone = [generate(model, prompt[None], 15, temperature=0) for prompt in prompts]
    assert torch.equal(together, torch.cat(alone))


@each_kv_heads
@each_window
def test_learned_positions_end_at_the_block(n_kv_head, window):
    model = tiny_model(n_kv_head=n_kv_head, window=window)
    assert generate(model, tokens(1, 12), 20).shape == (1, 32)
    with pytest.raises(UserError) as raised:
        generate(model, tokens(1, 12), 21)
    assert "33" in refusal(raised) and "32" in refusal(raised)
    with pytest.raises(UserError):
        generate(model, tokens(1, 40), 0)


@each_kv_heads
@each_window
def test_rotary_positions_go_past_the_block(n_kv_head, window):
    model = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=window)
    text = generate(model, tokens(2, 12), 50, temperature=0)
    assert torch.equal(text, greedy(model, tokens(2, 12), 50))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("new", [0, 3])
def test_the_training_mode_is_restored_and_does_not_matter(training, new):
    model = tiny_model(dropout=0.5).train(training)
    text = generate(model, tokens(2, 5), new, temperature=0)
    assert all(module.training == training for module in model.modules())
    assert torch.equal(text, generate(model.eval(), tokens(2, 5), new, temperature=0))


def test_the_training_mode_is_restored_after_a_refusal():
    model = tiny_model().train()
    with pytest.raises(UserError):
        generate(model, tokens(1, 12), 21)
    assert model.training


def test_generated_text_is_ordinary_text():
    """It can be scored, and trained on, as any other text."""
    model = tiny_model()
    text = generate(model, tokens(2, 5), 10, generator=seeded())
    model.loss(text[:, :-1], text[:, 1:]).backward()


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (dict(max_new_tokens=-1), "max_new_tokens", "-1"),
        (dict(max_new_tokens=10**14), "max_new_tokens", "100000000000000"),
        (dict(max_new_tokens=10**30), "max_new_tokens", "1" + 30 * "0"),
        (dict(max_new_tokens=3, temperature=-0.5), "temperature", "-0.5"),
        (dict(max_new_tokens=3, temperature=float("inf")), "temperature", "inf"),
        (dict(max_new_tokens=3, temperature=float("nan")), "temperature", "nan"),
        (dict(max_new_tokens=3, top_k=0), "top_k", "0"),
        (dict(max_new_tokens=3, top_k=-2), "top_k", "-2"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused_by_name(arguments, field, value):
    with pytest.raises(UserError) as raised:
        generate(tiny_model(positions="rotary"), tokens(1, 3), **arguments)
    assert refusal(raised).startswith(f"{field}:") and value in refusal(raised)


@pytest.mark.parametrize(
    ("kernel", "changes", "T"),
    [("flex", {}, 5), ("sliding", {}, 5), ("causal", dict(window=(None, 6)), 12)],
    ids=str,
)
def test_a_kernel_that_cannot_run_is_refused_before_the_first_token_is_asked_for(kernel, changes, T):
    with pytest.raises(UserError) as raised:
        stream(tiny_model(**changes, kernel=kernel), tokens(1, T), 3)
    assert refusal(raised).startswith(f"kernel: {kernel}")


def test_a_kernel_that_can_run_is_not_refused():
    """By what it is asked to read first, the prompt."""
    model = tiny_model(window=6)
    for kernel, T in (("causal", 6), ("sliding", 12), ("eager", 12)):
        forced = tiny_model(window=6, kernel=kernel)
        assert torch.equal(generate(forced, tokens(2, T), 15, 0), generate(model, tokens(2, T), 15, 0))


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError) as raised:
        generate(tiny_model(), tokens(1, 0), 3)
    assert refusal(raised).startswith("input_ids:")
