"""Named tensors on disk, read one at a time: safetensors, PyTorch and TensorFlow files, whole or in shards.

Nothing in such a file is ever run: safetensors hold numbers alone, and of a pickle torch takes numbers alone. What we write
has a checksum of each tensor, which is compared when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2_ablate.errors import UserError

CHECKSUMS = "sha256"  # key of the metadata: JSON, name -> digest of the tensor's bytes

_ADVICE = "fetch or write it anew, or give another file"


@contextmanager
def _reading(what: str, *errors: type[Exception], problem: str = "cannot be read") -> Iterator[None]:
    """What goes wrong in these ways becomes one line about `what`."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        text = str(error).strip() or type(error).__name__
        raise UserError(f"{what}: {problem} ({text.splitlines()[0].rstrip('.: ')}); {_ADVICE}") from error


@dataclass(frozen=True)
class Tensors:
    """What a file or folder holds."""

    where: Path  # the file or folder, for messages
    shapes: dict[str, tuple[int, ...]]  # of each tensor by its name
    read: Callable[[str], Tensor]  # name -> the tensor in the file's number format, once, in memory that others may share


def save_tensors(tensors: dict[str, Tensor], file: Path, **metadata: str) -> None:
    """Write a .safetensors file with checksums. Without other metadata, which come in any order, equal tensors are equal files.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    digests = {name: _digest(x) for name, x in tensors.items()}
    save_file(tensors, file, {**metadata, CHECKSUMS: json.dumps(digests, sort_keys=True)})
    os.umask(mask := os.umask(0))
    file.chmod(0o666 & ~mask)  # safetensors makes it the owner's alone


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def open_tensors(file: Path) -> Tensors:
    """Open a .safetensors file, a PyTorch file, the index of a sharded one, or a folder with a TensorFlow checkpoint.

    Raises:
        UserError: the file is missing, broken, or holds more than numbers.
    """
    if file.is_dir():
        return open_tensorflow(file)
    if file.name.endswith(".index.json"):
        return open_shards(file)
    _check_blob(file)
    return open_safetensors(file) if file.suffix == ".safetensors" else open_pickle(file)


def _check_blob(file: Path) -> None:
    """In the cache of the hub a large file's real name is its sha256."""
    with _reading(f"{file}", OSError):
        blob = file.resolve()
        if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob.name):
            with blob.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != blob.name:
                    raise UserError(f"{file}: is damaged, its sha256 is not {blob.name}; delete {blob} and fetch it anew")


def open_safetensors(file: Path) -> Tensors:
    """A .safetensors file."""
    with _reading(f"{file}", OSError, SafetensorError):
        opened = safe_open(file, framework="pt", backend="pread")  # read, not mapped: the memory is the tensor's own
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        checksums = (opened.metadata() or {}).get(CHECKSUMS)
    try:
        digests = None if checksums is None else dict(json.loads(checksums).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: is damaged, {CHECKSUMS} in its metadata is no list of checksums; {_ADVICE}") from error

    def read(name: str) -> Tensor:
        with _reading(f"{file}: {name}", OSError, SafetensorError):
            tensor = opened.get_tensor(name)
        if digests is not None and digests.get(name) != _digest(tensor):
            raise UserError(f"{file}: {name}: is damaged, its sha256 is not the one in the file's metadata; {_ADVICE}")
        return tensor

    return Tensors(file, shapes, read)


def open_pickle(file: Path) -> Tensors:
    """A state dict written by `torch.save`; one that holds more than numbers is refused unread.

    All of it is in memory, and each tensor leaves when it is read.
    """
    with _reading(f"{file}", Exception, problem="is damaged"):  # of a broken table of contents zipfile says so in many ways
        damaged = None
        if zipfile.is_zipfile(file):  # as files have been since torch 1.6; those before have no checksums
            with zipfile.ZipFile(file) as opened:
                damaged = opened.testzip()
    if damaged is not None:
        raise UserError(f"{file}: is damaged, the checksum of {damaged} in it is another; {_ADVICE}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused below
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds more than numbers, or is damaged, and is not run; give a .safetensors file") from error
    except Exception as error:  # torch names a broken file by half a dozen exceptions, not all of them telling
        raise UserError(f"{file}: is not a file of tensors ({type(error).__name__}); {_ADVICE}") from error
    if not isinstance(loaded, dict) or not all(isinstance(x, Tensor) and not x.is_nested for x in loaded.values()):
        raise UserError(f"{file}: is not a state dict, a mapping from names to tensors; save model.state_dict() and give that")
    tensors = {str(name): x.detach() for name, x in loaded.items()}
    return Tensors(file, {name: tuple(x.shape) for name, x in tensors.items()}, tensors.pop)


def open_shards(index: Path) -> Tensors:
    """The shards that an index (model.safetensors.index.json, pytorch_model.bin.index.json) lists."""
    broken = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
    with _reading(f"{index}", *broken, problem="is not an index of shards"):
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(shard_of.values()))
        if any(Path(name).name != name or name.endswith(".index.json") for name in names):
            raise ValueError("a shard outside of its folder, or another index")
    for name in names:
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: the shard {name} that it lists is not there; put it beside the index")
    shards = {name: open_tensors(index.parent / name) for name in names}
    for tensor, shard in shard_of.items():
        if tensor not in shards[shard].shapes:
            raise UserError(f"{index}: {tensor}: is not in {shard}, where the index has it; {_ADVICE}")
    shapes = {tensor: shards[shard].shapes[tensor] for tensor, shard in shard_of.items()}
    return Tensors(index, shapes, lambda tensor: shards[shard_of[tensor]].read(tensor))


def open_tensorflow(folder: Path) -> Tensors:
    """OpenAI's own checkpoint (`checkpoint`, `model.ckpt.*`), its variables under the names that transformers gives them."""
    try:
        from tensorflow.train import load_checkpoint
    except ImportError as error:
        raise UserError(
            f"{folder}: is a TensorFlow checkpoint, which TensorFlow reads; install it (pip install tensorflow), "
            "or give the same weights as .safetensors"
        ) from error
    with _reading(f"{folder}", Exception):  # TensorFlow's errors are not known without importing more of it
        reader = load_checkpoint(str(folder))
        shape_of = reader.get_variable_to_shape_map()
    variables = {_tensorflow_name(variable): variable for variable in shape_of}
    # A projection is a convolution over one token, [1, in, out].
    shapes = {name: tuple(shape_of[v][1:] if v.endswith("/w") else shape_of[v]) for name, v in variables.items()}

    def read(name: str) -> Tensor:
        with _reading(f"{folder}: {name}", Exception):
            tensor = torch.tensor(reader.get_tensor(variables[name]))
        return tensor.reshape(shapes[name])

    return Tensors(folder, shapes, read)


def _tensorflow_name(variable: str) -> str:
    """model/h0/attn/c_attn/w -> h.0.attn.c_attn.weight."""
    name = re.sub(r"^h(\d+)/", r"h/\1/", variable.removeprefix("model/"))
    name = re.sub(r"/(w|g)$", "/weight", re.sub(r"/b$", "/bias", name)).replace("/", ".")
    return f"{name}.weight" if name in ("wte", "wpe") else name
