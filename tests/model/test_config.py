"""GPT2Config refuses what cannot work, in one line that names the field and the value."""

import dataclasses

import pytest

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config

from .tiny import refusal, tiny

BAD = [
    (dict(n_embd=30), "n_embd", "30"),
    (dict(n_kv_head=3), "n_kv_head", "3"),
    (dict(n_kv_head=8), "n_kv_head", "8"),
    (dict(n_kv_head=0), "n_kv_head", "0"),
    (dict(n_kv_head=True), "n_kv_head", "True"),
    (dict(n_embd=12, positions="rotary"), "positions", "3"),
    (dict(window=0), "window", "0"),
    (dict(window=-3), "window", "-3"),
    (dict(window=True), "window", "True"),
    (dict(window=2.5), "window", "2.5"),
    (dict(window="6"), "window", "'6'"),
    (dict(n_layer=0), "n_layer", "0"),
    (dict(n_layer=None), "n_layer", "None"),
    (dict(n_head=-1), "n_head", "-1"),
    (dict(vocab_size=0), "vocab_size", "0"),
    (dict(block_size=0), "block_size", "0"),
    (dict(block_size=32.0), "block_size", "32.0"),
    (dict(dropout=1.0), "dropout", "1.0"),
    (dict(dropout=-0.1), "dropout", "-0.1"),
    (dict(dropout=float("nan")), "dropout", "nan"),
    (dict(dropout=True), "dropout", "True"),
    (dict(dropout="0.1"), "dropout", "'0.1'"),
]


@pytest.mark.parametrize(("changes", "field", "value"), BAD, ids=[str(changes) for changes, _, _ in BAD])
def test_a_bad_value_is_refused_by_name(changes, field, value):
    with pytest.raises(UserError) as raised:
        tiny(**changes)
    message = refusal(raised)
    assert message.startswith(f"{field}:")
    assert value in message


@pytest.mark.parametrize("kind", ["positions", "attention", "mlp", "norm"])
@pytest.mark.parametrize("name", ["nonesuch", "config", "", "../mlp", "os.path"])
def test_an_unknown_part_is_refused_by_name(kind, name):
    """Also where a file of that name exists but holds no such part."""
    with pytest.raises(UserError) as raised:
        GPT2(tiny(**{kind: name}))
    message = refusal(raised)
    assert message.startswith(f"{kind}:")
    assert repr(name) in message


def test_a_part_of_another_kind_is_refused():
    with pytest.raises(UserError, match="norm.*'rotary'.*layer_norm"):
        GPT2(tiny(norm="rotary"))


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(UserError) as raised:
        GPT2Config.preset("gpt3")
    message = refusal(raised)
    assert all(word in message for word in ("preset", "'gpt3'", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"))


@pytest.mark.parametrize(
    "changes",
    [dict(window=1), dict(window=10_000), dict(n_kv_head=4), dict(n_kv_head=1), dict(dropout=0), dict(dropout=0.99)],
    ids=str,
)
def test_the_edges_of_the_allowed_are_allowed(changes):
    GPT2(tiny(**changes))


def test_an_odd_head_width_is_fine_without_rotary():
    assert GPT2(tiny(n_embd=12)).config.head_dim == 3


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gpt2", (12, 12, 768)),
        ("gpt2-medium", (24, 16, 1024)),
        ("gpt2-large", (36, 20, 1280)),
        ("gpt2-xl", (48, 25, 1600)),
    ],
)
def test_presets_are_the_released_models(name, sizes):
    config = GPT2Config.preset(name)
    assert (config.n_layer, config.n_head, config.n_embd) == sizes
    assert (config.vocab_size, config.block_size, config.positions) == (50257, 1024, "learned")
    assert (config.n_kv_head, config.window, config.dropout) == (None, None, 0.0)


def test_a_preset_takes_changes_and_checks_them():
    assert GPT2Config.preset("gpt2", n_kv_head=4, window=128) == GPT2Config(n_kv_head=4, window=128)
    assert GPT2Config.preset("gpt2-xl", n_layer=2).n_layer == 2
    with pytest.raises(UserError, match="n_kv_head"):
        GPT2Config.preset("gpt2", n_kv_head=5)


def test_the_defaults_are_gpt2():
    assert GPT2Config() == GPT2Config.preset("gpt2")


def test_a_config_cannot_be_changed_into_a_bad_one():
    config = tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 0
    with pytest.raises(UserError, match="n_layer"):
        dataclasses.replace(config, n_layer=0)


def test_arguments_without_names_are_in_the_order_that_others_rely_on():
    assert GPT2Config(97, 32, 2, 4, 32, 2, "rotary", 8, 0.1) == GPT2Config(
        vocab_size=97, block_size=32, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, positions="rotary", window=8, dropout=0.1
    )
