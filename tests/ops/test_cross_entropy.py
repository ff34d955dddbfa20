"""The chunked loss equals cross-entropy over all logits, and never holds them."""

import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.ops.cross_entropy import chunked_cross_entropy, linear_cross_entropy, token_losses

from ..model.tiny import close, each_variant, largest_allocation, tiny_model, tokens


def plain(hidden, weight, targets):
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def any_head(hidden, weight, targets):
    """The form for heads that are more than a product, with the same head."""
    return chunked_cross_entropy(lambda h: h @ weight.T, hidden, targets, [weight])


either = pytest.mark.parametrize("loss", [linear_cross_entropy, any_head])


def sample(N, V=97, C=16, ignored=0.0):
    torch.manual_seed(N)
    hidden, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (N,)).masked_fill(torch.rand(N) < ignored, -100)
    return hidden, weight, targets


def with_gradients(loss, hidden, weight, targets):
    value = loss(hidden, weight, targets)
    return [value.detach(), *torch.autograd.grad(3 * value, (hidden, weight))]


@pytest.mark.parametrize("N", [1, 2, 255, 256, 257, 512, 700])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@either
def test_value_and_gradients_are_those_of_cross_entropy(loss, N, ignored):
    if N == 1:
        ignored = 0.0
    inputs = sample(N, ignored=ignored)
    close(with_gradients(loss, *inputs), with_gradients(plain, *inputs), 1e-5)


@pytest.mark.parametrize("N", [2, 256, 700])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@either
def test_without_gradients_the_value_is_the_same(loss, N, ignored):
    inputs = sample(N, ignored=ignored)
    with torch.no_grad():
        close(loss(*inputs), plain(*inputs))


@pytest.mark.parametrize("N", [1, 256, 700])
def test_token_losses_are_the_cross_entropies_of_single_targets(N):
    """And 0 where a target does not count."""
    hidden, weight, targets = sample(N, ignored=0.4)
    losses = token_losses(hidden, weight, targets)
    assert losses.shape == (N,) and losses.dtype == torch.float32
    close(losses, F.cross_entropy(hidden @ weight.t(), targets, reduction="none"))
    assert (losses[targets == -100] == 0).all()


def test_a_whole_chunk_may_be_ignored():
    hidden, weight, targets = sample(700)
    targets[:600] = -100
    close(with_gradients(linear_cross_entropy, hidden, weight, targets), with_gradients(plain, hidden, weight, targets))


def test_an_ignored_token_has_no_gradient_and_no_say():
    hidden, weight, targets = sample(300, ignored=0.5)
    ignored = targets == -100
    value, gradient, _ = with_gradients(linear_cross_entropy, hidden, weight, targets)
    assert (gradient[ignored] == 0).all() and (gradient[~ignored] != 0).any()
    close(linear_cross_entropy(hidden[~ignored], weight, targets[~ignored]).detach(), value)


@pytest.mark.parametrize("N", [100, 1000, 3000, 10_000])
@pytest.mark.parametrize("training", [True, False])
def test_the_value_is_precise_under_bf16_autocast(N, training):
    """To 0.01 nats and in fp32: logits may be bf16, but not their mean over thousands of tokens."""
    inputs = sample(N, V=1000)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        value = linear_cross_entropy(*inputs)
    assert value.dtype == torch.float32
    assert abs(value.item() - plain(*inputs).item()) < 0.01


@pytest.mark.parametrize("training", [True, False])
def test_the_value_of_a_bf16_model_is_as_precise(training):
    hidden, weight, targets = sample(1000, V=1000)
    with torch.set_grad_enabled(training):
        value = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    assert value.dtype == torch.float32
    assert abs(value.item() - plain(hidden, weight, targets).item()) < 0.01


def test_in_double_precision_it_is_that_precise():
    inputs = [x.double().detach().requires_grad_() if x.is_floating_point() else x for x in sample(300, ignored=0.3)]
    expected = F.cross_entropy(inputs[0] @ inputs[1].T, inputs[2])
    found = linear_cross_entropy(*inputs)
    close(found, expected, 1e-12)
    close(torch.autograd.grad(found, inputs[:2]), torch.autograd.grad(expected, inputs[:2]), 1e-12)


