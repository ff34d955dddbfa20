"""Every part of GPT-2 by its name, and how a part is found and built.

A part is a `torch.nn.Module`. A `GPT2Config` names one of each kind: by a name of the table below, by a Python file and a
class in it ("alibi.py:ALiBi"), or by a mapping {"name": either of these, **options}. It is built as

- `cls(config, layer, **options)`: block, attention, mlp;
- `cls(config, **options)`: positions, embedding;
- `cls(width, **options)`: norm.

GPT-2's own parts are found and built like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gpt2_ablate.errors import UserError
from gpt2_ablate.utils.python_file import check_options, load_python_file, locate_error

BUILT_IN = {
    "block": {"pre_norm": "gpt2_ablate.model.gpt2:Block"},
    "attention": {"self_attention": "gpt2_ablate.model.attention:SelfAttention"},
    "mlp": {"mlp": "gpt2_ablate.model.layers:MLP"},
    "norm": {"layer_norm": "gpt2_ablate.model.layers:LayerNorm"},
    "positions": {
        "learned": "gpt2_ablate.model.positions:LearnedPositions",
        "rotary": "gpt2_ablate.model.rope:RotaryPositions",
        "none": "gpt2_ablate.model.positions:NoPositions",
    },
    "embedding": {"tied": "gpt2_ablate.model.embedding:TiedEmbedding"},
}


ARGUMENTS = {
    "block": "config, layer", "attention": "config, layer", "mlp": "config, layer", "norm": "width",
    "positions": "config", "embedding": "config",
}  # fmt: skip


def build(kind: str, part: str | Mapping[str, Any], *args: Any) -> Any:
    """The part, built with these arguments and its own options.

    Raises:
        UserError: there is no such part, it has no such option, or its code fails; one line that names the file.
    """
    cls, options = resolve(kind, part)
    try:
        return cls(*args, **options)
    except UserError as error:
        if part_file(part) is None or str(error).partition(":")[0] in BUILT_IN:  # of a part that it builds
            raise
        raise UserError(f"{kind}: {_name(part)}: {error}") from error
    except Exception as error:
        if (where := locate_error(error)) is None:
            raise
        raise UserError(f"{kind}: {where}") from error


def resolve(kind: str, part: str | Mapping[str, Any]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a part and the options that the config gives it, which are checked against its signature.

    Raises:
        UserError: there is no such class, or it has no such option, or the option is of another type.
    """
    name = _name(part)
    file, colon, class_name = BUILT_IN[kind].get(name, name).rpartition(":")
    if file.endswith(".py"):
        module = load_python_file(Path(file))
    elif name in BUILT_IN[kind]:
        module = importlib.import_module(file)
    else:
        known = ", ".join(BUILT_IN[kind])
        raise UserError(f"{kind}: there is no part {name!r}; give one of {known}, or a file and a class as my_part.py:MyPart")
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        own = [n for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module.__name__]
        raise UserError(f"{kind}: {file} has no class {class_name!r}; it has {', '.join(own) or 'none'}")
    if not issubclass(cls, nn.Module):
        raise UserError(f"{kind}: {file}: {class_name} is no torch.nn.Module; derive it from that")
    options = {} if isinstance(part, str) else {key: value for key, value in part.items() if key != "name"}
    check_options(cls, ARGUMENTS[kind], options, f"{kind}: {name}")
    return cls, options


def part_file(part: Any) -> Path | None:
    """The file that a part is in, if it is not built in."""
    file = _name(part).rpartition(":")[0] if isinstance(part, str | Mapping) else ""
    return Path(file) if file.endswith(".py") else None


def part_files(config: Any) -> list[Path]:
    """The files of all parts of a GPT2Config, or of a mapping of its fields, that are not built in."""
    parts = [config.get(kind) if isinstance(config, Mapping) else getattr(config, kind) for kind in BUILT_IN]
    return list(dict.fromkeys(file for part in parts if (file := part_file(part)) is not None))


def _name(part: str | Mapping[str, Any]) -> str:
    return part if isinstance(part, str) else str(part.get("name"))
