"""Continue a text, one token at a time, each costing one token's work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.attend import kernels_of
from gpt2_ablate.model.cache import KVCache
from gpt2_ablate.model.gpt2 import GPT2
from gpt2_ablate.model.rows import fast_rows, worth_it

Choice = Callable[[Tensor], Tensor]  # logits [B, V] -> token ids [B]

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
) -> Tensor:
    """Prompt and continuation [B, T + N] of the prompts input_ids [B, T], see `stream`.

    N is max_new_tokens, or fewer where every row has stopped before.
    """
    new = stream(model, input_ids, max_new_tokens, temperature, top_k, top_p, stop, generator, lengths)
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
) -> Iterator[Tensor]:
    """Continue the prompts input_ids [B, T], yielding each new token of all rows [B] as soon as it is chosen.

    The model is in evaluation mode while the stream is open.

    Args:
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample only among the likeliest tokens that together have this probability, of those that top_k leaves
            (nucleus sampling, Holtzman et al. 1904.09751, section 3.1).
        stop: token ids that end a row. A row that has ended repeats the token that ended it, and the stream ends with
            its last row.
        generator: source of randomness; torch's global one if None.
        lengths: [B], of the prompts, where they differ: the prompt of row b is the last lengths[b] of its T tokens, and
            what stands before is padding. None: all are of T tokens.

    Raises:
        UserError: an argument is out of range, the text would outgrow learned positions or the memory, or the model asks for
            a kernel that cannot run here. Raised at once, before the first token is asked for.
    """
    if input_ids.ndim != 2:
        raise UserError(f"input_ids: the shape {tuple(input_ids.shape)} is not [B, T]; give one row a prompt")
    if input_ids.shape[1] < 1:
        raise UserError("input_ids: the prompt is empty; give one token at least, <|endoftext|> to start from nothing")
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens: {max_new_tokens} is negative; give 0 or more")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature: {temperature} is not a temperature; give 0 (greedy) or more, but no infinity")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k: {top_k} leaves no token to choose; give 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p: {top_p} is not a share of the probability; give a number above 0, up to 1")
    for token in stop:
        if not 0 <= token < model.config.vocab_size:
            raise UserError(f"stop: {token} is no token id; give ids from 0 to {model.config.vocab_size - 1}")
    documents = None
    if lengths is not None:
        documents = _padding_apart(input_ids, lengths)
        needed = slice(-int(lengths.max()), None)
        input_ids, documents = input_ids[:, needed], documents[:, needed]
    B, T = input_ids.shape
    kernels_of(model.config, model.positions.score_bias, input_ids.device, min(T, CHUNK), documents)  # or a refusal
    weight = model.embedding.weight
    try:
        model.positions.reach(T + max_new_tokens)
        cache = KVCache(model.config, B, T + max_new_tokens, weight.dtype, weight.device)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # TypeError: more than torch's whole numbers can say
        raise UserError(f"max_new_tokens: {max_new_tokens} tokens need more memory than there is; give fewer") from error

    def choose(logits: Tensor) -> Tensor:
        return _choose(logits, temperature, top_k, top_p, generator)

    ends = torch.tensor(sorted(stop), device=input_ids.device)
    return _continue(model, input_ids, documents, cache, max_new_tokens, choose, ends)


@torch.no_grad()
def _continue(
    model: GPT2,
    input_ids: Tensor,
    documents: Tensor | None,
    cache: KVCache,
    max_new_tokens: int,
    choose: Choice,
    ends: Tensor,
) -> Iterator[Tensor]:
    B, T = input_ids.shape
    ended = torch.zeros(B, dtype=torch.bool, device=input_ids.device)
    last = input_ids[:, -1]
    spans = [slice(start, start + CHUNK) for start in range(0, T, CHUNK)]
    unread = [(input_ids[:, span], None if documents is None else documents[:, span]) for span in spans]
    was_training = model.training
    model.eval()
    try:
        with fast_rows(model) if worth_it(model, B, max_new_tokens) else nullcontext():
            for _ in range(max_new_tokens):
                for ids, numbers in unread:
                    hidden = model.hidden(ids, cache, numbers)
                last = torch.where(ended, last, choose(model.head(hidden[:, -1]).float()).type_as(last))
                yield last
                if len(ends):
                    ended |= torch.isin(last, ends)
                    if ended.all():
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


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """Logits [B, V] -> one token id for each row [B]."""
    if temperature == 0:
        return logits.argmax(-1)
    # Below the likeliest, so that hardly any temperature leaves that one alone; an fp32 zero or infinity would divide to NaN.
    fp32 = torch.finfo(torch.float32)
    scaled = (logits - logits.amax(-1, keepdim=True)) / min(max(temperature, fp32.tiny), fp32.max)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k).values[:, -1:]
        scaled = scaled.masked_fill(logits < kept, float("-inf"))
    probabilities = scaled.softmax(-1)
    if top_p is not None and top_p < 1:
        likeliest, tokens = probabilities.sort(-1, descending=True)
        # A token is left out if those before it have top_p together; the likeliest has none before it.
        left_out = likeliest.cumsum(-1) - likeliest >= top_p
        left_out[:, 0] = False  # also where top_p is zero in fp32
        probabilities = probabilities.scatter(-1, tokens, likeliest.masked_fill(left_out, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
