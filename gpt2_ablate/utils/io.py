"""Files and folders that appear whole or not at all, and what is wrong with a file said in one line."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from gpt2_ablate.errors import UserError

if TYPE_CHECKING:
    from pydantic import ValidationError


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`: the file or folder written there takes the target's place when the block ends.

    Where the block raises, what it wrote is removed and `target` stays as it was.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException as error:
        _remove(partial)
        if not isinstance(error, OSError | SafetensorError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{target}: cannot be written ({reason}); free some space, or give another folder") from error


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """`whole` for a folder that is not there yet: yields the folder to write into.

    Raises:
        UserError: `folder` holds something already, or cannot be written.
    """
    folder = Path(folder).resolve()
    with whole(folder) as partial:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder}: is there already, and is not an empty folder; give another one")
        _remove(partial)  # left by a process that was killed
        partial.mkdir(parents=True)
        yield partial


def make_folder(folder: Path) -> None:
    """Make a folder for output, if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another folder as OUT") from error


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, and make its folder.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    make_folder(file.parent)
    with whole(file) as partial, open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_text(file: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(file, text.encode())


def write_json(file: Path, content: Any) -> None:
    """`write_text` of JSON; numbers that are not finite become null, because JSON has no word for them."""
    write_text(file, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file is missing or broken, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not whole JSON ({error}); it was cut off or edited, so write it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: should be a JSON object")
    return content


def first_problem(error: ValidationError, where: object) -> UserError:
    """What pydantic found wrong first, in one line: where, key, value, and what it should be."""
    problem = error.errors(include_url=False)[0]
    key = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in problem["loc"]).lstrip(".")
    if problem["type"] == "missing":
        return UserError(f"{where}: {key}: is missing")
    value, message = repr(problem["input"]), problem["msg"].removeprefix("Value error, ")
    if not key:
        return UserError(f"{where}: {message}")
    said = message.replace("Input should", "should", 1) if message.startswith("Input should") else f"is wrong: {message}"
    if problem["type"] == "extra_forbidden":
        said = "is no known key"
    return UserError(f"{where}: {key}: {value if len(value) <= 80 else value[:77] + '...'} {said}")
