"""Muon: singular values of one, each head apart, AdamW for the rest, one learning rate, and resumed as if never stopped."""

import copy
import math

import pytest
import torch

from gpt2_ablate import training
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.training.muon import Muon, orthogonalise
from gpt2_ablate.training.optimizers import adamw, muon

from .tiny import fit, same, weights


def model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT2(GPT2Config(**{**dict(vocab_size=97, block_size=16, n_layer=2, n_head=4, n_embd=32), **changes}))


def step(own, optimizer, seed=0):
    ids = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(seed))
    own.loss(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 32, 8), (5, 8, 32), (2, 1, 7), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_one_and_directions_stay(shape, dtype):
    """Of a matrix whose singular values are within a factor of ten; the oracle is its polar factor."""
    torch.manual_seed(0)
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    found = orthogonalise((u @ torch.diag_embed(torch.linspace(0.1, 1, s.shape[1]).expand_as(s)) @ vh).to(dtype)).float()
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.3
    polar = u @ vh
    assert torch.cosine_similarity(found.flatten(1), polar.flatten(1)).min() > 0.97


def test_nothing_becomes_of_no_gradient():
    assert not orthogonalise(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("shape", [(16, 16), (32, 16), (16, 32)])
def test_one_matrix_is_trained_as_torch_trains_it(shape, monkeypatch):
    """torch.optim.Muon, an independent implementation, where a parameter is one matrix and the polynomial is its own."""
    monkeypatch.setattr(training.muon, "COEFFICIENTS", ((3.4445, -4.7750, 2.0315),) * 5)
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    rest = adamw([torch.nn.Parameter(torch.zeros(1))], 0.01, 0.1, (0.9, 0.99))
    optimizers = (
        Muon({ours: None}, rest, learning_rate=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01 * 0.02)  # both in bf16


def test_heads_are_trained_apart():
    """A head whose gradient is a thousand times as large as the others' takes nothing from them."""
    moved = []
    for factor in (1.0, 1000.0):
        own = model()
        optimizer, qkv = muon(own, 0.01, 0.0, (0.9, 0.99)), own.blocks[0].attention.qkv.weight
        before = qkv.detach().clone()
        qkv.grad = torch.randn(qkv.shape, generator=torch.Generator().manual_seed(0))
        qkv.grad[:8] *= factor
        optimizer.step()
        moved.append(qkv.detach() - before)
    torch.testing.assert_close(moved[0][8:], moved[1][8:])
    assert moved[1][:8].norm() < 2 * moved[1][8:16].norm()


@pytest.mark.parametrize("changes", [dict(), dict(positions="rotary", n_kv_head=1), dict(n_kv_head=2, window=4)], ids=str)
def test_matrices_of_the_blocks_move_alike_and_the_rest_is_adamws(changes):
    """Every matrix by about 0.2 of the rate, root mean square, as AdamW does; embeddings, biases and norms by AdamW itself."""
    own, reference = model(**changes), model(**changes)
    for p, q in zip(own.parameters(), reference.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        q.grad = p.grad.clone()
    muon(own, 0.01, 0.0, (0.9, 0.99)).step()
    adamw(reference.parameters(), 0.01, 0.0, (0.9, 0.99)).step()
    start = dict(model(**changes).named_parameters())
    for (name, p), q in zip(own.named_parameters(), reference.parameters(), strict=True):
        if name.startswith("blocks.") and p.ndim == 2:
            assert (p - start[name]).square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.35), name
        else:
            assert torch.equal(p, q), name


def test_weights_decay_by_rate_times_decay():
    start = dict(model().named_parameters())
    after = []
    for decay in (0.0, 0.5):
        own = model()
        step(own, muon(own, 0.01, decay, (0.9, 0.99)))
        after.append(weights_of(own))
    for name, p in start.items():
        expected = 0.01 * 0.5 * p if p.ndim == 2 else torch.zeros_like(p)
        torch.testing.assert_close(after[0][name] - after[1][name], expected, rtol=1e-2, atol=1e-7)


def weights_of(own):
    return {name: p.detach().clone() for name, p in own.named_parameters()}


def test_a_state_that_was_saved_goes_on_where_it_was():
    own = model()
    optimizer = muon(own, 0.01, 0.1, (0.9, 0.99))
    step(own, optimizer)
    other = copy.deepcopy(own)
    restored = muon(other, 0.5, 0.5, (0.1, 0.1))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for n in (1, 2):
        step(own, optimizer, n)
        step(other, restored, n)
    assert same(weights_of(own), weights_of(other))


def test_a_schedule_sets_the_rate_of_all():
    own = model()
    optimizer = muon(own, 0.01, 0.0, (0.9, 0.99))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = weights_of(own)
    step(own, optimizer)
    assert same(weights_of(own), before)


@pytest.mark.parametrize("changes", [dict(), dict(accumulate_grad_batches=2)], ids=str)
def test_it_trains_a_run(config, changes):
    found = {f"trainer.{key}": value for key, value in changes.items()}
    cli, curves = fit(config({"model.optimizer": "muon", "model.learning_rate": 3e-3, **found}))
    losses = [loss for _, loss in curves["validation"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < math.log(50257)
    assert all(p.isfinite().all() for p in weights(cli).values())


def test_an_optimizer_that_is_not_there_is_refused(config, refused):
    with refused("optimizer", "sgd", "adamw or muon"):
        fit(config({"model.optimizer": "sgd"}))
