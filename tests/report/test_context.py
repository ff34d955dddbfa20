"""When runs begin to use their context: by hand on made-up curves, and in words that a reader can rely on."""

import numpy as np
import pytest

from gpt2_ablate.records import Record
from gpt2_ablate.report.collect import study_facts
from gpt2_ablate.report.context import context_use
from gpt2_ablate.report.render import analysis

from ..study import tiny

STEPS = [100, 200, 300, 400]
PER_STEP = 64


def study(gains):
    """Records of {variant: [the gains of each seed]}, at the steps above."""
    found = []
    for name, of_seeds in gains.items():
        for seed, curve in enumerate(of_seeds):
            run = tiny.record(name, seed, 5.0 + 0.01 * seed)
            run["config"] = {
                "model": {"config": {"block_size": 32}}, "data": {"batch_size": 2}, "trainer": {"max_steps": 400},
            }  # fmt: skip
            run["curves"] = {"context_gain": [list(point) for point in zip(STEPS, curve, strict=True)]}
            found.append(Record.model_validate(run))
    return found


NEVER = [0.0, 0.01, -0.01, 0.02]


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        ([0.0, 0.0, 0.1, 0.2], 250),  # half way between two validations
        ([0.0, 0.04, 0.06, 0.2], 250),
        ([0.1, 0.2, 0.3, 0.4], 100),  # not later than the first
        ([0.0, 0.3, 0.0, 0.2], 325),  # for good, not once
        (NEVER, None),
        ([0.0, 0.3, 0.3, 0.05], None),
    ],
)
def test_a_run_begins_where_its_gain_crosses_for_the_last_time(curve, step):
    (found,) = context_use(study({"baseline": [curve]})).values()
    assert found.begins == [None if step is None else pytest.approx(step * PER_STEP)]
    assert found.gain.value == pytest.approx(curve[-1]) and found.begun == (step is not None)


def test_a_mean_is_of_variants_all_of_whose_runs_have_begun():
    early, late = [0.0, 0.1, 0.2, 0.3], [0.0, 0.0, 0.1, 0.3]
    found = context_use(study({"baseline": [NEVER, NEVER], "rope": [early, late], "gqa": [early, NEVER]}))
    assert found["baseline"].mean_begin is found["gqa"].mean_begin is None
    begins = found["rope"].begins
    assert found["rope"].mean_begin.value == pytest.approx(np.mean(begins)) and begins[0] < begins[1]
    assert [found[name].is_split for name in found] == [False, False, True]


def test_what_is_not_recorded_is_not_said():
    runs = study({"baseline": [NEVER], "rope": [NEVER]})
    assert context_use([]) == {} and context_use([runs[0], runs[1].model_copy(update={"curves": {}})]) == {}


def said(gains):
    return " ".join(analysis(study_facts(study(gains)), set()).split("## Results")[0].split())


def test_words():
    begun = [0.0, 0.1, 0.2, 0.3]
    text = said({"baseline": [NEVER] * 2, "rope": [begun] * 2, "gqa": [begun, NEVER]})
    assert "begins in all runs of rope, and has not begun in any of baseline; of gqa in 1 of 2 runs" in text
    assert "the means of gqa stand between two kinds of runs" in text
    text = said({"baseline": [NEVER] * 2, "rope": [NEVER] * 2})
    assert "No variant uses its far context yet" in text and "cannot show" in text
    text = said({"baseline": [begun] * 2, "rope": [begun] * 2})
    assert "begins in all runs of baseline and rope; see" in text
