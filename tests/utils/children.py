"""What children do in test_process.py; imported by name in processes of their own."""

import os
import signal
import sys
import time

from gpt2_ablate.errors import UserError


def add(a, b, on_progress):
    on_progress({"adding": [a, b]})
    print("printed by the child")
    print("and complained", file=sys.stderr)
    return a + b


def fail(on_progress):
    raise RuntimeError("the first line\nthe second line")


def fail_without_words(on_progress):
    raise RuntimeError


def refuse(on_progress):
    raise UserError("batch_size: 0 is too small; give 1 or more")


def kill(name, on_progress):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(10)


def leave(on_progress):
    os._exit(7)


def meet(number, on_progress):
    try:
        raise OSError(number, os.strerror(number), "/some/file")
    except OSError as error:
        raise RuntimeError("saving went wrong") from error


def wait(seconds, on_progress):
    on_progress({"pid": os.getpid()})
    time.sleep(seconds)


def pid(on_progress):
    return os.getpid(), os.getppid()


def train_until(stop_at, run, fingerprint, folder, logs, on_progress):
    """A real run that breaks down after a step, or when a phase begins, or not at all."""
    from gpt2_ablate.study.worker import train_run

    def pass_on(news):
        on_progress(news)
        if stop_at in (news.get("step"), news.get("phase")) and stop_at:
            raise RuntimeError("broke down")

    train_run(run, fingerprint, folder, logs, 1, on_progress=pass_on)


def meet_at(mine, yours, on_progress):
    mine.touch()
    end = time.monotonic() + 60
    while not yours.exists():
        if time.monotonic() > end:
            return "waited in vain"
        time.sleep(0.01)
    return "met"


def meet_later(number, on_progress):
    time.sleep(1)
    meet(number, on_progress)
