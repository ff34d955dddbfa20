"""Run a function in a process of its own, so that whatever happens to it happens to it alone."""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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


def run_in_child(function: str, *args: Any, log: Path, tell: Callable[[Any], None], tick: Callable[[], None]) -> Any:
    """Call function(*args, tell=send) in a child and return its result.

    Args:
        function: "module:name"; by name, so that the parent need not import what only children use.
        log: file that receives whatever the child prints.
        tell: receives what the child sends.
        tick: called a few times a second while nothing is sent.

    Raises:
        Failure: the child raised an exception or was killed.
        MachineFailure: it met a full disk or a place that cannot be written.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_child, args=(function, args, log, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(0.25):
                tick()
                continue
            try:
                kind, content = ours.recv()
            except (EOFError, OSError):
                process.join()
                raise Failure(_why(process.exitcode)) from None
            if kind == "told":
                tell(content)
            elif kind == "done":
                process.join()
                return content
            elif kind == "machine":
                raise MachineFailure(content)
            else:
                raise Failure(content)
    finally:
        ours.close()
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
