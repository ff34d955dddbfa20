"""A model as a folder: it comes back exactly, or the message names the file that is wrong."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights.folder import load_model, save_model, save_new_model

from .models import flip

WEIGHTS, CONFIG = "model.safetensors", "model.json"


def model(seed=0, **changes):
    """All weights random, those that start at zero or one too."""
    torch.manual_seed(seed)
    made = GPT2(GPT2Config(**{**dict(vocab_size=97, block_size=16, n_layer=2, n_head=4, n_embd=16), **changes}))
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


def same(one, other):
    weights = dict(one.named_parameters()), dict(other.named_parameters())
    return weights[0].keys() == weights[1].keys() and all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


@pytest.fixture
def folder(tmp_path):
    """A saved model."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(model(), folder)
    return folder


def rewrite_config(folder, **changes):
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**fields, **changes}))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
@pytest.mark.parametrize("window", [None, 6])
def test_a_model_comes_back_bit_for_bit(tmp_path, positions, n_kv_head, window):
    saved = model(positions=positions, n_kv_head=n_kv_head, window=window, dropout=0.1)
    save_model(saved, tmp_path)
    loaded = load_model(tmp_path)
    assert same(loaded, saved) and loaded.config == saved.config and not loaded.training
    text = torch.arange(16)[None]
    assert torch.equal(loaded(text), saved.eval()(text))


def test_a_folder_holds_just_the_two_files_and_no_number_twice(folder):
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG, WEIGHTS]
    numbers = sum(p.numel() for p in model().parameters())
    assert 4 * numbers < (folder / WEIGHTS).stat().st_size < 4 * numbers + 10_000


def test_the_config_can_be_read_by_others(folder):
    fields = json.loads((folder / CONFIG).read_text())
    assert fields.keys() == dataclasses.asdict(model().config).keys() and GPT2Config(**fields) == model().config


def test_a_loaded_model_can_be_trained(folder):
    loaded = load_model(folder).train()
    loaded.loss(torch.arange(8)[None], torch.arange(8)[None]).backward()
    assert all(p.requires_grad and p.grad is not None for p in loaded.parameters())


def test_a_model_is_replaced_by_a_later_one(folder):
    later = model(seed=1, n_layer=3)
    save_model(later, folder)
    assert same(load_model(folder), later)


def test_saving_leaves_the_model_as_it_was(tmp_path):
    saved = model().train()
    save_model(saved, tmp_path)
    assert saved.training and same(saved, model()) and all(p.requires_grad for p in saved.parameters())


# Damaged files


def cut(data):
    return data[: len(data) // 2]


def last_byte_missing(data):
    return data[:-1]


def emptied(data):
    return b""


def one_byte_more(data):
    return data + b"\0"


def length_of_the_header(data):
    return bytes([data[0] ^ 1]) + data[1:]


def quotation_mark(data):
    return data[:8] + data[8:].replace(b'"', b"#", 1)


def number_format(data):
    return data.replace(b"F32", b"F16", 1)


@pytest.mark.parametrize(
    "damage", [cut, last_byte_missing, emptied, one_byte_more, length_of_the_header, quotation_mark, number_format]
)
def test_damaged_weights_are_refused_by_their_file(folder, refused, damage):
    file = folder / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    with refused(file):
        load_model(folder)


@pytest.mark.parametrize("name", ["positions.table.weight", "blocks.1.mlp.output.bias"])
def test_a_flipped_bit_in_a_name_is_refused_by_the_tensor(folder, refused, name):
    file = folder / WEIGHTS
    flipped = name[:-1] + chr(ord(name[-1]) ^ 1)
    file.write_bytes(file.read_bytes().replace(name.encode(), flipped.encode()))
    with refused(file, name[:-1]):
        load_model(folder)


@pytest.mark.parametrize("place", [-1, -1000, -5000, -9000])
def test_a_flipped_bit_in_the_numbers_is_refused_by_the_tensor(folder, refused, place):
    flip(folder / WEIGHTS, place)
    with refused(folder / WEIGHTS, ".weight: is damaged", "sha256"):
        load_model(folder)


@pytest.mark.parametrize("metadata", ['"', "[]", "{}"])
def test_damaged_checksums_are_refused(folder, refused, metadata):
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"sha256": metadata})
    with refused(folder / WEIGHTS, "sha256"):
        load_model(folder)


