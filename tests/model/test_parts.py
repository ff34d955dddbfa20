"""A part from outside: found by its file, built with its options, and in its rights everywhere a built-in one is."""

import pytest
import torch
import torch.nn.functional as F

from gpt2_ablate.model import GPT2, KVCache
from gpt2_ablate.model.parts import BUILT_IN, build, part_files, resolve

from .tiny import close, tiny, tokens

PARTS = '''
import torch
from torch import Tensor, nn

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.embedding import TiedEmbedding
from gpt2_ablate.model.gpt2 import Block
from gpt2_ablate.ops.attention import attention
from gpt2_ablate.ops.linear import Linear


class LayerScaled(Block):
    def __init__(self, config, layer, start=1e-4):
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.full((config.n_embd,), start))

    def forward(self, x, context):
        x = x + self.scale * self.attention(self.norm_1(x), context)
        return x + self.scale * self.mlp(self.norm_2(x))


class Capped(TiedEmbedding):
    def __init__(self, config, cap):
        super().__init__(config)
        self.cap = cap

    def logits(self, hidden):
        return self.cap * torch.tanh(super().logits(hidden) / self.cap)


class Wide(SelfAttention):
    """Values twice as wide as queries, queries normalised."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.values = Linear(config.n_embd, 2 * self.heads[1] * self.head_dim)
        self.output = Linear(2 * config.n_embd, config.n_embd, std=config.residual_std)

    def project(self, x, context):
        q, k, _ = super().project(x, context)
        return q, k, self.values(x).unflatten(-1, (self.heads[1], -1)).transpose(1, 2)

    def make_cache(self, batch_size, capacity, dtype, device):
        from gpt2_ablate.model.kv_cache import LayerCache

        G, D = self.heads[1], self.head_dim
        return LayerCache(self.mask, (G, D), (G, 2 * D), batch_size, capacity, dtype, device)


class Random(nn.Module):
    """Draws at construction."""

    def __init__(self, config, layer):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(config.n_embd)), Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        return self.b(x * self.a)


class Fails(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        raise ValueError("no such luck")


class NoModule:
    pass


class NoLayer(nn.Module):
    def __init__(self, config):
        super().__init__()


class Typed(TiedEmbedding):
    def __init__(self, config, width: int = 4, share: float = 1):
        super().__init__(config)
        if width < 1:
            raise UserError(f"width: {width} is too small; give 1 or more")
'''


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    return lambda name: f"{tmp_path / 'parts.py'}:{name}"


def model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT2(tiny(**changes)).eval()


def test_a_parts_own_start_survives(parts):
    built = model(block=parts("LayerScaled"))
    assert all((block.scale == 1e-4).all() for block in built.blocks)
    built = model(block={"name": parts("LayerScaled"), "start": 0.5})
    assert all((block.scale == 0.5).all() for block in built.blocks)


def test_variants_start_from_the_same_numbers_where_they_share_them(parts):
    plain = dict(model().named_parameters())
    for changes in (
        dict(block=parts("LayerScaled")),
        dict(embedding={"name": parts("Capped"), "cap": 5}),
        dict(mlp=parts("Random")),
    ):
        other = dict(model(**changes).named_parameters())
        shared = [name for name in plain if name in other and plain[name].shape == other[name].shape]
        assert len(shared) > 10 and all(torch.equal(plain[name], other[name]) for name in shared)


