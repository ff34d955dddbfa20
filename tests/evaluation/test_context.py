"""The gain from a context: none for a model that needs none, or cannot see it; and what one by one it comes to."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.evaluation.context import context_gain
from gpt2_ablate.model import GPT2, GPT2Config

V = 97


def text(n=1000):
    return np.random.default_rng(0).integers(0, V, n).astype(np.uint16)


def model(**changes):
    torch.manual_seed(0)
    found = GPT2(GPT2Config(**{**dict(vocab_size=V, block_size=64, n_layer=2, n_head=2, n_embd=16), **changes}))
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return found


@pytest.mark.parametrize(("T", "n"), [(64, 65), (64, 1000), (40, 300)])
def test_one_by_one(T, n):
    """Each token of the second half, from its window up to it, and from the piece of T / 4 tokens that it counts in."""
    own, ids, gains = model(block_size=T), torch.from_numpy(text(n).astype(int)), []
    for start in range(0, n - T, T):
        for t in range(T // 2, T // 2 + (T // 2) // (T // 8) * (T // 8)):
            begin = T // 2 + (t - T // 2) // (T // 8) * (T // 8) - (T // 4 - T // 8)
            with torch.no_grad():
                near, far = (
                    F.cross_entropy(own(ids[None, start + b : start + t + 1])[0, -1], ids[start + t + 1]) for b in (begin, 0)
                )
            gains.append((near - far).item())
    assert context_gain(own, text(n), T) == pytest.approx(np.mean(gains), abs=1e-5)
    assert own.training


@pytest.mark.parametrize("T", [1, 2, 4, 7, 9])
def test_of_hardly_any_context(T):
    assert np.isfinite(context_gain(model(block_size=T), text(), T))


def test_what_a_window_hides_is_no_gain():
    """Two layers that see 5 tokens each reach 9, which every piece of 16 holds in front of what counts."""
    assert context_gain(model(window=5, positions="none"), text(), 64) == pytest.approx(0, abs=1e-5)
    assert abs(context_gain(model(positions="none"), text(), 64)) > 1e-3


def test_a_model_that_counts_the_tokens_of_its_context_gains():
    """Each window has a token of its own; who has seen more of the window knows better."""
    ids = np.repeat(np.arange(10), 64) * (np.random.default_rng(0).random(640) < 0.3)

    def hidden(tokens):
        return F.one_hot(tokens, V).cumsum(1).float().add(0.1).log()

    def token_losses(logits, targets):
        return F.cross_entropy(logits.mT, targets, reduction="none")

    counting = SimpleNamespace(
        hidden=hidden, embedding=SimpleNamespace(token_losses=token_losses), device="cpu", training=False,
        eval=lambda: None, train=lambda mode: None,
    )  # fmt: skip
    assert context_gain(counting, ids.astype(np.uint16), 64) > 0.05
