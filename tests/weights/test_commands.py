"""`gpt2-ablate convert` and `gpt2-ablate export`, as a user calls them."""

import json

import pytest
import torch
import transformers

from gpt2_ablate.cli import main
from gpt2_ablate.weights import convert, load_pretrained
from gpt2_ablate.weights.folder import save_model

from .models import assert_same_function, same, tiny_model, tokens


@pytest.fixture
def checkpoint(tmp_path):
    """A folder as a finished run leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(tiny_model(n_head=8), folder)
    return folder


@pytest.fixture
def fails(capsys):
    """`fails(*arguments)`: the command ends with status 2; its one line."""

    def fails(*arguments):
        assert main([str(a) for a in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return fails


def call(*arguments):
    assert main([str(a) for a in arguments]) == 0


def test_convert_writes_a_folder_that_can_be_opened_again(checkpoint, tmp_path):
    call("convert", checkpoint, tmp_path / "out", "--n-kv-head", 2, "--positions", "rotary", "--window", 6)
    made = load_pretrained(tmp_path / "out")
    assert (made.config.n_kv_head, made.config.positions, made.config.window) == (2, "rotary", 6)
    assert same(made, convert(tiny_model(n_head=8), made.config))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "run"]


def test_convert_without_changes_is_a_copy_in_our_form(checkpoint, tmp_path):
    call("convert", checkpoint, tmp_path / "copy")
    assert same(load_pretrained(tmp_path / "copy"), tiny_model(n_head=8))


def test_how_and_seed_are_heard(checkpoint, tmp_path):
    for n, words in enumerate([("--how", "first"), ("--how", "random"), ("--how", "random", "--seed", 1)]):
        call("convert", checkpoint, tmp_path / f"{n}", "--n-kv-head", 2, *words)
    first, random, other = (load_pretrained(tmp_path / f"{n}") for n in range(3))
    assert same(first, convert(tiny_model(n_head=8), first.config, "first"))
    assert same(other, convert(tiny_model(n_head=8), first.config, "random", 1)) and not same(random, other)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("--n-kv-head", 3), "n_kv_head"),
        (("--n-kv-head", 0), "n_kv_head"),
        (("--positions", "alibi"), "positions"),
        (("--window", 0), "window"),
        (("--how", "median"), "how"),
        (("--seed", -1), "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(checkpoint, tmp_path, fails, words, key):
    assert key in fails("convert", checkpoint, tmp_path / "out", *words)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_place_that_is_taken_is_one_line_and_stays(checkpoint, tmp_path, fails, command):
    assert str(tmp_path) in fails(command, checkpoint, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("command", ["convert", "export"])
def test_no_checkpoint_is_one_line(tmp_path, fails, command):
    assert str(tmp_path / "nowhere") in fails(command, tmp_path / "nowhere", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path, fails, full_disk, command):
    with full_disk(10_000):
        line = fails(command, checkpoint, tmp_path / "out")
    assert f"{tmp_path / 'out'}: " in line and [file.name for file in tmp_path.iterdir()] == ["run"]


def record(checkpoint, **changes):
    content = {
        "schema": 1, "variant": "baseline", "seed": 0, "status": "finished", "preset": "cpu", "config": {},
        "metrics": {"validation_loss": 6.0625}, **changes,
    }  # fmt: skip
    (checkpoint / "record.json").write_text(json.dumps(content))


def test_export_writes_what_transformers_opens_with_the_numbers_of_the_run(checkpoint, tmp_path):
    record(checkpoint)
    call("export", checkpoint, tmp_path / "out")
    assert_same_function(tiny_model(n_head=8), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    assert "6.062" in (tmp_path / "out" / "README.md").read_text()


def test_export_of_a_run_that_is_not_finished_states_no_numbers(checkpoint, tmp_path):
    record(checkpoint, status="failed")
    call("export", checkpoint, tmp_path / "out")
    assert "6.062" not in (tmp_path / "out" / "README.md").read_text()


def test_a_broken_record_is_one_line(checkpoint, tmp_path, fails):
    (checkpoint / "record.json").write_text("{")
    assert "record.json" in fails("export", checkpoint, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_what_transformers_has_not_is_one_line(checkpoint, tmp_path, fails):
    call("convert", checkpoint, tmp_path / "gqa", "--n-kv-head", 2)
    assert "n_kv_head" in fails("export", tmp_path / "gqa", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_converted_and_exported_and_read_again(checkpoint, tmp_path):
    call("convert", checkpoint, tmp_path / "one", "--positions", "rotary", "--n-kv-head", 1)
    call("export", tmp_path / "one", tmp_path / "two")
    with torch.no_grad():
        one, two = (load_pretrained(tmp_path / name)(tokens()) for name in ("one", "two"))
    assert torch.equal(one, two)
