"""A model as a folder that `transformers` opens with its own classes: weights, configuration, tokenizer and model card."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.utils.io import new_folder
from gpt2_ablate.weights.card import model_card
from gpt2_ablate.weights.convert import convert
from gpt2_ablate.weights.hf_architectures import ARCHITECTURES, Architecture
from gpt2_ablate.weights.hf_tokenizer import write_tokenizer
from gpt2_ablate.weights.tensor_files import save_tensors

# What every architecture has, or what makes no other function.
COMMON = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "dropout", "kernel"}


def export_huggingface(model: GPT2, folder: str | Path, record: dict[str, Any] | None = None) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` open.

    Learned positions become GPT2LMHeadModel, or GPTBigCodeForCausalLM with one key/value head; rotary positions with any
    number of key/value heads and any window Starcoder2ForCausalLM. The tokenizer is GPT-2's; a model with a smaller
    vocabulary gets none.

    Args:
        folder: appears when all is written; may be empty, but hold nothing.
        record: of the run that trained the model (its record.json), for the numbers on the model card.

    Raises:
        UserError: `transformers` has no architecture for this variant, or the folder is taken or cannot be written.
    """
    architecture = architecture_of(model.config)
    if model.config.rope_interleaved:
        model = convert(model, replace(model.config, rope_interleaved=False))
    settings = architecture.settings(model.config)
    with new_folder(Path(folder)) as out:
        save_tensors(_renamed(model, architecture), out / "model.safetensors", format="pt")
        _write_json(out / "config.json", settings)
        ends = {key: settings[key] for key in ("bos_token_id", "eos_token_id")}
        _write_json(out / "generation_config.json", {"_from_model_config": True, **ends})
        write_tokenizer(out, model.config)
        (out / "README.md").write_text(model_card(model, architecture, record), encoding="utf-8")


def architecture_of(config: GPT2Config) -> Architecture:
    """The architecture of `transformers` that computes the same function.

    Raises:
        UserError: there is none; the message names the field.
    """
    if config.positions == "rotary":
        architecture = ARCHITECTURES["starcoder2"]
    else:
        architecture = ARCHITECTURES["gpt_bigcode" if config.n_head > config.kv_heads == 1 else "gpt2"]
        if config.kv_heads not in (1, config.n_head):
            raise _unsayable("n_kv_head", config.n_kv_head, architecture)
    for field in fields(GPT2Config):
        value = getattr(config, field.name)
        layer_by_layer = isinstance(value, tuple) and len(set(value)) > 1
        if value != field.default and (layer_by_layer or field.name not in COMMON | architecture.fields):
            raise _unsayable(field.name, value, architecture)
    return architecture


def _unsayable(field: str, value: Any, architecture: Architecture) -> UserError:
    return UserError(
        f"{field}: {value!r} with these positions is nothing that {architecture.class_name} of transformers can say; there are "
        "learned positions with full attention and all or one key/value heads, and rotary positions with any key/value heads "
        "and one window for all layers"
    )


def _renamed(model: GPT2, architecture: Architecture) -> dict[str, Tensor]:
    """All weights by the architecture's names, in its layout. The head is the embedding, and not written twice."""
    tensors = {}
    for name, p in model.named_parameters():
        place = architecture.place(name, tuple(p.shape), model.config)
        for piece, rows in zip(place.names, p.detach().cpu().split(place.rows), strict=True):
            tensors[architecture.prefix + piece] = (rows.t() if place.transposed else rows).contiguous()
    return tensors


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
