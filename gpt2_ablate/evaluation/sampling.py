"""A continuation as text, piece by piece as it is generated."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import tiktoken
import torch

from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2
from gpt2_ablate.model.generate import stream


def continuation(
    model: GPT2,
    prompt: str,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """The continuation of the prompt, up to `tokens` tokens or <|endoftext|>, in pieces of whole characters.

    A token may end inside a UTF-8 character, which is then yielded with the next token. Invalid bytes become U+FFFD.
    <|endoftext|> in the prompt is that token. Other arguments are those of `gpt2_ablate.model.generate.stream`.

    Raises:
        UserError: an argument is out of range. Raised at once.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed} is not a seed; give a whole number from 0 to {2**63 - 1}")
    tokenizer, device = load_tokenizer(model.config.vocab_size), model.device
    ids = torch.tensor([tokenizer.encode(prompt, allowed_special="all")], dtype=torch.long, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    new = stream(model, ids, tokens, temperature, top_k, top_p, {tokenizer.eot_token}, generator, vocab_size=tokenizer.n_vocab)
    return decode(tokenizer, (int(token) for token in new))


def decode(tokenizer: tiktoken.Encoding, tokens: Iterator[int]) -> Iterator[str]:
    """Token ids up to <|endoftext|> -> text, in pieces of whole characters."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if token == tokenizer.eot_token:
            break
        yield decoder.decode(tokenizer.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)
