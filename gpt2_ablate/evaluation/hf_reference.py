"""transformers' GPT-2 with the same weights as ours: the reference that `gpt2_ablate.evaluation.verification` compares with."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights import load_pretrained
from gpt2_ablate.weights.hub import fetch, hub_name

# Our names and transformers'. Written down again, so that `weights/hf_architectures.py` is verified too.
NAMES = (
    (r"^embedding\.", "transformer.wte."),
    (r"^positions\.table\.", "transformer.wpe."),
    (r"^norm\.", "transformer.ln_f."),
    (r"^blocks\.", "transformer.h."),
    (r"norm_([12])\.", r"ln_\1."),
    (r"attention\.qkv\.", "attn.c_attn."),
    (r"attention\.output\.", "attn.c_proj."),
    (r"mlp\.input\.", "mlp.c_fc."),
    (r"mlp\.output\.", "mlp.c_proj."),
)


@dataclass(frozen=True)
class Pair:
    """The same weights in two implementations.

    Attributes:
        weights: where they come from.
        reference: transformers' GPT2LMHeadModel.
        original: whether they are the released 124M weights, as far as their source and sizes say.
        why_not_original: if they are not, the reason.
    """

    weights: str
    model: GPT2
    reference: Any
    original: bool = False
    why_not_original: str = "weights not present"


def open_pair(source: str | None = None, random_sizes: dict[str, int] | None = None) -> Pair:
    """The weights at `source`, here and in transformers, which reads the files by itself if it can.

    Args:
        source: as `load_pretrained` takes it; None: checkpoints/gpt2 if it is there, else gpt2 from the hub's cache, else
            random weights of `random_sizes` (None: of the 124M model).

    Raises:
        UserError: transformers is not installed, or `source` cannot be loaded or is no GPT-2.
    """
    transformers = _transformers()
    source = source or _present()
    if source is None:
        return random_pair(random_sizes)
    model = load_pretrained(source)
    _require_gpt2(model.config, source)
    folder = _hf_folder(source)
    if folder is None:
        reference = reference_of(model)
    else:
        try:
            reference = transformers.GPT2LMHeadModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()
        except Exception as error:  # of many kinds, for a config.json that we can read
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: transformers cannot open it ({reason}); mend its config.json") from error
    reason = _why_not_original(model.config, source)
    return Pair(source, model, reference, original=not reason, why_not_original=reason)


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
        model = load_pretrained(folder)
    return Pair(f"random, seed {seed}, made by transformers", model, reference)


def reference_of(model: GPT2) -> Any:
    """transformers' GPT2LMHeadModel with the weights of `model`."""
    transformers = _transformers()
    c = model.config
    sizes = dict(vocab_size=c.vocab_size, n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation="eager"))
    reference.load_state_dict(renamed(dict(model.named_parameters())), strict=False)  # all but the tied head
    return reference.eval()


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names -> by transformers' names, projections transposed to its [in, out]."""
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor.t() if re.search(r"c_(attn|proj|fc)\.weight$", name) else tensor
    return result


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("verify: transformers is not installed; run pip install 'gpt2-ablate[verify]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _present() -> str | None:
    """The source of the original weights, if they are on this machine."""
    if Path("checkpoints/gpt2").is_dir():
        return "checkpoints/gpt2"
    try:
        fetch("gpt2", download=False)
    except UserError:
        return None
    return "gpt2"


def _hf_folder(source: str) -> Path | None:
    """The folder with the loaded `source`, if transformers can read it by itself."""
    if Path(source).exists():
        return Path(source) if (Path(source) / "config.json").is_file() else None
    return fetch(source, download=False).parent


def _why_not_original(config: GPT2Config, source: str) -> str:
    """The reason why these are not the released 124M weights; empty if they are, as far as can be told."""
    if config != GPT2Config.preset("gpt2"):
        return "these are not the weights of the 124M model"
    if (Path(source) / "model.json").exists():
        return "these weights were trained or converted here"
    if not Path(source).exists() and hub_name(source) != hub_name("gpt2"):
        return "these are another model's weights"
    return ""


def _require_gpt2(config: GPT2Config, source: str) -> None:
    plain = GPT2Config(config.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd)
    if config.kv_heads != config.n_head:
        raise UserError(f"{source}: n_kv_head: {config.n_kv_head}: is not GPT-2, which verify compares with; give a baseline")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in ("n_kv_head", "dropout", "kernel") and value != getattr(plain, field.name):
            raise UserError(f"{source}: {field.name}: {value}: is not GPT-2, which verify compares with; give a baseline")
