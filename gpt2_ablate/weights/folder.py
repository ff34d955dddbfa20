"""A model as a folder: model.json (its GPT2Config) and model.safetensors (its weights, by our names)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.model.parts import part_files
from gpt2_ablate.utils.io import new_folder, whole
from gpt2_ablate.weights.build import check_layers, check_numbers, empty_model, fill
from gpt2_ablate.weights.tensor_files import open_tensors, save_tensors

CONFIG, WEIGHTS = "model.json", "model.safetensors"


def save_model(model: GPT2, folder: Path) -> None:
    """Write a model into a folder, each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    with whole(folder / WEIGHTS) as partial:
        _write_weights(model, partial)
    with whole(folder / CONFIG) as partial:
        _write_config(model, partial)


def save_new_model(model: GPT2, folder: Path) -> None:
    """Write a model as a folder that is not there yet, whole or not at all.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    with new_folder(folder) as out:
        _write_weights(model, out / WEIGHTS)
        _write_config(model, out / CONFIG)


def _write_weights(model: GPT2, file: Path) -> None:
    save_tensors({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, file)


def _write_config(model: GPT2, file: Path) -> None:
    file.write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")


def load_model(folder: Path) -> GPT2:
    """Read a model that `save_model` wrote, in evaluation mode.

    Raises:
        UserError: a file is missing or broken (weights have checksums), or the weights are not finite, or not those of the
            configuration.
    """
    weights, config = folder / WEIGHTS, folder / CONFIG
    for file in (config, weights):
        if not file.is_file():
            raise UserError(
                f"{folder}: there is no {file.name}; give the folder of a finished run, as checkpoints/cpu/rope/seed-0"
            )
    tensors = open_tensors(weights)
    try:
        fields = json.loads(config.read_text())
        check_layers(fields.get("n_layer"), len(tensors.shapes))
        _check_part_files(fields, folder)
        model = empty_model(GPT2Config(**fields))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{config}: is no configuration of a model ({error}); train it again, or give another folder") from error
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name in sorted(wanted.keys() | tensors.shapes.keys()):
        if tensors.shapes.get(name) != wanted.get(name):
            raise UserError(
                f"{weights}: {name}: has the shape {_shape(tensors.shapes, name)} where model.json asks for "
                f"{_shape(wanted, name)}; the two do not belong together"
            )
    return fill(model, lambda name, weight: weight.copy_(check_numbers(tensors.read(name), weights, name)))


def _check_part_files(fields: dict[str, Any], folder: Path) -> None:
    """Code that comes with a model is not run: a model may come from anybody."""
    for file in part_files(fields):
        if not file.is_absolute() or folder.resolve() in file.resolve().parents:
            raise UserError(f"{file}: lies in the folder of the model, whose code is not run; give the absolute path of your own")


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> list[int] | str:
    return list(shapes[name]) if name in shapes else "none"
