"""A model from tensors that are read one by one, holding hardly more memory than its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights.tensor_files import Tensors

NUMBERS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


class _WeightsOnMeta(TorchFunctionMode):
    """`torch.empty`, which layers make their weights with, allocates nothing; tables are computed as ever."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def empty_model(config: GPT2Config) -> GPT2:
    """A model of that configuration whose weights have shapes but no memory, for `fill`.

    Raises:
        UserError: there can be no such model.
    """
    try:
        with torch.random.fork_rng(devices=[]), _WeightsOnMeta():
            return GPT2(config)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # TypeError: more than torch's whole numbers can say
        sizes = ", ".join(f"{name} = {getattr(config, name)}" for name in ("vocab_size", "block_size", "n_embd"))
        reason = str(error).partition("\n")[0]
        raise UserError(f"{sizes}: a model of these sizes cannot be made ({reason}); give those of the weights") from error


def check_layers(n_layer: Any, tensors: int) -> None:
    """Refuse more layers than `tensors` tensors can be, before anything is made for each layer.

    Raises:
        UserError: there are more.
    """
    if isinstance(n_layer, int) and n_layer > tensors:
        raise UserError(f"n_layer: {n_layer} layers are more than the {tensors} tensors of the weights can be; give those it has")


def fill(model: GPT2, write: Callable[[str, Tensor], object]) -> GPT2:
    """The model itself, in evaluation mode, after `write(name, weight)` has written each weight's numbers, fp32, in place.

    The largest are written first: what reading them takes in passing is never on top of all the others.
    """
    for name, p in sorted(model.named_parameters(), key=lambda item: -item[1].numel()):
        weight = torch.empty(p.shape)
        write(name, weight)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(weight))
    return model.eval()


def read_weights(
    model: GPT2,
    tensors: Tensors,
    names: dict[str, str],
    described_by: str,
    pieces: Callable[[str, Tensor], dict[str, Tensor]] = lambda name, weight: {name: weight},
    head: str = "",
) -> GPT2:
    """`fill` a model with tensors, of which each has to be there, in its shape, and finite.

    Args:
        names: of a piece -> of its tensor. All of them have to be used.
        described_by: where the shapes of the model come from, for messages.
        pieces: (name, weight) -> the tensors that the weight is kept as, views of it by their names.
        head: name of a tensor that has to be equal to the embedding, if it is there.

    Raises:
        UserError: the message names the tensor.
    """
    unused = set(names)

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        unused.discard(name)
        found = tensors.shapes[names[name]] if name in names else None
        if found != shape:
            raise UserError(
                f"{tensors.where}: {name}: {'is missing' if found is None else f'has the shape {list(found)}'} where "
                f"{described_by} asks for {list(shape)}; the two do not belong together"
            )
        tensor = tensors.read(names[name])
        _check_numbers(tensor, f"{tensors.where}: {name}")
        return tensor

    def write(name: str, weight: Tensor) -> None:
        for piece_name, piece in pieces(name, weight).items():
            found = read(piece_name, tuple(piece.shape))
            # The embedding, the largest weight, keeps the memory that was read if it can. Only the head may share that
            # memory, and is not kept: all other weights are copied.
            whole = found.is_contiguous() and found.untyped_storage().nbytes() == weight.nbytes
            if name == "embedding.weight" and whole and found.dtype == weight.dtype:
                weight.set_(found)  # type: ignore[call-overload]
            else:
                piece.t().copy_(found.t())  # where the two differ, in the weight's order: faster than in the file's
        if name == "embedding.weight" and head in names:
            tensor = read(head, tuple(weight.shape))
            if not torch.equal(weight.to(tensor.dtype), tensor):
                raise UserError(
                    f"{tensors.where}: {head}: differs from the token embedding; GPT-2 has one matrix for both, and a model "
                    "with two is another architecture"
                )

    fill(model, write)
    if unused:
        raise UserError(
            f"{tensors.where}: {min(unused)}: has no place in what {described_by} describes, of {model.config.n_layer} layers; "
            "the weights are another model's"
        )
    return model


def _check_numbers(tensor: Tensor, where: str) -> None:
    if tensor.dtype not in NUMBERS or tensor.layout != torch.strided or tensor.is_meta:
        found = f"{tensor.dtype}, {tensor.layout}, on the device {tensor.device}"
        raise UserError(f"{where}: holds {found}; weights have to be dense numbers in {', '.join(NUMBERS.values())}")
    low, high = tensor.aminmax()  # NaN if one number is; without a copy of the tensor
    if not (low.isfinite() and high.isfinite()):
        raise UserError(f"{where}: holds numbers that are not finite; the file is damaged, or training diverged")
