"""What the tests of this room share: the variants, small models in which every weight matters, and a memory gauge."""

import itertools

import pytest
import torch
from hypothesis import settings
from torch.profiler import ProfilerActivity, profile

from gpt2_ablate.model import GPT2, GPT2Config

V, W = 97, 6
POSITIONS = ("learned", "rotary")
KV_HEADS = (None, 2, 1)

few = settings(max_examples=12, deadline=None, derandomize=True)

each_positions = pytest.mark.parametrize("positions", POSITIONS)
each_kv_heads = pytest.mark.parametrize("n_kv_head", KV_HEADS)
each_window = pytest.mark.parametrize("window", (None, W))
VARIANTS_OF_TINY = [dict(positions=p, n_kv_head=g, window=w) for p, g, w in itertools.product(POSITIONS, KV_HEADS, (None, W))]
each_variant = pytest.mark.parametrize(
    "variant", VARIANTS_OF_TINY, ids=lambda v: f"{v['positions']}-kv_{v['n_kv_head'] or 'all'}-window_{v['window'] or 'none'}"
)


def tiny(**changes):
    """A config of 2 layers, 4 heads and width 32."""
    return GPT2Config(**{**dict(vocab_size=V, block_size=32, n_layer=2, n_head=4, n_embd=32), **changes})


def tiny_model(seed=0, **changes):
    """A model with large random weights, biases and norms, so that attention is sharp and no part is idle."""
    torch.manual_seed(seed)
    model = GPT2(tiny(**changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.25 * torch.randn_like(p) if p.ndim > 1 else p + 0.1 * torch.randn_like(p))
    return model


def tokens(B, T, seed=0):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def influence(model, T):
    """[T, T]: how far the logits at place i move when token j is another one (row j, column i)."""
    text = tokens(1, T).repeat(T + 1, 1)
    places = torch.arange(T)
    text[places + 1, places] = (text[places + 1, places] + 1) % V
    with torch.no_grad():
        logits = model.double()(text)  # in double precision, so that a difference is a dependence and not rounding
    return (logits[1:] - logits[:1]).abs().amax(-1)


def sees(model, T):
    """[T, T]: whether the logits at place i depend on token j (row j, column i)."""
    return influence(model, T) > 1e-7


def largest_allocation(work):
    """Bytes of the largest single allocation while `work()` runs; unlike a TorchDispatchMode it sees into fused ops."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    return max(event.self_cpu_memory_usage for event in trace.events())


def refusal(raised):
    """The message of a caught UserError, which is one line."""
    message = str(raised.value)
    assert message and "\n" not in message
    return message
