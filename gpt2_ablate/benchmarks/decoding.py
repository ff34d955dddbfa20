"""Generating text: against transformers, against the length of the context, and far past the end of a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpt2_ablate.benchmarks import hf_baseline
from gpt2_ablate.benchmarks.timing import OnProgress, rates, ratio, time_interleaved
from gpt2_ablate.model import GPT2, GPT2Config, KVCache, generate
from gpt2_ablate.ops.gemv import fast_gemv, is_profitable
from gpt2_ablate.utils.system import current_bytes

Fields = dict[str, Any]  # of a GPT2Config

READ = 2**28  # bytes, larger than any cache
TEXT = 128  # tokens, what one would generate at least


@torch.inference_mode()
def against_generate(
    fields: Fields, dtype_name: str, prompt: int, new: int, rounds: int, device: torch.device, on_progress: OnProgress
) -> dict[str, Any]:
    """tokens/s of greedy generation and of reading a prompt, ours beside transformers', both in one dtype at batch 1.

    Returns also the share of the machine's read bandwidth that generating reaches: every weight is read once a token.
    """
    config, dtype = GPT2Config(**fields), getattr(torch, dtype_name)
    model = GPT2(config).to(device, dtype).eval()
    baseline = hf_baseline.build(config).to(device, dtype).eval()
    ids = torch.randint(config.vocab_size, (1, prompt), device=device)
    long = torch.randint(config.vocab_size, (1, config.block_size), device=device)
    memory = torch.ones(READ // 4, device=device)

    def read_prompt() -> None:
        cache = KVCache(config, 1, config.block_size, dtype, device)
        model.embedding.logits(model.hidden(long, cache)[:, -1])

    candidates = {
        "ours": lambda: generate(model, ids, new, temperature=0),
        "transformers": lambda: baseline.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        ),
        "read": lambda: [memory.sum() for _ in range(4)],
        "our prompt": read_prompt,
        "transformers' prompt": lambda: baseline(long, use_cache=True, logits_to_keep=1),
    }
    seconds = time_interleaved(candidates, device, rounds, f"generating in {dtype_name}", on_progress, warm_up=1)
    ours, hf, read, our_prompt, hf_prompt = seconds.values()
    weight_bytes = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("positions"))
    return {
        "architecture": type(baseline).__name__,
        "ours": rates(ours, new), "transformers": rates(hf, new), "ratio": ratio(ours, hf),
        "share_of_read": ratio(ours, read, new * weight_bytes / (4 * READ)),
        "our_prompt": rates(our_prompt, config.block_size), "their_prompt": rates(hf_prompt, config.block_size),
        "prompt_ratio": ratio(our_prompt, hf_prompt),
    }  # fmt: skip


@torch.inference_mode()
def by_context(
    configs: dict[str, Fields], contexts: list[int], batch_size: int, rounds: int, device: torch.device, on_progress: OnProgress
) -> dict[str, dict[str, Any]]:
    """variant -> context -> tokens/s of the whole batch in bf16, and bytes of its cache, after so many tokens."""
    dtype, new = torch.bfloat16, 8
    room = new * (rounds + 2)
    configs = {name: {**fields, "block_size": max(contexts) + room} for name, fields in configs.items()}
    models = {name: GPT2(GPT2Config(**fields)).to(device, dtype).eval() for name, fields in configs.items()}
    vocab_size = min(model.config.vocab_size for model in models.values())
    found: dict[str, dict[str, Any]] = {name: {} for name in configs}
    with read_weights_fast(models.values(), batch_size):
        for context in contexts:
            what = f"{batch_size} x {context:,} tokens"
            on_progress(f"decoding: reading {what}")
            ids = torch.randint(vocab_size, (batch_size, context), device=device)
            caches = {name: KVCache(model.config, batch_size, context + room, dtype, device) for name, model in models.items()}
            texts = {name: greedy(model, ids, caches[name]) for name, model in models.items()}
            for text in texts.values():
                next(text)
            candidates = {name: partial(take, text, new) for name, text in texts.items()}
            seconds = time_interleaved(candidates, device, rounds, f"decoding, {what}", on_progress, warm_up=1)
            for name, cache in caches.items():
                found[name][str(context)] = {**rates(seconds[name], new * batch_size), "cache_bytes": cache.nbytes}
    return found


@torch.inference_mode()
def far_past_the_window(
    fields: Fields, tokens: int, every: int, rounds: int, device: torch.device, on_progress: OnProgress
) -> dict[str, Any]:
    """One text of so many generated tokens: the memory in use every so often, and at its end the time of a token beside that
    of a token of a text that has only `every` at first, in the same rounds.

    Returns:
        {"stretches": [{"tokens", "cache_bytes", "process_bytes"}],
        "late_against_early": the ratio of the times, "early_tokens": how many the other text has at last}
    """
    model = GPT2(GPT2Config(**fields)).to(device).eval()
    start = torch.zeros(1, 1, dtype=torch.long, device=device)
    room = tokens + TEXT * (rounds + 2)
    cache = model.make_cache(1, room)
    late = greedy(model, start, cache)
    stretches = []
    for n in range(every, tokens + 1, every):
        take(late, every)
        on_progress(f"one long text, {n:,}/{tokens:,} tokens")
        stretches.append({"tokens": n, "cache_bytes": cache.nbytes, "process_bytes": current_bytes(device)})
    early = greedy(model, start.expand(1, every), model.make_cache(1, room))
    next(early)
    candidates = {"late": partial(take, late, TEXT), "early": partial(take, early, TEXT)}
    taken = time_interleaved(candidates, device, rounds, "the end of the long text", on_progress, warm_up=1)
    early_tokens = every + TEXT * (rounds + 1)
    return {"stretches": stretches, "late_against_early": ratio(taken["early"], taken["late"]), "early_tokens": early_tokens}


def greedy(model: GPT2, ids: Tensor, cache: KVCache) -> Iterator[Tensor]:
    """The likeliest continuation of ids [B, T], a token of each row [B, 1] at a time, without an end."""
    while True:
        for piece in ids.split(512, dim=1):
            hidden = model.hidden(piece, cache)
        ids = model.embedding.logits(hidden[:, -1]).argmax(-1, keepdim=True)
        yield ids


def take(text: Iterator[Tensor], count: int) -> None:
    for _ in range(count):
        next(text)


def read_weights_fast(models: Iterable[GPT2], batch_size: int) -> AbstractContextManager[None]:
    """`fast_gemv` where it pays for one of the models, as `stream` decides for its own."""
    return fast_gemv() if any(is_profitable(model, batch_size, TEXT) for model in models) else nullcontext()
