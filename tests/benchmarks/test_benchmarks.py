"""What the benchmark measures, at sizes that take no time: the numbers are there, positive, and belong together."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from gpt2_ablate.benchmarks import attention, decoding, hardware, hf_baseline, timing, training
from gpt2_ablate.model import GPT2, GPT2Config

TINY = {"vocab_size": 300, "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64}
ROTARY = {**TINY, "positions": "rotary", "n_kv_head": 2, "window": 16}
CPU = torch.device("cpu")


def in_order(rate):
    return 0 < rate["low"] <= rate["median"] <= rate["high"]


class Told(list):
    def __call__(self, text):
        self.append(text)


class TestInterleaving:
    def test_every_candidate_runs_in_every_round(self):
        order = []
        seconds = timing.time_interleaved(
            {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, rounds=3, warm_up=1
        )
        assert all(set(order[n : n + 2]) == {"a", "b"} for n in range(0, 8, 2)) and len(order) == 8
        assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}

    def test_what_takes_longer_is_slower_by_as_much(self, monkeypatch):
        now = [0.0]

        def lasting(seconds):
            def run():
                now[0] += seconds

            return run

        monkeypatch.setattr("gpt2_ablate.benchmarks.timing.time.perf_counter", lambda: now[0])
        seconds = timing.time_interleaved({"fast": lasting(1.0), "slow": lasting(3.0)}, CPU, rounds=5)
        assert seconds == {"fast": 5 * [1.0], "slow": 5 * [3.0]}
        assert timing.ratio(seconds["fast"], seconds["slow"])["median"] == 3.0

    def test_a_ratio_is_taken_within_rounds(self):
        """A machine that slows down by ten half-way changes no ratio."""
        assert timing.ratio([1.0, 1.0, 10.0] * 2, [2.0, 2.0, 20.0] * 2) == {"median": 2.0, "low": 2.0, "high": 2.0}

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
    def test_each_takes_every_place_and_follows_each_equally_often(self, count):
        names = [str(n) for n in range(count)]
        rounds = [timing.balanced_order(names, n) for n in range(2 * count)]
        assert all(sorted(order) == names for order in rounds)
        for place in range(count):
            assert sorted(order[place] for order in rounds) == sorted(2 * names)
        pairs = Counter(pair for order in rounds for pair in itertools.pairwise(order))
        assert set(pairs.values()) <= {2} and len(pairs) == count * (count - 1)

    def test_five_rounds_have_no_interval(self):
        assert timing.ratio([1.0] * 5, [2.0] * 5) == {"median": 2.0, "low": None, "high": None}

    @pytest.mark.parametrize("rounds", [6, 7, 12, 21])
    def test_the_interval_covers_the_median_of_skewed_ratios(self, rounds):
        """In 95 of 100 measurements or more, and it is no wider than it has to be: the next narrower one covers less."""
        random, hits, measurements = np.random.default_rng(0), 0, 1000
        for _ in range(measurements):
            found = timing.ratio([1.0] * rounds, list(np.exp(random.exponential(size=rounds))))  # its median is 2
            hits += found["low"] <= 2 <= found["high"]
        spread = np.sqrt(0.05 * 0.95 / measurements)
        assert hits / measurements > 0.95 - 2 * spread
        assert rounds < 12 or found["low"] > 1 and hits / measurements < 0.995

    def test_rates_are_per_second(self):
        assert timing.rates([0.5, 0.25, 1.0], 10)["median"] == 20.0


@pytest.mark.parametrize("fields", [TINY, ROTARY], ids=["gpt2", "starcoder2"])
class TestTheBaseline:
    def test_it_is_the_same_size(self, fields):
        config = GPT2Config(**fields)
        ours = {tuple(sorted(p.shape)) for p in GPT2(config).parameters()}
        assert hf_baseline.build(config).num_parameters() == sum(p.numel() for p in GPT2(config).parameters()) and ours

    def test_it_is_the_same_function_where_heads_are_few(self, fields):
        config = GPT2Config(**{**fields, "n_kv_head": 1})
        assert hf_baseline.build(config).num_parameters() == sum(p.numel() for p in GPT2(config).parameters())

    def test_steps_are_timed_side_by_side(self, fields):
        told = Told()
        found = training.training_speeds(fields, 2, False, 6, CPU, told)
        assert in_order(found["ours"]) and in_order(found["transformers"]) and in_order(found["ratio"])
        assert 0 < found["share_of_peak"]["median"] < 1.5 and told[-1].endswith("8/8")

    def test_generation_is_timed_side_by_side(self, fields):
        found = decoding.against_generate(fields, "float32", 8, 4, 6, CPU, Told())
        for key in ("ours", "transformers", "ratio", "share_of_read", "our_prompt", "their_prompt", "prompt_ratio"):
            assert in_order(found[key]), key


def test_the_limits_of_the_machine():
    found = hardware.machine_limits(CPU, 2, Told())
    assert set(found) == {"float32", "bfloat16", "copy", "read"} and all(map(in_order, found.values()))
    assert 1e9 < found["float32"]["median"] < 1e15 and 1e8 < found["read"]["median"] < 1e13


def test_attention_at_two_lengths(monkeypatch):
    monkeypatch.setattr(attention, "TOKENS", 2048)
    found = attention.attention_speeds(2, 8, [1024, 2048], 2, CPU, Told())
    assert set(found["exponent"]) == {*attention.patterns(2), attention.SDPA}
    for name, by_length in found["seconds_per_token"].items():
        assert set(by_length) == {"1024", "2048"} and found["times_sdpa"][name]["1024"]["median"] > 0
    assert found["times_sdpa"][attention.SDPA]["2048"]["median"] == 1.0


def test_a_quadratic_cost_has_the_exponent_2():
    assert attention._exponent({str(n): {"median": 1e-9 * n} for n in (512, 1024, 2048, 4096)}) == pytest.approx(2)
    assert attention._exponent({str(n): {"median": 1e-6} for n in (1024, 2048, 4096)}) == pytest.approx(1)


def test_the_cache_is_counted_by_variant_and_context():
    found = decoding.by_context({"baseline": TINY, "both": ROTARY}, [16, 32], 3, 2, CPU, Told())
    assert all(in_order(row[c]) for row in found.values() for c in ("16", "32"))
    assert found["both"]["32"]["cache_bytes"] == found["both"]["16"]["cache_bytes"] < found["baseline"]["16"]["cache_bytes"]


def test_a_long_text_through_a_window():
    found = decoding.far_past_the_window(ROTARY, 60, 20, 6, CPU, Told())
    rows = found["stretches"]
    assert [row["tokens"] for row in rows] == [20, 40, 60] and len({row["cache_bytes"] for row in rows}) == 1
    assert in_order(found["late_against_early"])
