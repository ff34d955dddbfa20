"""A model as a folder: model.json (its GPT2Config) and model.safetensors (its weights, by our names)."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.model.parts import part_files
from gpt2_ablate.utils.io import new_folder, read_json, whole
from gpt2_ablate.weights.build import check_layers, empty_model, read_weights
from gpt2_ablate.weights.tensor_files import open_tensors, save_tensors

CONFIG, WEIGHTS = "model.json", "model.safetensors"


def save_model(model: GPT2, folder: Path) -> None:
    """Write a model into a folder, each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    with whole(folder / CONFIG) as config, whole(folder / WEIGHTS) as weights:
        _write(model, config, weights)


def save_new_model(model: GPT2, folder: Path) -> None:
    """Write a model as a folder that is not there yet, whole or not at all.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    with new_folder(folder) as out:
        _write(model, out / CONFIG, out / WEIGHTS)


def _write(model: GPT2, config: Path, weights: Path) -> None:
    config.write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")
    save_tensors({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, weights)


def load_model(folder: Path) -> GPT2:
    """Read a model that `save_model` wrote, in evaluation mode.

    Raises:
        UserError: a file is missing or broken (weights have checksums), or the weights are not finite, or not those of the
            configuration.
    """
    config, weights = folder / CONFIG, folder / WEIGHTS
    for file in (config, weights):
        if not file.is_file():
            raise UserError(
                f"{folder}: there is no {file.name}; give the folder of a finished run, as checkpoints/cpu/rope/seed-0"
            )
    tensors, fields = open_tensors(weights), read_json(config)
    try:
        check_layers(fields.get("n_layer"), len(tensors.shapes))
        for part in part_files(fields):  # code that comes with a model is not run: a model may come from anybody
            if not part.is_absolute() or folder.resolve() in part.resolve().parents:
                raise UserError(
                    f"{part}: lies in the folder of the model, whose code is not run; give the absolute path of your own"
                )
        model = empty_model(GPT2Config(**fields))
    except (ValueError, TypeError) as error:
        raise UserError(f"{config}: is no configuration of a model ({error}); train it again, or give another folder") from error
    return read_weights(model, tensors, {name: name for name in tensors.shapes}, CONFIG)
