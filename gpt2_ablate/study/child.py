"""Run a function in a process of its own, so that whatever happens to it happens to it alone."""

from __future__ import annotations

import errno
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from gpt2_ablate.errors import UserError

# Children are forked from a server that has already imported what they all need, but has started no thread and touched
# no GPU: they start in milliseconds and share nothing that can break.
_CONTEXT = multiprocessing.get_context("forkserver")
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Failure(Exception):
    """The child did not finish; the message is one line that says why."""


class MachineFailure(UserError):
    """The child failed for a reason that will fail every other one too, as a full disk."""


def prepare(modules: list[str]) -> None:
    """Let the server import these while the parent is busy with something else."""
    _CONTEXT.set_forkserver_preload(modules)


@dataclass(frozen=True)
class Job:
    """A call of function(*args, tell=send) for a child to make.

    Attributes:
        function: "module:name"; by name, so that the parent need not import what only children use.
        log: file that receives whatever the child prints.
        tell: receives what the child sends.
        key: whatever the caller knows the job by.
    """

    function: str
    args: tuple
    log: Path
    tell: Callable[[Any], None]
    key: Any = None


def run_in_child(function: str, *args: Any, log: Path, tell: Callable[[Any], None], tick: Callable[[], None]) -> Any:
    """Do one `Job` and return its result; tick is called a few times a second while nothing is sent.

    Raises:
        Failure: the child raised an exception or was killed.
        MachineFailure: it met a full disk or a place that cannot be written.
    """
    [(_, result)] = run_side_by_side([Job(function, args, log, tell)], 1, tick)
    if isinstance(result, Failure):
        raise result
    return result


def run_side_by_side(jobs: Iterable[Job], at_once: int, tick: Callable[[], None]) -> Iterator[tuple[Job, Any]]:
    """Do jobs, some at a time, each in a child of its own: yields every job with its result, or its Failure, as it ends.

    Args:
        jobs: the next one is asked for when a child is free to do it.
        at_once: how many children there are at most.
        tick: called a few times a second while no child sends anything.

    Raises:
        MachineFailure: a child met a full disk or a place that cannot be written; the others are ended.
    """
    waiting = iter(jobs)
    running: dict[Connection, tuple[Job, BaseProcess]] = {}
    try:
        while True:
            for job in itertools.islice(waiting, at_once - len(running)):
                ours, theirs = _CONTEXT.Pipe()
                started = _CONTEXT.Process(target=_child, args=(job.function, job.args, job.log, theirs), daemon=True)
                started.start()
                theirs.close()
                running[ours] = job, started
            if not running:
                return
            ready = cast(list[Connection], wait(running, timeout=0.25))
            if not ready:
                tick()
            for pipe in ready:
                job, process = running[pipe]
                try:
                    kind, content = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    kind, content = "failed", _why(process.exitcode)
                if kind == "told":
                    job.tell(content)
                    continue
                del running[pipe]
                _end(pipe, process)
                if kind == "machine":
                    raise MachineFailure(content)
                yield job, content if kind == "done" else Failure(content)
    finally:
        for pipe, (_, unfinished) in running.items():
            _end(pipe, unfinished)


def _end(pipe: Connection, process: BaseProcess) -> None:
    """Without its parent's ear, a child that is still at work has nothing to live for."""
    pipe.close()
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()


def _child(function: str, args: tuple, log: Path, pipe: Connection) -> None:
    # The parent is the one who is interrupted; it ends its child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log, "a", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        pipe.send(("done", call(*args, tell=lambda content: pipe.send(("told", content)))))
    except BrokenPipeError:
        os._exit(1)  # the parent is gone: nobody waits for this
    except BaseException as error:
        traceback.print_exc()
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in _FATAL):
            cause = cause.__cause__ or cause.__context__
        first_line = (str(error).splitlines() or [""])[0]
        text = first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}"
        if isinstance(cause, OSError) and str(cause.strerror) not in text:
            text = f"{text} ({cause.strerror}{f': {cause.filename}' if cause.filename else ''})"
        pipe.send(("machine" if cause is not None else "failed", text))
    sys.stdout.flush()


def _why(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        memory = ", which is also what happens when memory runs out" if -exit_code == signal.SIGKILL else ""
        return f"killed by {name}{memory}"
    return f"ended without a result (exit status {exit_code})"
