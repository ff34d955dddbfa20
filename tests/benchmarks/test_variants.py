"""The pass after training: the speed of all variants in one process, the memory of each in its own."""

import pytest
import torch

from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.utils import process


@pytest.fixture
def measure(tmp_path):
    """A function that measures as a study does; what it told is in measure.told."""

    def run(what, *args):
        name = f"gpt2_ablate.benchmarks.measurements:{what}"
        return process.run_in_child(name, *args, log=tmp_path / "log", on_progress=run.told.append, tick=lambda: None)

    run.told = []
    return run


def config(**changes):
    return {**dict(vocab_size=5000, block_size=40, n_layer=1, n_head=2, n_embd=16), **changes}


def test_speeds_of_all_variants(measure):
    configs = {"baseline": config(), "rope": config(positions="rotary"), "large": config(n_embd=256, n_layer=2)}
    found = measure("speed", configs, 2)
    assert list(found) == list(configs)
    for speed in found.values():
        assert speed["training_tokens_per_second"] > 0 and speed["decoding_tokens_per_second"] > 0
        assert speed["matmul_peak_flops_per_second"] > 1e8
    assert found["baseline"]["training_speed_ratio"] == found["baseline"]["decoding_speed_ratio"] == 1.0
    assert found["large"]["training_speed_ratio"] < 1
    assert any("training" in words for words in measure.told) and any("decoding" in words for words in measure.told)


def test_memory_is_that_of_weights_gradients_and_moments_at_least(measure):
    """What the libraries themselves take is the same for both."""
    peaks, weights = {}, {}
    for width in (64, 512):
        sizes = config(n_layer=2, n_embd=width)
        peaks[width] = measure("memory", sizes, 2)
        with torch.device("meta"):
            weights[width] = sum(p.nbytes for p in GPT2(GPT2Config(**sizes)).parameters())
        assert peaks[width] > 4 * weights[width]
    assert peaks[512] - peaks[64] > 3.5 * (weights[512] - weights[64])


def test_what_one_measurement_took_does_not_show_in_the_next(measure):
    small = config()
    before = measure("memory", small, 2)
    measure("memory", config(n_layer=2, n_embd=512), 2)
    assert measure("memory", small, 2) < 1.5 * before
