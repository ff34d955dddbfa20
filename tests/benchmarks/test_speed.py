"""Speeds are positive and compare within one process; that memory is what training adds is tested in tests/study."""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from gpt2_ablate.benchmarks.measurements import decoding_speed, training_speed
from gpt2_ablate.benchmarks.training import peak_memory, training_step
from gpt2_ablate.model import GPT2, GPT2Config

SMALL = dict(vocab_size=97, block_size=48, n_layer=1, n_head=2, n_embd=16)
CPU = torch.device("cpu")
CONFIGS = {
    "rope": GPT2Config(**SMALL, positions="rotary"),
    "baseline": GPT2Config(**SMALL),
    "all": GPT2Config(**SMALL, positions="rotary", n_kv_head=1, window=8),
    "large": GPT2Config(**{**SMALL, "n_embd": 512, "n_layer": 4}),
}


def measured(what, configs):
    """The metrics of each, without the "training_" or "decoding_" in front; and what was told."""
    told = []
    if what == "training":
        found = training_speed(configs, 2, "32-true", CPU, told.append)
    else:
        found = decoding_speed(configs, CPU, told.append)
    return {name: {key.removeprefix(f"{what}_"): value for key, value in own.items()} for name, own in found.items()}, told


@pytest.fixture(scope="module", params=["training", "decoding"])
def all_measured(request):
    return measured(request.param, CONFIGS)


def test_speeds_are_positive_and_in_order(all_measured):
    found, told = all_measured
    assert list(found) == list(CONFIGS)
    for speed in found.values():
        assert 0 < speed["tokens_per_second_low"] <= speed["tokens_per_second"] <= speed["tokens_per_second_high"]
        assert 0 < speed["speed_ratio_low"] <= speed["speed_ratio"] <= speed["speed_ratio_high"]
    assert [text.partition("speed, ")[2] for text in told] == [f"round {n + 1}/{len(told)}" for n in range(len(told))]


def test_the_baseline_is_compared_with_itself(all_measured):
    found, _ = all_measured
    assert [found["baseline"][f"speed_ratio{end}"] for end in ("", "_low", "_high")] == [1.0, 1.0, 1.0]
    assert found["large"]["speed_ratio"] < 1  # some 2000 times the work


@pytest.mark.parametrize("what", ["training", "decoding"])
def test_without_a_baseline_the_first_is_it(what):
    found, _ = measured(what, {name: CONFIGS[name] for name in ("large", "rope")})
    assert found["large"]["speed_ratio"] == 1.0 and found["rope"]["speed_ratio"] > 1


def test_a_ratio_is_the_median_of_those_of_the_rounds(monkeypatch):
    """By this clock a step of the baseline takes a second, one with rotary positions two."""
    now = [0.0]

    def lasting(config, *_):
        def step():
            now[0] += 1 if config.positions == "learned" else 2

        return step

    monkeypatch.setattr("gpt2_ablate.benchmarks.measurements.training_step", lasting)
    monkeypatch.setattr("gpt2_ablate.benchmarks.timing.time.perf_counter", lambda: now[0])
    found, _ = measured("training", {"baseline": CONFIGS["baseline"], "rope": CONFIGS["rope"]})
    assert found["rope"]["speed_ratio"] == found["rope"]["speed_ratio_low"] == 0.5
    assert found["baseline"]["tokens_per_second"] == 2 * 48


@pytest.mark.parametrize(("block_size", "generated"), [(48, 32), (8, 7)], ids=["long", "shorter than what is decoded"])
def test_decoding_counts_the_tokens_that_it_generates(monkeypatch, block_size, generated):
    """Every measurement takes a second by this clock."""
    clock = itertools.count()
    monkeypatch.setattr("gpt2_ablate.benchmarks.timing.time.perf_counter", lambda: float(next(clock)))
    found, _ = measured("decoding", {"baseline": GPT2Config(**{**SMALL, "block_size": block_size})})
    assert found["baseline"]["tokens_per_second"] == generated


def peak_of_training():
    return peak_memory(lambda: training_step(CONFIGS["large"], 2, "32-true", CPU), CPU)["added"]


def test_memory_holds_weights_gradients_and_averages():
    """In a fresh process, as the docstring says."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        found = fresh.submit(peak_of_training).result()
    assert found > 4 * 4 * sum(p.numel() for p in GPT2(CONFIGS["large"]).parameters())