def test_a_model_from_before_there_were_checksums_is_read(folder):
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    assert same(load_model(folder), model())


def test_equal_weights_are_equal_files(folder, tmp_path):
    before = (folder / WEIGHTS).read_bytes()
    save_model(load_model(folder), tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before
    with safe_open(folder / WEIGHTS, framework="pt") as opened:
        assert list(opened.metadata()) == ["sha256"]  # several would come in any order


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_folder_in_the_place_of_a_file_is_refused(folder, refused, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with refused(folder, name):
        load_model(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_refused_by_its_name(folder, refused, name):
    (folder / name).unlink()
    with refused(folder, name):
        load_model(folder)


def test_a_missing_folder_is_refused(tmp_path, refused):
    with refused(tmp_path / "nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "tensor"),
    [
        ({"n_embd": 32}, "blocks.0."),
        ({"vocab_size": 98}, "embedding.weight"),
        ({"block_size": 17}, "positions.table.weight"),
        ({"positions": "rotary"}, "positions.table.weight"),
        ({"n_kv_head": 1}, "blocks.0.attention.qkv"),
        ({"n_layer": 3}, "blocks.2."),
        ({"n_layer": 1}, "blocks.1."),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_weights_is_refused_by_the_tensor(folder, refused, changes, tensor):
    rewrite_config(folder, **changes)
    with refused(folder / WEIGHTS, CONFIG, tensor):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"nonsense": 1},
        {"n_head": "4"},
        {"n_layer": 0},
        {"dropout": 2},
        {"mlp": "nonsense"},
        {"n_head": 3},
        {"n_layer": 10**9},
        {"n_embd": 10**10},
        {"block_size": 10**20},
    ],
    ids=str,
)
def test_a_config_that_is_wrong_is_refused_by_its_file_and_key(folder, refused, changes):
    rewrite_config(folder, **changes)
    with refused(folder / CONFIG, *changes):
        load_model(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000], ids=lambda text: text[:9])
def test_a_config_that_is_no_json_object_is_refused_by_its_file(folder, refused, text):
    (folder / CONFIG).write_bytes(text)
    with refused(folder / CONFIG):
        load_model(folder)


# Saving that fails


def test_saving_into_no_folder_is_refused(tmp_path, refused):
    with refused(tmp_path / "nowhere"):
        save_model(model(), tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_saving_into_a_file_is_refused(tmp_path, refused):
    (tmp_path / "file").write_text("text")
    with refused(tmp_path / "file"):
        save_model(model(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_that_cannot_be_replaced_leaves_no_other_behind(tmp_path, refused, name):
    (tmp_path / name).mkdir()
    with refused(tmp_path):
        save_model(model(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} <= {WEIGHTS, CONFIG}


@pytest.mark.parametrize("size", [0, 100, 1000, 20_000])
def test_a_full_disk_leaves_nothing(tmp_path, refused, full_disk, size):
    with refused(tmp_path), full_disk(size):
        save_model(model(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_leaves_the_earlier_model(folder, refused, full_disk, size):
    with refused(folder), full_disk(size):
        save_model(model(seed=1), folder)
    assert same(load_model(folder), model())
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG, WEIGHTS]


def test_a_name_that_is_too_long_is_refused(tmp_path, refused):
    with refused(tmp_path, "cannot be written"):
        save_new_model(model(), tmp_path / (300 * "x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_a_folder_that_one_may_not_enter_is_refused(tmp_path, refused):
    (tmp_path / "closed").mkdir(mode=0)
    with refused(tmp_path / "closed", "cannot be written"):
        save_new_model(model(), tmp_path / "closed" / "out")


def test_others_may_read_what_they_may_read_of_any_file(folder):
    (folder / "plain").write_text("text")
    assert {file.stat().st_mode for file in folder.iterdir()} == {(folder / "plain").stat().st_mode}
