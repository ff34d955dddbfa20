"""Rotary positions: a rotation whose angle is the position, so that inner products know distances only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import KVCache, generate
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.model.rope import RotaryPositions, other_convention
from gpt2_ablate.ops import rope as ops

from .tiny import close, each_kv_heads, each_window, few, refusal, tiny, tiny_model, tokens

D = 8
positions = st.integers(0, 150)


def rotary(length=32, **changes):
    part = RotaryPositions(tiny(positions="rotary", **changes))
    part.prepare(length)
    return part


def rotate(part, x, positions):
    context = ForwardContext(positions, positions, None, part)
    part.begin(context)
    return part.rotate(x, context)


def heads(T, seed=0, D=D):
    return torch.randn(2, 4, T, D, generator=torch.Generator().manual_seed(seed))


def exact(x, where):
    """Su et al., equation 13: pair i as a complex number, times exp(sqrt(-1) * position * 10000 ** (-2i / D))."""
    half = x.shape[-1] // 2
    angles = where[:, None].double() * 10_000.0 ** (-2 * torch.arange(half).double() / x.shape[-1])
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


@few
@given(m=positions, n=positions, shift=positions, seed=st.integers(0, 99))
def test_inner_products_depend_on_the_distance_only(m, n, shift, seed):
    part = rotary(400)
    q, k = heads(1, seed), heads(1, seed + 1000)

    def product(i, j):
        return (rotate(part, q, torch.tensor([i])) * rotate(part, k, torch.tensor([j]))).sum(-1)

    close(product(m + shift, n + shift), product(m, n), 2e-4)
    if m != n:
        assert (product(m, n) - product(n, n)).abs().max() > 1e-3


@few
@given(m=positions, seed=st.integers(0, 99))
def test_a_rotation_keeps_the_norm(m, seed):
    x = heads(1, seed)
    turned = rotate(rotary(400), x, torch.tensor([m]))
    close(turned.norm(dim=-1), x.norm(dim=-1))
    assert m == 0 or (turned - x).abs().max() > 1e-2


def test_position_zero_is_not_turned():
    x = heads(1)
    assert torch.equal(rotate(rotary(), x, torch.tensor([0])), x)


@pytest.mark.parametrize("width", [2, 8, 64])
def test_rotation_is_the_papers(width):
    where = torch.arange(300)
    x = heads(300, D=width)
    turned = rotate(rotary(300, n_embd=4 * width), x, where)
    assert (turned - exact(x, where)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "starcoder2"])
def test_rotation_is_that_of_transformers(name):
    import transformers

    if name == "llama":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4)
    else:
        from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2RotaryEmbedding as Rotary
        from transformers.models.starcoder2.modeling_starcoder2 import apply_rotary_pos_emb

        config = transformers.Starcoder2Config(hidden_size=32, num_attention_heads=4)
    q, k, where = heads(32), heads(32, seed=1), torch.arange(32)
    theirs = apply_rotary_pos_emb(q, k, *Rotary(config)(q, where[None]))
    part = rotary()
    close([rotate(part, q, where), rotate(part, k, where)], list(theirs), 1e-6)


@pytest.mark.parametrize("length", [32, 1100])
def test_angles_are_fp32_under_bf16_autocast(length):
    """Made, extended and used under autocast; a bf16 angle would be off by radians at position 1000."""
    x, where = heads(10), torch.arange(length - 10, length)
    with torch.autocast("cpu", torch.bfloat16):
        part = rotary(length)
        turned = rotate(part, x, where)
        half = rotate(part, x.bfloat16(), where)
    assert turned.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert (turned - exact(x, where)).abs().max() < 5e-4
    assert (half - exact(x, where)).abs().max() < 0.04


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rows", [None, 2])
def test_bf16_is_rotated_as_fp32_is(interleaved, rows):
    """There and back, whatever the layout, and where each row has positions of its own."""
    torch.manual_seed(0)
    x = torch.randn(2, 9, 4, 16).bfloat16().transpose(1, 2).requires_grad_()
    cos, sin = (torch.randn(rows or 1, 1, 9, 8) for _ in range(2))
    wide = x.detach().float().requires_grad_()
    found, expected = ops.rotate(x, cos, sin, interleaved), ops.rotate(wide, cos, sin, interleaved)
    cotangent = torch.randn(2, 4, 16, 9).bfloat16().mT
    (dx,), (dwide,) = torch.autograd.grad(found, x, cotangent), torch.autograd.grad(expected, wide, cotangent.float())
    for ours, theirs in ((found, expected), (dx, dwide)):
        assert ours.dtype == torch.bfloat16
        close(ours.float(), theirs, 2**-7)


@each_kv_heads
@each_window
def test_a_text_may_be_longer_than_the_block(n_kv_head, window):
    """A rotary model is the same function whatever block size it was built with."""
    short = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=window, block_size=8)
    long = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=window, block_size=128, seed=1)
    long.load_state_dict(short.state_dict())
    text = tokens(2, 100)
    assert torch.equal(short(text), long(text))


def test_rotary_has_no_weights_and_leaves_no_trace_in_a_checkpoint():
    part = rotary()
    assert not list(part.parameters())
    assert not part.state_dict()


def test_generating_past_the_block_leaves_a_trainable_model():
    model = tiny_model(positions="rotary", block_size=8)
    generate(model, tokens(1, 5), 20)
    text = tokens(2, 20)
    model.loss(text, text).backward()
    assert all(p.grad is not None for p in model.parameters())


SCALINGS = [dict(), dict(rope_scaling="linear"), dict(rope_scaling="ntk"), dict(rope_scaling="yarn")]
each_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.get("rope_scaling", "none"))


@each_scaling
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("width", [16, 64])
def test_scaling_is_that_of_transformers(scaling, factor, base, width):
    """Frequencies, attention factor, and the tables that come of them. NTK-aware is their "dynamic" one at its longest."""
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if not scaling and factor != 1:
        return
    reach, trained = 4096, int(4096 / factor)
    kind = {None: "default", "ntk": "dynamic"}.get(scaling.get("rope_scaling"), scaling.get("rope_scaling"))
    rope = {"rope_type": kind, "rope_theta": base, "factor": 1.0 if kind == "dynamic" else factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = trained
    theirs = transformers.LlamaConfig(
        hidden_size=4 * width, num_attention_heads=4, rope_parameters=rope,
        max_position_embeddings=trained if kind == "dynamic" else reach,
    )  # fmt: skip
    if scaling:
        scaling = dict(scaling, rope_factor=factor)
    ours = RotaryPositions(tiny(positions="rotary", block_size=reach, n_embd=4 * width, rope_base=base, **scaling))
    where = torch.arange(reach)
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), where[None])
    assert ours.cos.dtype == torch.float32
    # At position 4,095 an angle has 12 bits before the point, so fp32 knows it to 2e-4: compare frequencies more closely.
    close([ours.cos[:64], ours.sin[:64]], [cos[0, :64, : width // 2], sin[0, :64, : width // 2]], 5e-6)
    close([ours.cos, ours.sin], [cos[0, :, : width // 2], sin[0, :, : width // 2]], 1e-3)


@each_scaling
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_frequencies_are_those_of_transformers(scaling, factor):
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from gpt2_ablate.ops.rope import Rope, frequencies

    if not scaling:
        return
    name, width, reach = scaling["rope_scaling"], 64, 2048
    kind = "dynamic" if name == "ntk" else name
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 1.0 if name == "ntk" else factor}
    if name == "yarn":
        rope["original_max_position_embeddings"] = reach // factor
    config = transformers.LlamaConfig(
        hidden_size=4 * width, num_attention_heads=4, rope_parameters=rope,
        max_position_embeddings=int(reach / factor) if name == "ntk" else reach,
    )  # fmt: skip
    theirs, scale = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=reach)
    found, ours = frequencies(Rope(width, 10_000.0, name, factor, reach))
    close(found, theirs, 1e-6)
    assert ours == pytest.approx(scale, abs=1e-9)
    if factor > 1:
        plain, _ = frequencies(Rope(width, 10_000.0, None, 1.0, reach))
        assert (found[-1] / plain[-1]).item() == pytest.approx(1 / factor, rel=1e-5)  # the slowest pair reaches as far
        assert name == "linear" or found[0] == plain[0]  # the fastest stays as it is


def test_another_base_is_another_model():
    text = tokens(2, 20)
    plain, other = tiny_model(positions="rotary"), tiny_model(positions="rotary", rope_base=500.0)
    assert (plain(text) - other(text)).abs().max() > 1e-2


@each_kv_heads
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_model_can_change_its_convention(n_kv_head, interleaved):
    """The same logits from the other order of channels, and the same weights after changing twice."""
    own = tiny_model(positions="rotary", n_kv_head=n_kv_head, rope_interleaved=interleaved)
    other = tiny_model(positions="rotary", n_kv_head=n_kv_head, rope_interleaved=not interleaved, seed=1)
    state = {name: other_convention(p, own.config) if ".qkv." in name else p for name, p in own.state_dict().items()}
    text = tokens(2, 30)
    other.load_state_dict(state)
    close(other(text), own(text), 1e-5)
    other.load_state_dict(own.state_dict())
    assert (other(text) - own(text)).abs().max() > 1e-2  # it is not the same without
    for name in state:
        if ".qkv." in name:
            assert torch.equal(other_convention(state[name], other.config), own.state_dict()[name])


def test_interleaved_is_the_papers_order():
    """Su et al., equation 34: neighbouring channels are one complex number."""
    x, where = heads(300, D=64), torch.arange(300)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    turns = where[:, None].double() * 10_000.0 ** (-2 * torch.arange(32).double() / 64)
    expected = torch.view_as_real(pairs * torch.exp(1j * turns)).flatten(-2)
    found = rotate(rotary(300, n_embd=256, rope_interleaved=True), x, where)
    assert (found - expected).abs().max() < 1e-4


@each_scaling
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_way_works_with_a_cache_and_past_the_block(scaling, interleaved):
    factor = {"rope_factor": 2.0} if scaling else {}
    model = tiny_model(positions="rotary", rope_interleaved=interleaved, window=[6, None], **scaling, **factor)
    text = tokens(2, 80)
    cache = KVCache(model.config, 2, capacity=80)
    with torch.no_grad():
        close(torch.cat([model(part, cache) for part in text.split(9, dim=1)], dim=1), model(text), 1e-4)
        written = generate(model, text[:, :20], 30, temperature=0)
        for t in range(20, 50):
            assert torch.equal(model(written[:, :t])[:, -1].argmax(-1), written[:, t])


def test_heads_of_one_pair_cannot_be_scaled_by_ntk():
    with pytest.raises(UserError) as raised:
        tiny_model(positions="rotary", n_embd=8, rope_scaling="ntk", rope_factor=2)
    assert refusal(raised).startswith("rope_scaling: ntk")


@pytest.mark.parametrize("kind", ["default", "linear", "yarn"])
def test_each_row_may_have_positions_of_its_own(kind):
    part = rotary(60, **({} if kind == "default" else dict(rope_scaling=kind, rope_factor=2.0)))
    x, where = heads(5), torch.stack((torch.arange(5), torch.arange(40, 45)))
    found = rotate(part, x, where)
    for row in range(2):
        assert torch.equal(found[row], rotate(part, x, where[row])[row])
