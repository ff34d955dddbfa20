"""Run functions in child processes: a crash, a leak or a full memory ends the child alone."""

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

# Children are forked from a server that has imported what they all need, but has started no thread and touched no GPU: they
# start in milliseconds and inherit nothing that could deadlock.
_CONTEXT = multiprocessing.get_context("forkserver")
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Failure(Exception):
    """The child did not finish; one line says why."""


class MachineFailure(UserError):
    """The child failed for a reason that every other one would meet too, such as a full disk."""


def prepare(modules: list[str]) -> None:
    """Let the server import these modules; call it before the first child starts."""
    _CONTEXT.set_forkserver_preload(modules)


@dataclass(frozen=True)
class Job:
    """A call of function(*args, on_progress=...) in a child."""

    function: str  # "module:name"; by name, so that the parent need not import what only children use
    args: tuple
    log: Path  # file for what the child prints
    on_progress: Callable[[Any], None]  # called here with whatever the child calls its own on_progress with
    key: Any = None  # the caller's name for the job


def run_in_child(function: str, *args: Any, log: Path, on_progress: Callable[[Any], None], tick: Callable[[], None]) -> Any:
    """Run one `Job` and return its result; `tick` is called a few times a second in between.

    Raises:
        Failure: the child raised an exception or was killed.
        MachineFailure: it met a full or read-only disk.
    """
    [(_, result)] = run_side_by_side([Job(function, args, log, on_progress)], 1, tick)
    if isinstance(result, Failure):
        raise result
    return result


def run_side_by_side(jobs: Iterable[Job], at_once: int, tick: Callable[[], None]) -> Iterator[tuple[Job, Any]]:
    """Run each job in a child of its own and yield it with its result, or its Failure, as it ends.

    Args:
        jobs: taken one by one, as children become free.
        at_once: the most children at a time.
        tick: called a few times a second while no child reports anything.

    Raises:
        MachineFailure: a child met a full or read-only disk; the others are killed.
    """
    waiting = iter(jobs)
    running: dict[Connection, tuple[Job, BaseProcess]] = {}
    try:
        while True:
            for job in itertools.islice(waiting, at_once - len(running)):
                parent_end, child_end = _CONTEXT.Pipe()
                started = _CONTEXT.Process(target=_child, args=(job.function, job.args, job.log, child_end), daemon=True)
                started.start()
                child_end.close()
                running[parent_end] = job, started
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
                    kind, content = "failed", _describe_exit(process.exitcode)
                if kind == "progress":
                    job.on_progress(content)
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
    """Close the pipe, and kill the child if it does not end by itself."""
    pipe.close()
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()


def _child(function: str, args: tuple, log: Path, pipe: Connection) -> None:
    # Ctrl-C reaches the whole process group; the parent handles it and ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log, "a", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        pipe.send(("done", call(*args, on_progress=lambda content: pipe.send(("progress", content)))))
    except BrokenPipeError:
        os._exit(1)  # the parent is gone
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


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        memory = ", which is also what happens when memory runs out" if -exit_code == signal.SIGKILL else ""
        return f"killed by {name}{memory}"
    return f"ended without a result (exit status {exit_code})"
