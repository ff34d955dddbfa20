"""The laws of `gpt2_ablate.evaluation.laws`, of the built-in variants and of every modification in examples/modifications;
and that a law is broken by a model that should break it."""

from pathlib import Path

import pytest
import torch
import yaml

from gpt2_ablate.evaluation.laws import LAWS, broken_law, small_model
from gpt2_ablate.model import GPT2, GPT2Config, generate
from gpt2_ablate.model.parts import BUILT_IN

from .model.tiny import VARIANTS_OF_TINY, tiny

GALLERY = sorted((Path(__file__).parents[1] / "examples" / "modifications").glob("*.yaml"))


def changes_of(file):
    """model.config of a variant, its parts' files found beside it."""
    changes = yaml.safe_load(file.read_text())["model"]["config"]
    for kind in BUILT_IN.keys() & changes.keys():
        part = changes[kind]
        if isinstance(part, str):
            changes[kind] = str(file.parent / part)
        else:
            changes[kind] = {**part, "name": str(file.parent / part["name"])}
    return changes


def combined(file, **others):
    changes = {**others, **changes_of(file)}
    try:
        return GPT2Config(vocab_size=97, block_size=32, n_layer=2, n_head=4, n_embd=32, **changes), None
    except ValueError as error:
        return None, error


each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
each_modification = pytest.mark.parametrize("file", GALLERY, ids=lambda file: file.stem)


@each_law
@pytest.mark.parametrize("variant", VARIANTS_OF_TINY, ids=str)
def test_built_in_variants_obey(law, variant):
    assert law(small_model(tiny(**variant))) is None


@each_law
@each_modification
@pytest.mark.parametrize("others", [{}, {"positions": "rotary"}, {"n_kv_head": 2}, {"window": 6}], ids=str)
def test_modifications_obey(law, file, others):
    if file.stem == "mla" and "n_kv_head" in others:
        with pytest.raises(ValueError, match="latent"):
            small_model(combined(file, **others)[0])
        return
    config, error = combined(file, **others)
    assert error is None
    assert law(small_model(config)) is None


@each_modification
def test_a_modification_trains_generates_and_changes_something(file):
    config = combined(file)[0]
    torch.manual_seed(0)
    model, text = GPT2(config), torch.randint(97, (2, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model.loss(text[:, :-1], text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    ids = generate(model, text[:, :5], 10, temperature=0)
    with torch.no_grad():
        model.eval()
        assert torch.equal(ids[:, 5:], model(ids)[:, 4:-1].argmax(-1))
    assert small_model(config)(text).sum() != small_model(tiny())(text).sum()


@each_modification
def test_a_modification_is_short_and_cites_its_source(file):
    code, texts = file.with_suffix(".py").read_text(), yaml.safe_load(file.read_text())
    assert len(code.splitlines()) <= 70 and "arXiv" in texts["paper"]
    assert {"title", "idea", "challenges", "worth"} <= texts.keys()


BREAKS = """
import torch
from torch import nn

from gpt2_ablate.model.attention import SelfAttention
from gpt2_ablate.model.embedding import TiedEmbedding
from gpt2_ablate.model.layers import MLP


class parts(MLP):
    def forward(self, x):
        return super().forward(x)[..., :-1]


class repeatable(MLP):
    def forward(self, x):
        return super().forward(x + 0.01 * torch.randn_like(x))


class shape(TiedEmbedding):
    def logits(self, hidden):
        return super().logits(hidden)[..., :-1]


class causality(MLP):
    def forward(self, x):
        return super().forward(x + x.mean(1, keepdim=True))


class window(SelfAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.mask = type(self.mask)()


class rows(MLP):
    def forward(self, x):
        return super().forward(x + x.mean(0, keepdim=True))


class cache(SelfAttention):
    def remember(self, k, v, context):
        k, v, positions = super().remember(k, v, context)
        return k, v if positions is None else 0.9 * v, positions


class documents(MLP):
    def forward(self, x):
        return super().forward(x.cumsum(1))


class saving(MLP):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.register_buffer("scale", torch.rand(config.n_embd), persistent=False)

    def forward(self, x):
        return super().forward(x * self.scale)


class losses(TiedEmbedding):
    def loss(self, hidden, targets, context=None):
        return super().loss(1.1 * hidden, targets, context)
"""
KINDS = {"shape": "embedding", "window": "attention", "cache": "attention", "losses": "embedding"}  # the others: mlp


@each_law
def test_a_law_is_broken_by_what_should_break_it(law, tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS)
    part = {KINDS.get(law.__name__, "mlp"): f"{tmp_path / 'breaks.py'}:{law.__name__}"}
    model = small_model(tiny(window=6 if law.__name__ == "window" else None, positions="rotary", **part))
    assert law(model) and broken_law(model)
