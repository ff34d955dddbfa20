"""What happens in a child happens to it alone, and one line says how it ended."""

import errno
import os
import time
from functools import partial

import psutil
import pytest

from gpt2_ablate.errors import UserError
from gpt2_ablate.utils import process

from ..study.tiny import refusal, wait_until


@pytest.fixture
def call(tmp_path):
    """A function that runs a function of children.py; what that reports is in call.reported."""

    def run(name, *args, on_progress=None, tick=lambda: None):
        child, log = f"{__package__}.children:{name}", tmp_path / "log"
        return process.run_in_child(child, *args, log=log, on_progress=on_progress or run.reported.append, tick=tick)

    run.reported, run.log = [], tmp_path / "log"
    return run


def test_result_news_and_prints_come_back(call):
    assert call("add", 2, 3) == 5
    assert call.reported == [{"adding": [2, 3]}]
    assert call.log.read_text() == "printed by the child\nand complained\n"


def test_the_log_of_an_earlier_child_is_kept(call):
    call("add", 2, 3)
    call("add", 2, 3)
    assert call.log.read_text().count("printed by the child") == 2


def test_every_call_has_a_process_of_its_own(call):
    (first, _), (second, _) = call("pid"), call("pid")
    assert len({first, second, os.getpid()}) == 3


def test_an_exception_is_one_line_and_its_traceback_is_in_the_log(call):
    with pytest.raises(process.Failure) as raised:
        call("fail")
    assert refusal(raised) == "RuntimeError: the first line"
    assert "Traceback" in call.log.read_text() and "the second line" in call.log.read_text()


def test_an_exception_without_words_has_a_name(call):
    with pytest.raises(process.Failure, match="RuntimeError"):
        call("fail_without_words")


def test_a_users_error_is_reported_as_it_is(call):
    with pytest.raises(process.Failure) as raised:
        call("refuse")
    assert refusal(raised) == "batch_size: 0 is too small; give 1 or more"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_signal_is_reported_by_name(call, name):
    with pytest.raises(process.Failure) as raised:
        call("kill", name)
    assert name in refusal(raised)
    assert ("memory" in refusal(raised)) == (name == "SIGKILL")


def test_an_end_without_a_result_is_reported(call):
    with pytest.raises(process.Failure, match="7"):
        call("leave")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_will_fail_every_other_run_too_is_the_users_to_mend(call, number):
    """Also where it is only the cause of what was raised. One line says what, and where."""
    with pytest.raises(UserError) as raised:
        call("meet", number)
    assert os.strerror(number) in refusal(raised) and "/some/file" in refusal(raised)


def test_other_errors_of_the_system_concern_one_run(call):
    with pytest.raises(process.Failure):
        call("meet", errno.ENOENT)


def test_while_nothing_is_reported_tick_is_called(call):
    ticks = []
    call("wait", 1.1, tick=lambda: ticks.append(time.monotonic()))
    assert len(ticks) >= 3


def test_a_child_does_not_outlive_a_parent_that_stops(call):
    reported, start = [], time.monotonic()

    def stop(news):
        reported.append(news)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("wait", 60, on_progress=stop)
    wait_until(lambda: not psutil.pid_exists(reported[0]["pid"]), 10)
    assert time.monotonic() - start < 30  # it did not wait for the child's own end


def test_a_function_that_is_not_there_is_a_failure(call):
    with pytest.raises(process.Failure, match="nonesuch"):
        call("nonesuch")


class TestSideBySide:
    @pytest.fixture
    def jobs(self, tmp_path):
        """Jobs by name; what they report is in jobs.reported as (key, news)."""

        def make(*calls):
            return [
                process.Job(f"{__package__}.children:{name}", args, tmp_path / f"log-{key}", partial(on_progress, key), key)
                for key, (name, *args) in enumerate(calls)
            ]

        def on_progress(key, news):
            make.reported.append((key, news))

        make.reported = []
        return make

    def test_every_job_ends_with_its_own_result(self, jobs):
        ended = process.run_side_by_side(jobs(("add", 1, 2), ("add", 3, 4), ("add", 5, 6)), 2, lambda: None)
        assert {job.key: result for job, result in ended} == {0: 3, 1: 7, 2: 11}
        assert sorted(jobs.reported) == [(0, {"adding": [1, 2]}), (1, {"adding": [3, 4]}), (2, {"adding": [5, 6]})]

    def test_so_many_at_once_and_no_more(self, jobs):
        """A job is asked for only when there is a child to do it."""
        given, ended = [], 0

        def one_by_one():
            for job in jobs(*[("wait", 0.2)] * 5):
                given.append(job)
                yield job

        for _ in process.run_side_by_side(one_by_one(), 2, lambda: None):
            ended += 1
            assert len(given) - ended <= 2
        assert ended == 5

    def test_two_are_at_work_at_the_same_time(self, jobs, tmp_path):
        """Each waits for a file that the other one makes."""
        a, b = tmp_path / "a", tmp_path / "b"
        ended = process.run_side_by_side(jobs(("meet_at", a, b), ("meet_at", b, a)), 2, lambda: None)
        assert [result for _, result in ended] == ["met", "met"]

    def test_a_failure_leaves_its_neighbour_alone(self, jobs):
        ended = process.run_side_by_side(jobs(("kill", "SIGKILL"), ("add", 1, 2), ("fail",), ("add", 3, 4)), 2, lambda: None)
        results = {job.key: result for job, result in ended}
        assert (results[1], results[3]) == (3, 7)
        assert isinstance(results[0], process.Failure) and "SIGKILL" in str(results[0])
        assert isinstance(results[2], process.Failure) and "the first line" in str(results[2])

    def test_a_full_disk_ends_the_neighbour_too(self, jobs):
        with pytest.raises(UserError):
            list(process.run_side_by_side(jobs(("wait", 60), ("meet_later", errno.ENOSPC)), 2, lambda: None))
        ((_, news),) = jobs.reported
        wait_until(lambda: not psutil.pid_exists(news["pid"]), 10)
