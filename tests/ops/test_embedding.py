"""The gradient of a matrix used at both ends is the sum of both uses'."""

import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.ops.embedding import tied_embedding

from ..model.tiny import close, each_variant, tiny_model, tokens


@pytest.mark.parametrize("ids", [[[0, 1, 2]], [[4, 4, 4], [4, 0, 4]], [[6]]])
def test_both_uses_count(ids):
    weight, ids = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.tensor(ids)

    def use(rows, head):
        return (rows.sin() @ head.T).cos().sum()

    found = torch.autograd.grad(use(*tied_embedding(weight, ids)), weight)
    close(found, torch.autograd.grad(use(F.embedding(ids, weight), weight), weight), 1e-12)


@pytest.mark.parametrize("used", [0, 1])
def test_either_use_alone_counts(used):
    weight, ids = torch.randn(7, 5, requires_grad=True), torch.tensor([[1, 1, 3]])
    tied_embedding(weight, ids)[used].sum().backward()
    expected = torch.ones(7) if used else torch.tensor([0.0, 2, 0, 1, 0, 0, 0])
    assert torch.equal(weight.grad, expected[:, None].expand(7, 5))


@each_variant
def test_the_loss_has_the_gradients_of_the_logits_loss(variant):
    model, text = tiny_model(**variant).double(), tokens(2, 20)
    parameters = list(model.parameters())
    found = torch.autograd.grad(model.loss(text[:, :-1], text[:, 1:]), parameters)
    logits = model(text[:, :-1])
    expected = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()), parameters)
    close(found, expected, 1e-10)


@pytest.fixture
def two_threads():
    """Which might add in either order."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_gradients_are_the_same_every_time(two_threads):
    torch.manual_seed(0)
    weight, ids = torch.randn(50, 128, requires_grad=True), torch.randint(3, (8, 128))
    factors = torch.randn(8, 128, 128)

    def gradient():
        rows, head = tied_embedding(weight, ids)
        return torch.autograd.grad((rows * factors).sum() + head.sin().sum(), weight)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(20))
