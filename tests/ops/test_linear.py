"""Our linear layer is torch's, and keeps no narrow copy of its weights for the backward pass."""

import pytest
import torch
from torch import nn

from gpt2_ablate.ops import native
from gpt2_ablate.ops.linear import Linear

from ..model.tiny import close, tiny_model, tokens


def pair(bias=True, K=24, N=40):
    torch.manual_seed(0)
    ours, theirs = Linear(K, N, bias=bias), nn.Linear(K, N, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def with_gradients(layer, x, precision):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        y = layer(x)
    (y.float() ** 2).sum().backward()
    return y.detach(), x.grad, *(p.grad for p in layer.parameters())


@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 5, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs(shape, precision, bias):
    ours, theirs = pair(bias)
    x = torch.randn(shape)
    for found, expected in zip(with_gradients(ours, x, precision), with_gradients(theirs, x, precision), strict=True):
        assert found.dtype == expected.dtype
        close(found.float(), expected.float(), 1e-6 if precision is None else 0.02 * expected.float().abs().max().item())


@pytest.mark.parametrize(("M", "K", "N"), [(32, 32, 32), (96, 64, 160), (512, 128, 96), (64, 160, 288)])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_small_layers_are_right_in_c(M, K, N, x_dtype, bias):
    """To bf16's precision where the result is bf16, and to fp32's where it is fp32; the same bits on any number of threads."""
    ours, theirs = pair(bias, K, N)
    theirs = theirs.double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.bfloat16())
    x, dy = torch.randn(2, M // 2, K).bfloat16().to(x_dtype), torch.randn(2, M // 2, N).bfloat16()

    def run(layer, dtype):
        own = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(own)
        return [y, *torch.autograd.grad(y, [own, *layer.parameters()], dy.to(y.dtype))]

    found, expected, before = run(ours, x_dtype), run(theirs, torch.float64), torch.get_num_threads()
    assert [t.dtype for t in found] == [torch.bfloat16, x_dtype] + [torch.float32] * (1 + bias)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= (2**-8 if a.dtype == torch.bfloat16 or not native.is_available("linear") else 1e-6) * b.norm()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, found, run(ours, x_dtype)))
    finally:
        torch.set_num_threads(before)


def test_doubles_are_left_as_they_are():
    ours = pair()[0].double()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(3, 24, dtype=torch.float64)).dtype == torch.float64


def test_only_what_is_wanted_gets_a_gradient():
    ours, _ = pair()
    ours.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        ours(torch.randn(3, 24)).sum().backward()
    assert ours.weight.grad is None
    assert torch.equal(ours.bias.grad, torch.full((40,), 3.0))


def test_no_copy_of_the_weights_is_kept():
    model, text = tiny_model(), tokens(2, 20)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name}
    shapes |= {shape[::-1] for shape in shapes}
    kept = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
    ):
        model.loss(text, text)
    copies = [x for x in kept if tuple(x.shape) in shapes and x.untyped_storage().data_ptr() not in own]
    assert kept and not copies
