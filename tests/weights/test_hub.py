"""The hub, through a stand-in on this machine: cached, resumed, and every way to fail is one line."""

import os
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download

from gpt2_ablate.weights import load_pretrained
from gpt2_ablate.weights.hub import hub_name

from .hub_server import Hub
from .models import assert_same_function, flip, stock_gpt2

NAME = "someone/small-gpt2"


@pytest.fixture(scope="module")
def stock():
    return stock_gpt2()


@pytest.fixture
def repository(tmp_path, stock):
    """A repository with all that people put there; only config.json and model.safetensors are needed."""
    folder = tmp_path / "repository"
    stock.save_pretrained(folder)
    torch.save(stock.state_dict(), folder / "pytorch_model.bin")
    for name in ("tf_model.h5", "README.md", "64.tflite"):
        (folder / name).write_text("something else")
    return folder


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    hub = Hub(NAME, repository)
    with hub.serving() as address:
        use(monkeypatch, address, tmp_path / "cache")
        yield hub


def use(monkeypatch, address, cache):
    """What HF_ENDPOINT and HF_HOME do when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    for key, value in {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": True, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, key, value)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what arrives is kept in such pieces
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("openai-community/gpt2-medium", "openai-community/gpt2-medium"),
        ("distilgpt2", None),
        ("../gpt2", None),
        ("/gpt2", None),
        ("checkpoints/gpt2", None),
        ("./checkpoints/gpt2", None),
        ("~/gpt2", None),
        ("a/b/c", None),
        ("", None),
    ],
)
def test_names(source, name):
    assert hub_name(source) == name


def test_a_model_is_fetched_and_nothing_but_what_is_needed(hub, stock):
    assert_same_function(load_pretrained(NAME), stock)
    assert {name for name, _ in hub.ranges} == {"config.json", "model.safetensors"}


def test_a_second_time_nothing_is_fetched_and_no_network_is_needed(hub, stock, monkeypatch):
    load_pretrained(NAME)
    fetched = len(hub.ranges)
    assert_same_function(load_pretrained(NAME), stock)
    assert_same_function(load_pretrained(NAME, download=False), stock)
    assert len(hub.ranges) == fetched
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert_same_function(load_pretrained(NAME), stock)


def test_shards_are_fetched(hub, repository, stock):
    (repository / "model.safetensors").unlink()
    stock.save_pretrained(repository, max_shard_size="300KB")
    assert_same_function(load_pretrained(NAME), stock)
    assert "pytorch_model.bin" not in {name for name, _ in hub.ranges}


def test_a_pytorch_file_is_taken_where_there_is_no_other(hub, repository, stock):
    (repository / "model.safetensors").unlink()
    assert_same_function(load_pretrained(NAME), stock)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, stock):
    hub.breaks_at, hub.breaks = 100_000, 1
    assert_same_function(load_pretrained(NAME), stock)
    assert [wanted for name, wanted in hub.ranges if name == "model.safetensors"] == [None, "bytes=100000-"]


def test_a_download_that_breaks_off_is_one_line_and_leaves_no_part(hub, stock, refused, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(huggingface_hub.logging.get_logger("huggingface_hub"), "propagate", True)
    hub.breaks_at = 100_000
    with refused(NAME, "try again"):
        load_pretrained(NAME)
    assert not caplog.records  # the library would say at each attempt that it tries again
    assert not list((tmp_path / "cache").rglob("model.safetensors")) and not list((tmp_path / "cache").rglob("*.incomplete"))
    hub.breaks_at = None
    hub.ranges.clear()
    assert_same_function(load_pretrained(NAME), stock)
    assert hub.ranges == [("model.safetensors", None)]  # config.json has been kept


def test_a_name_that_does_not_exist_is_refused(hub, refused):
    with refused("someone/nothing", "no model", "checkpoints/gpt2"):
        load_pretrained("someone/nothing")


def test_a_model_without_weights_is_refused(hub, repository, refused):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (repository / name).unlink()
    with refused(NAME, "no weights", "model.safetensors"):
        load_pretrained(NAME)


def test_without_a_network_one_line_says_how_to_get_the_weights(tmp_path, monkeypatch, refused):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with refused("gpt2", "openai-community/gpt2", "config.json and model.safetensors", "checkpoints/gpt2"):
        load_pretrained("gpt2")


def test_the_cache_alone_asks_nobody(hub, refused):
    with refused(NAME):
        load_pretrained(NAME, download=False)
    assert not hub.requests


BY_HAND = "config.json and model.safetensors of openai-community/gpt2"


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("nowhere/rope/seed-0", [BY_HAND]),
        ("nowhere.safetensors", [BY_HAND]),
        ("/nowhere/at/all", [BY_HAND]),
        ("checkpoints/gpt2", [BY_HAND]),
        ("./checkpoints/gpt2", [BY_HAND]),
        ("./checkpoints/cpu/baseline/seed-0", [BY_HAND, "make ablate-all"]),
        ("out/checkpoints/cpu/baseline/seed-0", [BY_HAND, "make ablate-all"]),
    ],
    ids=str,
)
def test_a_path_that_is_not_there_asks_nobody_and_is_told_where_weights_come_from(
    hub, refused, tmp_path, monkeypatch, source, advice
):
    monkeypatch.chdir(tmp_path)
    with refused(f"{source}: ", *advice):
        load_pretrained(source)
    assert not hub.requests


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_flipped_bit_in_the_cache_is_refused(hub, repository, refused, tmp_path, name):
    if name == "pytorch_model.bin":
        (repository / "model.safetensors").unlink()
    load_pretrained(NAME)
    (file,) = (tmp_path / "cache").rglob(name)
    flip(file.resolve())
    with refused(file, "sha256"):
        load_pretrained(NAME)


def test_what_a_killed_download_left_is_removed(hub, stock, tmp_path):
    load_pretrained(NAME)
    blobs = next((tmp_path / "cache").rglob("blobs"))
    killed, running = (blobs / f"{n}.incomplete" for n in range(2))
    for file in (killed, running):
        file.write_bytes(b"part")
    os.utime(killed, (time.time() - 3600,) * 2)
    load_pretrained(NAME)
    assert running.exists() and not killed.exists()


def test_from_the_command_line(repository, tmp_path):
    """With the variables that the library knows, in a process of its own."""
    with Hub(NAME, repository).serving() as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}

        def convert(name):
            command = [sys.executable, "-m", "gpt2_ablate.cli", "convert", name, str(tmp_path / "out")]
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        missing = convert("someone/nothing")
        assert missing.returncode == 2 and not (tmp_path / "out").exists()
        assert missing.stderr.splitlines()[-1].startswith("gpt2-ablate: someone/nothing: ") and "Traceback" not in missing.stderr
        assert convert(NAME).returncode == 0
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.json", "model.safetensors"]
