"""One thread for this room, its models being tiny; a cache of its own; and a text to train on."""

import pytest
import torch

from .tiny import words


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def text(tmp_path_factory):
    """A folder of files to train on, so short that every run sees more than one epoch."""
    folder = tmp_path_factory.mktemp("text")
    for split, n in {"train": 300, "validation": 150}.items():
        (folder / f"{split}.txt").write_text(words(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield str(folder)


@pytest.fixture
def config(text, tmp_path):
    """A function that makes the configuration of a short run, with changes such as {"model.learning_rate": 1.0}."""

    def config(changes=None):
        made = {
            "seed_everything": 0,
            "model": {
                "config": {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16},
                "learning_rate": 1e-2,
                "warmup_steps": 2,
            },
            "data": {"corpus": text, "batch_size": 4, "validation_tokens": 100},
            "trainer": {
                "accelerator": "cpu",
                "precision": "32-true",
                "max_steps": 8,
                "val_check_interval": 4,
                "log_every_n_steps": 2,
                "enable_progress_bar": False,
                "enable_checkpointing": False,
                "default_root_dir": str(tmp_path),
            },
        }
        for path, value in (changes or {}).items():
            *parents, key = path.split(".")
            place = made
            for parent in parents:
                place = place.setdefault(parent, {})
            place[key] = value
        return made

    return config
