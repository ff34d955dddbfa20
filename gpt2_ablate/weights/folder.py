"""A model as a folder: model.json (its GPT2Config) and model.safetensors (its weights, by our names)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config


def save_model(model: GPT2, folder: Path) -> None:
    """Write a model into a folder, each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    weights, config = folder / "model.safetensors", folder / "model.json"
    partial = folder / ".partial"
    try:
        save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, partial)
        partial.replace(weights)
        partial.write_text(json.dumps(asdict(model.config), indent=1) + "\n")
        partial.replace(config)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(f"{folder}: the model cannot be written ({error}); free some space, or give another folder") from error


def load_model(folder: Path) -> GPT2:
    """Read a model that `save_model` wrote, in evaluation mode.

    Raises:
        UserError: a file is missing or broken, or the weights are not those of the configuration.
    """
    weights, config = folder / "model.safetensors", folder / "model.json"
    for file in (config, weights):
        if not file.exists():
            raise UserError(
                f"{folder}: there is no {file.name}; give the folder of a finished run, as checkpoints/cpu/rope/seed-0"
            )
    try:
        fields = json.loads(config.read_text())
        with torch.random.fork_rng():  # what is drawn here is overwritten below
            model = GPT2(GPT2Config(**fields))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{config}: is no configuration of a model ({error}); train it again, or give another folder") from error
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error}); train it again, or give another folder") from error
    wanted = {name: p.shape for name, p in model.named_parameters()}
    for name in sorted(wanted.keys() | tensors.keys()):
        found = tensors[name].shape if name in tensors else None
        if found != wanted.get(name):
            raise UserError(
                f"{weights}: {name}: shape {found} where model.json asks for {wanted.get(name)}; the two do not belong together"
            )
    model.load_state_dict(tensors, strict=False)
    return model.eval()
