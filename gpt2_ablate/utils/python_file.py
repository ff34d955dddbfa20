"""A user's Python file as a module, and its errors in one line that names file and line."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from gpt2_ablate.errors import UserError
from gpt2_ablate.utils.io import first_problem

_modules: dict[str, ModuleType] = {}  # by absolute path


def load_python_file(file: Path) -> ModuleType:
    """The module in a file, executed once a process.

    Raises:
        UserError: the file is not there, or its code fails.
    """
    path = str(file.absolute())
    if path in _modules:
        return _modules[path]
    if not file.is_file():
        raise UserError(f"{file}: is not there; give the path of a Python file")
    name = f"gpt2_ablate_user_{file.stem}_{zlib.crc32(path.encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _modules[path] = sys.modules[name] = module  # before its code runs: dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        message = f"{path}:{error.lineno}: SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else locate_error(error)
        del _modules[path], sys.modules[name]
        raise UserError(message or f"{path}: {error}") from error
    return module


def locate_error(error: BaseException) -> str | None:
    """ "FILE:LINE: what it says", of the last line in a loaded file that it went through; None if it went through none."""
    trace, place = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in _modules:
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return None if place is None else f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"


def check_options(cls: type, arguments: str, options: dict[str, Any], where: str) -> None:
    """Hold what a class is to be called with against its signature, and options against their annotations.

    Args:
        arguments: names of those that come before the options, as "config, layer".

    Raises:
        UserError: one is unknown, missing or of another type.
    """
    try:
        signature = inspect.signature(cls, eval_str=True)
    except NameError:  # an annotation names what is imported for type checkers alone
        signature = inspect.signature(cls)
    positional = arguments.split(", ")
    try:
        signature.bind(*positional, **options)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[len(positional) :]) or "none"
        raise UserError(f"{where}: {error}; it is built as cls({arguments}), and its options are: {known}") from error
    for key in options.keys() & signature.parameters.keys():
        try:
            TypeAdapter(signature.parameters[key].annotation).validate_python(options[key], strict=True)
        except ValidationError as error:
            raise first_problem(error, f"{where}: {key}: {options[key]!r}") from error
        except PydanticUserError:
            pass  # it has no annotation, or one that only its author can check
