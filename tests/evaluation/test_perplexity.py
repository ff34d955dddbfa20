"""A score is the plain cross-entropy of every token but the first, in windows, and leaves the model as it was."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.errors import UserError
from gpt2_ablate.evaluation.perplexity import Score, perplexity, score
from gpt2_ablate.model import GPT2, GPT2Config

V, T = 97, 16


def model(seed=0, **changes):
    torch.manual_seed(seed)
    found = GPT2(GPT2Config(**{**dict(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=16), **changes}))
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return found.eval()


def text(n, seed=0):
    return np.random.default_rng(seed).integers(0, V, n).astype(np.uint16)


def losses_of_windows(model, ids):
    """Window by window and token by token: {place: [losses]}."""
    found = {place: [] for place in range(T)}
    for start in range(0, len(ids) - 1, T):
        window = torch.from_numpy(ids[start : start + T + 1].astype(np.int64))
        with torch.no_grad():
            losses = F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
        for place, loss in enumerate(losses.tolist()):
            found[place].append(loss)
    return found


@pytest.mark.parametrize("n", [T + 1, 5 * T, 5 * T + 1, 5 * T + 2, 7 * T - 3])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_token_but_the_first_counts_once(n, batch_size):
    ids = text(n)
    expected = losses_of_windows(model(), ids)
    assert sum(map(len, expected.values())) == n - 1
    found = score(model(), ids, T, batch_size)
    assert found.loss == pytest.approx(np.concatenate(list(expected.values())).mean(), rel=1e-5)
    assert found.by_position == pytest.approx(np.array([np.mean(own) for own in expected.values()]), rel=1e-5)


@pytest.mark.parametrize("changes", [dict(positions="rotary"), dict(n_kv_head=1, window=4)], ids=str)
def test_of_any_variant(changes):
    ids = text(100)
    expected = np.concatenate(list(losses_of_windows(model(**changes), ids).values())).mean()
    assert score(model(**changes), ids, T).loss == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_is_as_good_as_chance():
    blank = model()
    with torch.no_grad():
        for p in blank.parameters():
            p.zero_()
    found = score(blank, text(200), T)
    assert found.loss == pytest.approx(math.log(V)) and found.perplexity == pytest.approx(V)
    assert found.by_position == pytest.approx(np.full(T, math.log(V)))


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_does_not_matter(training):
    dropping = model(dropout=0.5).train(training)
    found = score(dropping, text(100), T)
    assert all(module.training == training for module in dropping.modules())
    assert found.loss == score(dropping.eval(), text(100), T).loss


def test_the_training_mode_is_restored_after_a_refusal():
    training = model().train()
    with pytest.raises(UserError):
        score(training, text(T), T)
    assert training.training


def test_weights_and_random_numbers_are_left_alone():
    scored, before = model(), torch.get_rng_state()
    weights = [p.clone() for p in scored.parameters()]
    score(scored, text(100), T)
    assert all(torch.equal(p, w) for p, w in zip(scored.parameters(), weights, strict=True))
    assert all(p.grad is None for p in scored.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_positions_that_have_no_end_can_be_scored_past_the_context():
    assert len(score(model(positions="rotary"), text(100), 2 * T).by_position) == 2 * T


@pytest.mark.parametrize(
    ("n", "block_size"), [(T, T), (1, T), (0, T), (100, 2 * T)], ids=["no target", "one", "none", "positions"]
)
def test_what_does_not_fit_is_refused_in_one_line(n, block_size):
    with pytest.raises(UserError) as raised:
        score(model(), text(n), block_size)
    assert str(block_size) in str(raised.value) and "\n" not in str(raised.value)


def test_units():
    found = Score(np.array([[2.0]]))
    assert found.perplexity == pytest.approx(math.e**2)
    assert found.bits_per_byte(4.0) == pytest.approx(2 / math.log(2) / 4)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (2.0, math.e**2), (1e5, math.inf), (math.inf, math.inf)])
def test_a_perplexity_is_the_exponential_of_a_loss_however_large(loss, expected):
    assert perplexity(loss) == Score(np.array([[loss]])).perplexity == pytest.approx(expected)
