"""Continue a text, one token at a time, each costing one token's work."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.cache import KVCache
from gpt2_ablate.model.gpt2 import GPT2


@torch.no_grad()
def generate(
    model: GPT2,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Prompt and continuation [B, T + max_new_tokens] of the prompts input_ids [B, T].

    Args:
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        generator: source of randomness; torch's global one if None.

    Raises:
        UserError: an argument is out of range, or the text would outgrow learned positions.
    """
    if input_ids.ndim != 2:
        raise UserError(f"input_ids: the shape {tuple(input_ids.shape)} is not [B, T]; give one row a prompt")
    B, T = input_ids.shape
    if T < 1:
        raise UserError("input_ids: the prompt is empty; give one token at least, <|endoftext|> to start from nothing")
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens: {max_new_tokens} is negative; give 0 or more")
    if not temperature >= 0:
        raise UserError(f"temperature: {temperature} is not a temperature; give 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k: {top_k} leaves no token to choose; give 1 or more")
    model.positions.reach(T + max_new_tokens)
    if max_new_tokens == 0:
        return input_ids.clone()

    weight = model.embedding.weight
    cache = KVCache(model.config, B, T + max_new_tokens, weight.dtype, weight.device)
    text = torch.empty(B, T + max_new_tokens, dtype=input_ids.dtype, device=input_ids.device)
    text[:, :T] = input_ids
    new = input_ids
    was_training = model.training
    model.eval()
    try:
        for t in range(T, T + max_new_tokens):
            logits = model.head(model.hidden(new, cache)[:, -1])
            new = _choose(logits.float(), temperature, top_k, generator)
            text[:, t : t + 1] = new
    finally:
        model.train(was_training)
    return text


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Logits [B, V] -> one token id for each row [B, 1]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kept, float("-inf"))
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
