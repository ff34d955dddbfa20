"""The gain from having read a text before: none for a model that knows nothing, all for one that copies."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.evaluation.copying import copy_gain
from gpt2_ablate.model import GPT2, GPT2Config

V, T = 97, 64


def text(n=1000):
    return np.random.default_rng(0).integers(0, V, n).astype(np.uint16)


def test_by_hand():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=16))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    gains = []
    for start in range(0, 8 * T // 2, T // 2):
        once = torch.from_numpy(text()[start : start + T // 2].astype(int))
        with torch.no_grad():
            losses = F.cross_entropy(model(torch.cat((once, once))[None, :-1])[0], torch.cat((once, once))[1:], reduction="none")
        gains.append((losses[16:31].mean() - losses[48:].mean()).item())
    assert copy_gain(model, text(), T) == pytest.approx(np.mean(gains), abs=1e-5)
    assert model.training


@pytest.mark.parametrize("changes", [dict(), dict(positions="none", n_kv_head=1, window=8)], ids=str)
def test_a_model_that_knows_nothing_gains_nothing(changes):
    model = GPT2(GPT2Config(vocab_size=V, block_size=T, n_layer=1, n_head=2, n_embd=16, **changes))
    torch.nn.init.zeros_(model.embedding.weight)
    assert copy_gain(model, text(), T) == 0


@pytest.mark.parametrize("n", [T // 2, 100, 1000])
def test_a_model_that_copies_gains_all(n):
    """It is certain of the token that stood half a context before, and knows nothing until there is one."""

    def hidden(tokens):
        logits = torch.zeros(*tokens.shape, V)
        seen = torch.roll(tokens, T // 2 - 1, dims=1)
        logits[:, T // 2 :] = 50.0 * F.one_hot(seen[:, T // 2 :], V)
        return logits

    def token_losses(logits, targets):
        return F.cross_entropy(logits.mT, targets, reduction="none")

    model = SimpleNamespace(
        hidden=hidden, embedding=SimpleNamespace(token_losses=token_losses), device="cpu", training=False,
        eval=lambda: None, train=lambda mode: None,
    )  # fmt: skip
    assert copy_gain(model, text(n), T) == pytest.approx(np.log(V), abs=1e-3)
