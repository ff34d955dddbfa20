"""Swappable parts: a config names them, one file each implements them.

A part is a class decorated with `@part(kind, name)`. The kinds are the four fields of `GPT2Config` that hold a name:
`positions`, `attention`, `mlp` and `norm`. A name that nobody has registered yet is looked for in the file
`gpt2_ablate/model/<name>.py`, so a new part needs no list to be edited anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from gpt2_ablate.errors import UserError

T = TypeVar("T", bound=type)
_PARTS: dict[tuple[str, str], type] = {}


def part(kind: str, name: str) -> Callable[[T], T]:
    """Register the decorated class as the part of this kind and name; it is built as `cls(config)`."""

    def register(cls: T) -> T:
        _PARTS[kind, name] = cls
        return cls

    return register


def find_part(kind: str, name: str) -> type:
    """The class registered for a part, importing the file of that name if it has not been imported yet.

    Raises:
        UserError: no such part.
    """
    import gpt2_ablate.model as here

    if (kind, name) not in _PARTS and name in {module.name for module in pkgutil.iter_modules(here.__path__)}:
        importlib.import_module(f"{here.__name__}.{name}")
    if (kind, name) not in _PARTS:
        known = ", ".join(sorted(n for k, n in _PARTS if k == kind))
        raise UserError(f"{kind}: there is no part {name!r}; give one of {known}, or add gpt2_ablate/model/{name}.py")
    return _PARTS[kind, name]