@pytest.mark.parametrize("size", [10.0, 30.0])
def test_fp16_tells_likely_and_unlikely_targets_apart(size):
    """Nor does one whose probability fp16 cannot say count for more than it costs."""
    hidden, weight, targets = torch.eye(4), size * torch.eye(4), torch.tensor([1, 2, 3, 0])
    value = linear_cross_entropy(hidden.half().requires_grad_(), weight.half().requires_grad_(), targets)
    close(value, plain(hidden, weight, targets).clamp(max=16.6), 0.02)


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_the_gradient_is_right_however_unlikely_a_target_is(size):
    """Where its probability is no number of fp32 any more, the value is 87 nats at least."""
    hidden, weight = torch.eye(4, requires_grad=True), (size * torch.eye(4)).requires_grad_()
    targets = torch.tensor([1, 2, 3, 0])
    value, *found = with_gradients(linear_cross_entropy, hidden, weight, targets)
    expected, *gradients = with_gradients(plain, hidden, weight, targets)
    close(found, gradients)
    close(value, expected) if size < 87 else close(value, torch.tensor(87.0), 0.4)


def test_what_is_no_number_stays_visible():
    hidden, weight, targets = sample(10)
    with torch.no_grad():
        hidden[3, 2] = float("nan")
    assert linear_cross_entropy(hidden, weight, targets).isnan()


@pytest.mark.parametrize("N", [100, 1000, 3000])
@either
def test_gradients_under_bf16_autocast_are_right_to_one_percent(loss, N):
    """In direction, and in length to the half percent to which bf16 knows 1 / N."""
    inputs = sample(N, V=1000)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*inputs)
    gradients = torch.autograd.grad(value, inputs[:2]), torch.autograd.grad(plain(*inputs), inputs[:2])
    for ours, exact in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() / exact.norm() < 0.01
        assert abs((ours * exact).sum() / (exact * exact).sum() - 1) < 0.005


def test_all_logits_are_never_held():
    """Neither forward nor backward, nor the losses of single tokens, allocate anything near N x V numbers."""
    N, V = 1024, 400
    inputs = sample(N, V)
    assert largest_allocation(lambda: plain(*inputs).backward()) >= 4 * N * V  # the gauge works
    for loss in (linear_cross_entropy, any_head):
        assert largest_allocation(lambda loss=loss: loss(*inputs).backward()) <= 4 * N * V / 3
    with torch.no_grad():
        assert largest_allocation(lambda: linear_cross_entropy(*inputs)) <= 4 * N * V / 3
        assert largest_allocation(lambda: token_losses(*inputs)) <= 4 * N * V / 3


@each_variant
def test_the_loss_of_a_model_is_the_cross_entropy_of_its_logits(variant):
    model, text = tiny_model(**variant), tokens(2, 21)
    inputs, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, :7] = -100
    parameters = list(model.parameters())
    loss = model.loss(inputs, targets)
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    close(loss, expected)
    close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), 1e-4)


def test_any_head_may_bend_its_logits_and_have_parameters_that_it_does_not_use():
    hidden, weight, targets = sample(600, ignored=0.3)
    bias, idle = torch.randn(97, requires_grad=True), torch.randn(3, requires_grad=True)

    def logits(h):
        return 3 * torch.tanh((h @ weight.T + bias) / 3)

    inputs = hidden, weight, bias, idle
    value = chunked_cross_entropy(logits, hidden, targets, [weight, bias, idle])
    expected = F.cross_entropy(logits(hidden), targets)
    close(value, expected)
    *found, unused = torch.autograd.grad(value, inputs, allow_unused=True)
    close(found, torch.autograd.grad(expected, inputs[:3]), 1e-5)
    assert unused is None


@pytest.mark.parametrize("frozen", [0, 1])
@either
def test_what_is_frozen_gets_no_gradient(loss, frozen):
    inputs = sample(300)
    inputs[frozen].requires_grad_(False)
    found = loss(*inputs)
    found.backward()
    assert inputs[frozen].grad is None
    moving = inputs[1 - frozen]
    close(moving.grad, torch.autograd.grad(plain(*inputs), moving)[0], 1e-5)
