"""A new part is one new file: it is found by its name, and works with everything that is already there."""

import itertools

import pytest
import torch

import gpt2_ablate.model
from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, KVCache, generate

from .tiny import W, close, each_kv_heads, each_window, sees, tiny, tiny_model, tokens

ALIBI = '''
"""ALiBi (Press et al. 2108.12409): a penalty on the score that grows with the distance."""

import torch

from gpt2_ablate.model.parts import part
from gpt2_ablate.model.positions import Positions


@part("positions", "alibi_of_a_test")
class Alibi(Positions):
    def __init__(self, config):
        super().__init__()
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, config.n_head + 1), persistent=False)

    def score_bias(self, queries, keys):
        return self.slopes[:, None, None] * (keys[None, :] - queries[:, None])
'''
SILENT = """
import torch

from gpt2_ablate.model.parts import part


@part("mlp", "silent_of_a_test")
class Silent(torch.nn.Module):
    def __init__(self, config):
        super().__init__()

    def forward(self, x):
        return torch.zeros_like(x)
"""


@pytest.fixture(autouse=True)
def new_files(tmp_path, monkeypatch):
    """Two parts in files of their own, as if somebody had put them into gpt2_ablate/model/."""
    (tmp_path / "alibi_of_a_test.py").write_text(ALIBI)
    (tmp_path / "silent_of_a_test.py").write_text(SILENT)
    (tmp_path / "empty_of_a_test.py").write_text("")
    monkeypatch.setattr(gpt2_ablate.model, "__path__", [*gpt2_ablate.model.__path__, str(tmp_path)])


def alibi_model(**changes):
    return tiny_model(positions="alibi_of_a_test", **changes)


@each_kv_heads
def test_new_positions_are_causal(n_kv_head):
    places = torch.arange(20)
    assert torch.equal(sees(alibi_model(n_kv_head=n_kv_head), 20), places[None, :] >= places[:, None])


@each_kv_heads
def test_new_positions_respect_the_window(n_kv_head):
    places = torch.arange(20)
    distance = places[None, :] - places[:, None]
    model = alibi_model(n_kv_head=n_kv_head, window=W, n_layer=1)
    assert torch.equal(sees(model, 20), (distance >= 0) & (distance < W))


@each_kv_heads
@each_window
@pytest.mark.parametrize("chunks", [1, 5, [13, 1, 1, 9, 2, 14]])
def test_new_positions_work_with_the_cache(n_kv_head, window, chunks):
    model = alibi_model(n_kv_head=n_kv_head, window=window)
    text = tokens(2, 40)
    cache = KVCache(model.config, 2, capacity=40)
    with torch.no_grad():
        cached = torch.cat([model(chunk, cache) for chunk in text.split(chunks, dim=1)], dim=1)
        close(cached, model(text), 1e-4)


@each_window
def test_new_positions_generate_past_the_block(window):
    model, text = alibi_model(window=window), tokens(2, 5)
    generated = generate(model, text, 40, temperature=0)
    with torch.no_grad():
        for _ in range(40):
            text = torch.cat((text, model(text)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generated, text)


@each_kv_heads
def test_a_bias_without_end_is_a_window_of_one(n_kv_head):
    """The bias really reaches the scores, of each head: with an endless penalty every token sees itself alone."""
    model, alone = alibi_model(n_kv_head=n_kv_head), alibi_model(n_kv_head=n_kv_head, window=1)
    text = tokens(2, 20)
    assert (model(text) - alone(text)).abs().max() > 0.1
    model.positions.slopes.fill_(1e4)
    close(model(text), alone(text), 1e-4)


@each_kv_heads
def test_each_head_has_its_own_bias(n_kv_head):
    """Changing one head's slope changes the model, and differently for each head."""
    text = tokens(1, 20)
    logits = [alibi_model(n_kv_head=n_kv_head)(text)]
    for head in range(4):
        model = alibi_model(n_kv_head=n_kv_head)
        model.positions.slopes[head] = 5.0
        logits.append(model(text))
    assert all((a - b).abs().max() > 1e-2 for a, b in itertools.combinations(logits, 2))


def test_a_new_part_starts_from_the_same_weights_as_the_others():
    def start(positions):
        torch.manual_seed(0)
        return GPT2(tiny(positions=positions)).embedding.weight

    assert torch.equal(start("alibi_of_a_test"), start("rotary"))


def test_a_new_mlp_takes_the_place_of_the_old_one():
    model = tiny_model(mlp="silent_of_a_test")
    names = [name for name, _ in model.named_parameters()]
    assert names and not any("mlp" in name for name in names)
    close(model(tokens(2, 10)), silenced(tiny_model(), model)(tokens(2, 10)))


def silenced(full, model):
    """The same model with the ordinary MLP, whose last projection is zero."""
    full.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for block in full.blocks:
            block.mlp.output.weight.zero_()
            block.mlp.output.bias.zero_()
    return full


def test_a_file_without_the_part_is_refused():
    with pytest.raises(UserError, match="positions.*'empty_of_a_test'"):
        GPT2(tiny(positions="empty_of_a_test"))