def test_what_is_drawn_at_construction_depends_on_the_seed_alone(parts):
    one, same, other = (dict(model(seed, mlp=parts("Random")).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.mlp.a"], other["blocks.0.mlp.a"])
    assert not torch.equal(one["blocks.0.mlp.a"], one["blocks.1.mlp.a"])


def test_making_a_model_moves_the_callers_random_numbers_by_one_draw(parts):
    torch.manual_seed(0)
    torch.randint(2**31, ())
    expected = torch.randn(3)
    for changes in (dict(), dict(mlp=parts("Random"))):
        model(**changes)
        assert torch.equal(torch.randn(3), expected)


def test_everything_goes_through_the_embeddings_logits(parts):
    """A head with soft-capping: loss, token losses and their gradients are those of its logits."""
    built, text = model(embedding={"name": parts("Capped"), "cap": 0.05}), tokens(2, 20)
    inputs, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, 3] = -100
    logits = built(inputs)
    assert logits.abs().max() <= 0.05
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    close(built.loss(inputs, targets), expected, 1e-6)
    with torch.no_grad():
        close(built.embedding.token_losses(built.hidden(inputs), targets).sum() / 37, expected, 1e-6)
    parameters = list(built.parameters())
    found = torch.autograd.grad(built.loss(inputs, targets), parameters)
    close(found, torch.autograd.grad(expected, parameters), 1e-6)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("n_kv_head", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_may_be_wider_than_queries(parts, window, n_kv_head, dtype):
    """In every kernel that a CPU has, and in the cache, whose bytes are counted."""
    built, text = model(attention=parts("Wide"), window=window, n_kv_head=n_kv_head).to(dtype), tokens(2, 30)
    cache = built.make_cache(2)
    with torch.no_grad():
        whole = built(text)
        cached = torch.cat([built(piece, cache) for piece in text.split([7, 1, 20, 2], dim=1)], dim=1)
    close(cached, whole, 1e-4 if dtype == torch.float32 else 0.05)
    built.loss(text, text).backward()
    plain = KVCache(tiny(window=window, n_kv_head=n_kv_head))
    assert KVCache(built.config, device="meta").nbytes == 1.5 * plain.nbytes


def test_a_config_with_parts_can_be_compared_hashed_and_written(parts):
    config = tiny(mlp={"name": parts("Random")}, embedding={"name": parts("Capped"), "cap": 5})
    assert config.mlp == parts("Random")
    assert type(config)(**config.to_dict()) == config and hash(type(config)(**config.to_dict())) == hash(config)
    assert type(config.to_dict()["embedding"]) is dict
    assert part_files(config) == part_files(config.to_dict()) != []


def test_every_built_in_part_is_what_the_table_says():
    for kind, names in BUILT_IN.items():
        assert all(issubclass(resolve(kind, name)[0], torch.nn.Module) for name in names)


@pytest.mark.parametrize(
    ("kind", "part", "words"),
    [
        ("mlp", "swiglu", ("mlp: there is no part 'swiglu'", "give one of mlp", "my_part.py:MyPart")),
        ("mlp", "{}:Swiglu", ("parts.py", "'Swiglu'", "LayerScaled")),
        ("mlp", "{}:NoModule", ("parts.py: NoModule is no torch.nn.Module",)),
        ("mlp", "{}", ("no part",)),
        ("mlp", "/nowhere/x.py:X", ("/nowhere/x.py", "is not there")),
        ("mlp", "{}:Fails", ("parts.py:", "ValueError: no such luck")),
        ("mlp", "{}:NoLayer", ("parts.py:NoLayer", "it is built as cls(config, layer)")),
        ("embedding", {"name": "{}:Typed", "width": "8"}, ("parts.py:Typed: width: '8'", "valid integer")),
        ("embedding", {"name": "{}:Typed", "width": True}, ("width: True", "valid integer")),
        ("embedding", {"name": "{}:Typed", "width": 0}, ("embedding:", "parts.py:Typed: width: 0 is too small")),
        ("embedding", {"name": "{}:Capped"}, ("'cap'", "its options are: cap")),
        ("embedding", {"name": "{}:Capped", "cap": 5, "cup": 3}, ("'cup'", "its options are: cap")),
        ("block", {"name": "pre_norm", "depth": 3}, ("'depth'", "its options are: none")),
        ("norm", {"eps": 1}, ("norm:", "no part")),
        ("norm", 3, ("norm: 3",)),
    ],
)
def test_a_wrong_part_is_refused_in_one_line(kind, part, words, parts, refused):
    file = parts("")[:-1]
    if isinstance(part, str):
        part = part.replace("{}", file)
    elif isinstance(part, dict):
        part = {k: v.replace("{}", file) if isinstance(v, str) else v for k, v in part.items()}
    with refused(*words):
        model(**{kind: part})


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("import torch\nclass X(torch.nn.Module)\n    pass\n", 2, "SyntaxError"),
        ("import torch\n\nimport nowhere_to_be_found\n", 3, "ModuleNotFoundError"),
        ("x = 1\ny = x / 0\n", 2, "ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(code, line, words, tmp_path, refused):
    (tmp_path / "bad.py").write_text(code)
    for _ in range(2):  # the second time too
        with refused(f"{tmp_path / 'bad.py'}:{line}: ", words):
            build("mlp", f"{tmp_path / 'bad.py'}:X", tiny(), 0)
