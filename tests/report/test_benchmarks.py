"""The benchmark report: what it says is what was measured, and which side is better."""

import copy

import pytest

from gpt2_ablate.report.render import templates, write_benchmarks

from ..study.tiny import table_under


def rate(median):
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


def against(median, low, high):
    return {"median": median, "low": low, "high": high}


PATTERNS = ("full", "window 128", "torch's SDPA, causal")
RESULTS = {
    "schema": 1, "quick": False, "device": "cpu", "seconds": 600.0,
    "environment": {"hardware": "a machine", "cores": 2, "threads": 2, "python": "3.12", "packages": {"torch": "2.13.0"}},
    "limits": {"float32": rate(150e9), "bfloat16": rate(400e9), "copy": rate(30e9), "read": rate(35e9)},
    "variants": {"key": "0", "variants": {
        name: {
            **{f"{what}_tokens_per_second{end}": 5000.0 for what in ("training", "decoding") for end in ("", "_low", "_high")},
            **{f"{what}_speed_ratio{end}": 1.2 for what in ("training", "decoding") for end in ("", "_low", "_high")},
            "training_peak_bytes": 3 * 2**20,
        }
        for name in ("baseline", "rope")
    }},
    "training": [{
        "name": "small, baseline", "config": {"block_size": 512}, "batch_size": 2, "architecture": "GPT2LMHeadModel",
        "ours": rate(6000), "transformers": rate(1500), "ratio": against(4.0, 3.5, 4.4),
        "kept_ratio": against(3.0, 2.5, 3.4), "compiled_against_transformers": against(4.6, 4.1, 5.0), "flops_per_step": 1e9,
        "share_of_peak": against(0.66, 0.6, 0.7), "compiled": rate(6600), "compiled_ratio": against(1.1, 1.05, 1.2),
        "compile_seconds": 42.0,
        "peak_bytes": {"ours": {"added": 100 * 2**20, "process": 1}, "transformers": {"added": 400 * 2**20, "process": 1}},
    }],
    "attention": {"4 heads of 32": {
        "seconds_per_token": {name: {"1024": rate(2e-6), "4096": rate(3e-6)} for name in PATTERNS},
        "times_sdpa": {name: {"1024": against(2.0, 1.5, 2.5), "4096": against(8.0, 7.0, 9.0)} for name in PATTERNS},
        "exponent": dict.fromkeys(PATTERNS, 1.01),
        "peak_bytes": {name: {"4096": 10 * 2**20} for name in ("full", "window 128")},
    }},
    "decoding": {
        "against_generate": [{
            "name": "baseline", "dtype": "bfloat16", "architecture": "GPT2LMHeadModel",
            "ours": rate(60), "transformers": rate(30), "ratio": against(2.0, 1.9, 2.1),
            "share_of_read": against(0.5, 0.4, 0.6), "our_prompt": rate(1000), "their_prompt": rate(900),
            "prompt_ratio": against(1.1, 0.9, 1.2),
        }],
        "by_context": {"1": {
            name: {"256": {**rate(50), "cache_bytes": 2**20}, "1024": {**rate(40), "cache_bytes": 4 * 2**20}}
            for name in ("baseline", "rope")
        }},
        "long_text": {
            "stretches": [
                {"tokens": n, "cache_bytes": 2**18, "process_bytes": 2**29} for n in (1024, 2048)
            ],
            "late_against_early": against(1.01, 0.98, 1.04), "early_tokens": 1500,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ((2.0, 1.5, 2.5), "ours is faster"), ((0.5, 0.4, 0.9), "transformers is faster"),
        ((1.1, 0.9, 1.2), "no clear difference"), ((1.1, 1.004, 1.2), "no clear difference"),
        ((2.0, None, None), "too few rounds to tell"),
    ],
)  # fmt: skip
def test_every_ratio_says_which_side_is_better_or_that_it_is_not_clear(ratio, words):
    say = templates().get_template("verdicts.md.j2").module
    assert words in say.faster(templates().filters["ratio"](against(*ratio)))


def test_the_tables_hold_what_was_measured(tmp_path):
    text = write_benchmarks(RESULTS, tmp_path)
    _, rope = table_under(text, "## The variants of the default study")
    assert "5 k" in rope[1] and "it is faster" in rope[2] and rope[5] == "3 MiB"
    (row,) = table_under(text, "## Training steps")
    assert row[0] == "small, baseline, 2 x 512" and "6 k" in row[1] and "1.50 k" in row[2]
    assert "4.00x [3.50, 4.40], ours is faster" in row[3] and row[6] == "0.25x, ours takes less" and row[7].startswith("66 %")
    assert "small, baseline: 3.00x [2.50, 3.40], ours is faster" in text and "transformers 4.60x" in text
    assert "1.10x [1.05, 1.20], compiled is faster" in text and "the first step took 42 s" in text
    generate, prompt = table_under(text, "## Generation")
    assert "2.00x" in generate[3] and "50 %" in generate[4] and "no clear difference" in prompt[3]
    assert "8.00 [7.00, 9.00]" in text and "256 KiB" in text


def test_its_figures_are_drawn(tmp_path):
    text = write_benchmarks(RESULTS, tmp_path)
    for name in ("bench_attention.png", "bench_decoding.png"):
        assert f"figures/{name}" in text and (tmp_path / name).stat().st_size > 5000


def test_a_quick_look_says_so(tmp_path):
    quick = copy.deepcopy(RESULTS) | {"quick": True}
    assert "quick look" in write_benchmarks(quick, tmp_path) and "quick look" not in write_benchmarks(RESULTS, tmp_path)
