"""Continue a text, one token at a time, each costing one token's work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.gpt2 import GPT2
from gpt2_ablate.model.kv_cache import KVCache
from gpt2_ablate.ops.gemv import fast_gemv, is_profitable
from gpt2_ablate.ops.sampling import Sampler

CHUNK = 512  # tokens of a prompt that are read at a time: no scores of T x T, however long the prompt


def generate(
    model: GPT2,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    *,
    top_p: float | None = None,
    stop: Collection[int] = (),
    lengths: Tensor | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Prompt and continuation [B, T + N] of the prompts input_ids [B, T], see `stream`.

    N is max_new_tokens, or fewer where every row has stopped before.
    """
    new = stream(model, input_ids, max_new_tokens, temperature, top_k, top_p, stop, generator, lengths, vocab_size)
    return torch.cat((input_ids, *(token[:, None] for token in new)), dim=1)


def stream(
    model: GPT2,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Collection[int] = (),
    generator: torch.Generator | None = None,
    lengths: Tensor | None = None,
    vocab_size: int | None = None,
) -> Iterator[Tensor]:
    """Continue the prompts input_ids [B, T], yielding each new token of all rows [B] as soon as it is chosen.

    The model is in evaluation mode while the stream is open.

    Args:
        temperature, top_k, top_p, generator, vocab_size: how tokens are drawn, see `gpt2_ablate.ops.sampling`.
        stop: token ids that end a row. A row that has ended repeats the token that ended it, and the stream ends with
            its last row.
        lengths: [B], of the prompts, where they differ: the prompt of row b is the last lengths[b] of its T tokens, and
            what comes before is padding. None: all are of T tokens.

    Raises:
        UserError: an argument is out of range, the sequence would outgrow learned positions or the memory, or the model asks for
            a kernel that cannot run here. Raised at once, before the first token is asked for.
    """
    if input_ids.ndim != 2:
        raise UserError(f"input_ids: the shape {tuple(input_ids.shape)} is not [B, T]; give one row a prompt")
    if input_ids.shape[1] < 1:
        raise UserError("input_ids: the prompt is empty; give one token at least, <|endoftext|> to start from nothing")
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens: {max_new_tokens} is negative; give 0 or more")
    sampler = Sampler(temperature, top_k, top_p, generator, vocab_size)
    for token in stop:
        if not 0 <= token < model.config.vocab_size:
            raise UserError(f"stop: {token} is no token id; give ids from 0 to {model.config.vocab_size - 1}")
    documents = None
    if lengths is not None:
        documents = _padding_apart(input_ids, lengths)
        needed = slice(-int(lengths.max()), None)
        input_ids, documents = input_ids[:, needed], documents[:, needed]
    length = input_ids.shape[1] + max_new_tokens
    model.check_kernels(min(input_ids.shape[1], CHUNK), documents)
    try:
        model.positions.prepare(length)
        cache = model.make_cache(len(input_ids), length)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # TypeError: more than torch's whole numbers can say
        raise UserError(f"max_new_tokens: {max_new_tokens} tokens need more memory than there is; give fewer") from error
    return _continue(model, input_ids, documents, cache, max_new_tokens, sampler, torch.tensor(sorted(stop)))


@torch.no_grad()
def _continue(
    model: GPT2, ids: Tensor, documents: Tensor | None, cache: KVCache, max_new_tokens: int, sampler: Sampler, stop: Tensor
) -> Iterator[Tensor]:
    last, has_ended, stop = ids[:, -1], torch.zeros_like(ids[:, -1], dtype=torch.bool), stop.to(ids.device)
    spans = [slice(start, start + CHUNK) for start in range(0, ids.shape[1], CHUNK)]
    unread = [(ids[:, span], None if documents is None else documents[:, span]) for span in spans]
    was_training = model.training
    model.eval()
    try:
        with fast_gemv() if is_profitable(model, len(ids), max_new_tokens) else nullcontext():
            for _ in range(max_new_tokens):
                for chunk, numbers in unread:
                    hidden = model.hidden(chunk, cache, numbers)
                new = sampler(model.embedding.logits(hidden[:, -1]).float())
                last = torch.where(has_ended, last, new.type_as(last))
                yield last
                if len(stop):
                    has_ended |= torch.isin(last, stop)
                    if has_ended.all():
                        return
                unread = [(last[:, None], None)]
    finally:
        model.train(was_training)


def _padding_apart(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """The documents [B, T] of padded prompts: 0 is the padding of a row, 1 its prompt."""
    B, T = input_ids.shape
    if lengths.shape != (B,) or lengths.is_floating_point() or not ((lengths >= 1) & (lengths <= T)).all():
        raise UserError(f"lengths: {lengths.tolist()} are not those of {B} prompts; give each row a whole number from 1 to {T}")
    return (torch.arange(T, device=input_ids.device) >= T - lengths.to(input_ids.device)[:, None]).long()
