"""The words, against snapshots in snapshots/*.md: whoever changes a template sees in the diff what a reader will read.

After a change that is meant: UPDATE_SNAPSHOTS=1 pytest tests/report/test_words.py, and commit what it wrote.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2_ablate.report.collect import study_facts
from gpt2_ablate.report.render import analysis, verification, write_benchmarks
from gpt2_ablate.utils import markdown

from ..study import tiny
from .curves import study
from .made_up import records
from .test_benchmarks import RESULTS

SNAPSHOTS = Path(__file__).parent / "snapshots"
ALIBI = {
    "title": "Linear biases (ALiBi)", "paper": "Press et al., arXiv 2108.12409, section 3", "idea": "Far keys weigh less.",
    "in_numbers": "The slopes of its {{ n_head }} heads are {{ slopes | listing }}.\n\nLeft out: {{ nothing }}.",
    "challenges": "Kernels need a bias.", "worth": "For long texts.",
}  # fmt: skip
ENVIRONMENT = {"hardware": "a machine", "cores": 2, "threads": 1, "python": "3.12", "packages": {"torch": "2.13.0"}}


def same_as_snapshot(name, text):
    file = SNAPSHOTS / f"{name}.md"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"see the docstring of {Path(__file__).name}"


def factorial():
    """A study with everything in it."""
    runs = tiny.full(tiny.study({("rope",): -0.3, ("gqa",): 0.2}), {"rope": (0.8, 0.7, 0.9), "gqa": (1.2, 1.1, 1.3)})
    for run in runs:
        run |= {
            "environment": ENVIRONMENT,
            "kernels": ["causal"],
            "precision": "32",
            "invocation": {"preset": "cpu", "at_once": 2},
        }
        run["hf_architecture"] = None if "swa" in run["variant"] else "Starcoder2ForCausalLM"
        run["metrics"] |= {f"training_peak_bytes{end}": 1e7 for end in ("_low", "_high")}
    return runs


def costly():
    """A change from outside that costs more, beside the baseline."""
    runs = tiny.full(tiny.study(variants=("baseline",)))
    for seed in (0, 1, 2):
        (run,) = tiny.full([tiny.record("alibi", seed, 5.0 + 0.01 * seed, factors=["alibi"], texts=ALIBI)])
        run["config"]["model"]["config"] |= {"positions": {"name": "alibi.py:ALiBi"}, "slopes": [0.5, 0.25]}
        run["metrics"] |= {"training_flops_per_token": 9.5e6, "parameters_gate": 3000, "parameters_total": 803_000}
        run["metrics"] |= {"max_length": None, "validation_loss_beyond": 5.1, "validation_loss_within": 4.9}
        run["metrics"] |= {"decoding_speed_ratio": 0.5, "decoding_speed_ratio_low": 0.4, "decoding_speed_ratio_high": 0.6}
        runs.append(run)
    return runs


def converted():
    runs = tiny.study({("gqa",): 0.25}, noise=0.005, variants=["baseline", "gqa"])
    for run in runs:
        run["metrics"]["validation_loss_before"] = 7.0 + (run["variant"] == "gqa")
    return runs


def rated():
    """At several learning rates: one verdict turns, one best rate is at an edge, one rate diverges, one variant has its own."""
    runs = tiny.rated({"baseline": 2.2e-3, "rope": 9e-3, "gqa": 2e-3}, base={"rope": 5.7})
    runs += [tiny.record("fast", s, 5.95 + s / 1000, config={"model": {"learning_rate": 0.02}}) for s in (0, 1, 2)]
    for run in runs:
        if (run.get("stage"), run["variant"], run["config"]["model"]["learning_rate"]) == ("tuning", "gqa", 4e-3):
            run |= {"status": "failed", "metrics": {}, "error": "the loss became nan by step 40"}
    return runs


STUDIES = {
    "factorial": factorial(),
    "costly": costly(),
    "converted": converted(),
    "rated": rated(),
    "rated_alike": tiny.rated({"baseline": 2e-3, "rope": 2.1e-3, "gqa": 1.9e-3}, base={"rope": 5.9, "gqa": 6.1}),
    "equal": study({"rope": 1.5, "gqa": 0.99, "far": 6.0}, {"gqa": 0.8}, {"rope": 0.95, "gqa": 1.1}),
    "one_seed": tiny.study(seeds=(0,), variants=("baseline", "rope")),
    "some_failed": [*tiny.study(variants=("baseline", "rope"), seeds=(0, 1)), tiny.failed("gqa", 0)],
    "none_finished": [tiny.failed("rope", 0)],
}
ALL = {"loss_curves", "effects", "conversion", "quality_against_cost", "loss_by_position", "cost_against_context"}
FIGURES = {
    "factorial": ALL - {"conversion"},
    "converted": {"conversion"},
    "rated": {"loss_against_rate"},
    "equal": {"loss_against_compute"},
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_analysis(name):
    same_as_snapshot(f"analysis_{name}", analysis(study_facts(records(STUDIES[name])), FIGURES.get(name, set())))


def test_a_change_that_costs_more_is_said_to_cost_more():
    text = analysis(study_facts(records(costly())), set()).split("## Each change")[1].split("## Samples")[0]
    assert "takes 90.0 % more training compute" in text and "saves" not in text
    assert "The slopes of its 2 heads are 0.5 and 0.25." in text and "Left out" not in text
    assert "gate 3 k (new)" in text and "Generates slower than the baseline: 0.50x [0.40, 0.60]" in text


def test_the_benchmarks(tmp_path):
    same_as_snapshot("benchmarks", write_benchmarks(RESULTS, tmp_path))


@pytest.mark.parametrize("name", ["passed", "failed"])
def test_the_verification(name):
    found = {"passed": (True, None), "failed": (True, False)}[name]
    checks = [SimpleNamespace(name=f"check {n}", found="a | b", wanted="1e-4", passed=p) for n, p in enumerate(found)]
    same_as_snapshot(f"verification_{name}", verification("random, seed 0", checks, ENVIRONMENT))


@pytest.mark.parametrize("record", [None, factorial()[0]], ids=["unknown", "trained"])
def test_the_model_card(record):
    from gpt2_ablate.weights.export import model_card

    sizes = dict(n_layer=2, n_head=4, n_embd=16, block_size=32, vocab_size=97)
    config = SimpleNamespace(**sizes, positions="rotary", window=8, kv_heads=1)
    weight = SimpleNamespace(numel=lambda: 12_345)
    model, architecture = SimpleNamespace(config=config, parameters=lambda: [weight]), SimpleNamespace(class_name="Starcoder2")
    same_as_snapshot("model_card" if record else "model_card_unknown", model_card(model, architecture, record))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a\n  b\n, c\n", "a b, c\n"),
        ("- a\n\n- b\n\n\nc", "- a\n- b\n\nc\n"),
        ("| a  |\n| b |\n\n\n| c |", "| a  |\n| b |\n\n| c |\n"),
        ("# a\nb", "# a\nb\n"),
        ("```text\n--- a\n\n\n b\n```\nc", "```text\n--- a\n\n\n b\n```\nc\n"),
    ],
)
def test_lines_of_a_template_become_paragraphs(written, read):
    assert markdown.tidy(written) == read


def test_an_untrusted_text_reaches_nothing():
    (run,) = [run for run in costly() if run["variant"] == "alibi" and run["seed"] == 0]
    run["texts"] = {**ALIBI, "in_numbers": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "idea": "{{ 1 + 1 }}"}
    facts = study_facts(records([run]))
    assert facts.by_name["alibi"].in_numbers == [] and facts.problems
    assert facts.by_name["alibi"].text("idea") == "{{ 1 + 1 }}"
