"""transformers' GPT-2 with the same weights as ours: the reference that `gpt2_ablate.evaluation.verification` compares with."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights import export_huggingface, load_pretrained
from gpt2_ablate.weights.hub import fetch, hub_name


@dataclass(frozen=True)
class Pair:
    """The same weights in two implementations.

    Attributes:
        why_not_original: why they are not the released 124M weights; empty if they are, as far as source and sizes say.
    """

    weights: str  # where they come from
    model: GPT2
    reference: Any  # transformers' GPT2LMHeadModel
    why_not_original: str = "weights not present"


def open_pair(source: str | None = None) -> Pair:
    """The weights at `source`, here and in transformers, which reads the files by itself if it can.

    Args:
        source: as `load_pretrained` takes it; None: checkpoints/gpt2 if it is there, else gpt2 from the hub's cache, else
            random weights of the 124M model.

    Raises:
        UserError: transformers is not installed, or `source` cannot be loaded or is no GPT-2.
    """
    _transformers()
    source = source or _present()
    if source is None:
        return random_pair()
    model = load_pretrained(source)
    _require_gpt2(model.config, source)
    folder = _hf_folder(source)
    reference = reference_of(model) if folder is None else _open(folder)
    return Pair(source, model, reference, _why_not_original(model.config, source))


def random_pair(sizes: dict[str, int] | None = None, seed: int = 0) -> Pair:
    """A model that transformers makes and writes, and we read; all its tensors are random, so that each has an effect.

    Blocks change the residual stream more than in a fresh model, so that generated text depends on the whole prompt, as a
    trained model's does, and does not just repeat a token.

    Raises:
        UserError: transformers is not installed.
    """
    transformers = _transformers()
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes or {}), attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(seed)
    std = 1.1 / reference.config.n_embd**0.5
    with torch.no_grad():
        for p in reference.parameters():
            noise = torch.empty(p.shape).normal_(generator=generator)
            p.copy_(std * noise if p.ndim > 1 else float(p.mean().round()) + 0.1 * noise)  # norms start at 1, biases at 0
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return Pair(f"random, seed {seed}, made by transformers", load_pretrained(folder), reference)


def reference_of(model: GPT2) -> Any:
    """transformers' GPT2LMHeadModel with the weights of `model`, by way of an export."""
    with tempfile.TemporaryDirectory() as folder:
        export_huggingface(model, folder)
        return _open(Path(folder))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("verify: transformers is not installed; run pip install 'gpt2-ablate[verify]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _open(folder: Path) -> Any:
    settings = dict(dtype=torch.float32, attn_implementation="eager", local_files_only=True)
    try:
        return _transformers().GPT2LMHeadModel.from_pretrained(folder, **settings).eval()
    except Exception as error:  # of many kinds, for a config.json that we can read
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: transformers cannot open it ({reason}); mend its config.json") from error


def _present() -> str | None:
    """The source of the original weights, if they are on this machine."""
    if Path("checkpoints/gpt2").is_dir():
        return "checkpoints/gpt2"
    with suppress(UserError):
        fetch("gpt2", download=False)
        return "gpt2"
    return None


def _hf_folder(source: str) -> Path | None:
    """The folder with the loaded `source`, if transformers can read it by itself."""
    if Path(source).exists():
        return Path(source) if (Path(source) / "config.json").is_file() else None
    return fetch(source, download=False).parent


def _why_not_original(config: GPT2Config, source: str) -> str:
    if config != GPT2Config.preset("gpt2"):
        return "these are not the weights of the 124M model"
    if (Path(source) / "model.json").exists():
        return "these weights were trained or converted here"
    if not Path(source).exists() and hub_name(source) != hub_name("gpt2"):
        return "these are another model's weights"
    return ""


def _require_gpt2(config: GPT2Config, source: str) -> None:
    plain = GPT2Config(config.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd)
    same_heads = config.kv_heads == config.n_head
    # Neither dropout nor the kernel makes another function, nor all key/value heads said by their number.
    own = replace(config, dropout=0.0, kernel="auto", n_kv_head=None if same_heads else config.n_kv_head)
    for field in fields(own):
        if (value := getattr(own, field.name)) != getattr(plain, field.name):
            raise UserError(f"{source}: {field.name}: {value}: is not GPT-2, which verify compares with; give a baseline")
