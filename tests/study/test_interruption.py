"""A study is stopped in every way there is, and goes on each time; in the end nobody can tell."""

import os
import shutil
import signal
from types import SimpleNamespace

import pytest

from .tiny import checkpoint_in, cli, finish, kill_group, members, outcome, record_of, start, wait_until

STUDY = ("ablate", "--preset", "tiny.yaml", "--variants", "baseline,rope", "--out", "out")


@pytest.fixture(scope="module")
def story(trained, tmp_path_factory):
    """One study of four runs, in four sittings; what was seen of each."""
    folder = tmp_path_factory.mktemp("interrupted")
    for name in ("corpus.txt", "tiny.yaml"):
        shutil.copy(trained / name, folder)
    runs, seen = folder / "out" / "checkpoints" / "tiny", SimpleNamespace(out=folder / "out")

    def train_up_to(run):
        process = start(folder, *STUDY)
        seen.running.append(process)
        checkpoint_in(runs / run, process)
        return process

    def records():
        return {file.parent: (file.stat().st_mtime_ns, file.read_bytes()) for file in runs.rglob("record.json")}

    seen.running = []
    try:
        # First, only the parent is killed.
        process = train_up_to("baseline/seed-0")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not members(process), 30)  # what it had started ends by itself
        seen.after_parent = records()

        # Then a second study comes along while the first one stands still, and the first is stopped with Ctrl-C.
        process = train_up_to("rope/seed-0")
        os.killpg(process.pid, signal.SIGSTOP)
        seen.second = cli(folder, *STUDY)
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        seen.stopped = process.returncode, out, err
        wait_until(lambda: not members(process), 30)
        seen.after_stop = records()

        # Then all of it is killed at once.
        process = train_up_to("baseline/seed-1")
        kill_group(process)
        process.communicate()
        seen.after_kill = records()

        seen.last = finish(start(folder, *STUDY))
        seen.after_all = records()
        yield seen
    finally:
        for process in seen.running:
            kill_group(process)


def test_each_stop_came_in_the_middle_of_a_run(story):
    assert len(story.after_parent) == 0 and len(story.after_stop) == 1 and len(story.after_kill) == 2


def test_ctrl_c_ends_with_status_2_and_one_line_that_says_how_to_go_on(story):
    status, out, err = story.stopped
    assert status == 2
    assert err.count("\n") == 1 and "same command" in err and "Traceback" not in out + err


def test_a_second_study_in_the_same_place_is_refused(story):
    status, out, err = story.second
    assert status == 2
    assert err.count("\n") == 1 and "another study" in err and "out" in err
    assert "started" not in out


def test_runs_that_had_finished_are_left_alone(story):
    for earlier in (story.after_stop, story.after_kill):
        assert all(story.after_all[folder] == earlier[folder] for folder in earlier)


def test_the_last_sitting_ends_the_study(story):
    status, out, err = story.last
    assert status == 0, err
    assert "2 runs to do, 2 kept" in out and len(story.after_all) == 4
    assert list(story.out.rglob("*.ckpt")) == [] and list(story.out.rglob("*partial*")) == []


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("variant", ["baseline", "rope"])
def test_the_outcome_is_that_of_an_uninterrupted_study_bit_for_bit(story, trained, variant, seed):
    assert outcome(record_of(story.out, variant, seed)) == outcome(record_of(trained / "out", variant, seed))
    weights = f"checkpoints/tiny/{variant}/seed-{seed}/model.safetensors"
    assert (story.out / weights).read_bytes() == (trained / "out" / weights).read_bytes()
