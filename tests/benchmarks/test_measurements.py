"""Speeds and memory that were measured before are used again, if they are those of these models and whole."""

import json

import pytest

from gpt2_ablate.benchmarks import measurements
from gpt2_ablate.benchmarks.measurements import earlier, key_of

CONFIGS = {"baseline": {"n_layer": 2}, "rope": {"n_layer": 2, "positions": "rotary"}}
FOUND = {"baseline": {"training_tokens_per_second": 1.0}, "rope": {"training_tokens_per_second": 2.0}}


def written(tmp_path, content):
    file = tmp_path / "measurements.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_what_was_measured_for_the_same_models_comes_back(tmp_path):
    whole = {"key": key_of(CONFIGS, 2), "variants": FOUND}
    assert earlier(written(tmp_path, whole), CONFIGS, 2) == FOUND
    assert earlier(written(tmp_path, {"variants": whole}), CONFIGS, 2, "variants") == FOUND


def test_other_models_and_other_batches_are_measured_anew(tmp_path):
    file = written(tmp_path, {"key": key_of(CONFIGS, 2), "variants": FOUND})
    assert earlier(file, CONFIGS, 4) is None
    assert earlier(file, {**CONFIGS, "gqa": {}}, 2) is None


def test_a_default_that_is_said_is_the_same_model(tmp_path):
    file = written(tmp_path, {"key": key_of(CONFIGS, 2), "variants": FOUND})
    assert earlier(file, {**CONFIGS, "baseline": {"n_layer": 2, "window": None}}, 2) == FOUND


@pytest.mark.parametrize("changed", [{"hardware": "another"}, {"git_commit": "another"}, {"packages": {"torch": "another"}}])
def test_another_machine_or_other_code_is_measured_anew(tmp_path, monkeypatch, changed):
    file = written(tmp_path, {"key": key_of(CONFIGS, 2), "variants": FOUND})
    here = measurements.environment()
    monkeypatch.setattr(measurements, "environment", lambda: {**here, **changed})
    assert earlier(file, CONFIGS, 2) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", {"key": "?"}, {"variants": {"baseline": 5, "rope": 5}}, {"variants": {"baseline": {}}}, {"variants": 3}],
)
def test_what_is_not_whole_is_measured_anew(tmp_path, content):
    if isinstance(content, dict):
        content = {"key": key_of(CONFIGS, 2), **content}
    assert earlier(written(tmp_path, content), CONFIGS, 2) is None
    assert earlier(tmp_path / "nothing.json", CONFIGS, 2) is None
