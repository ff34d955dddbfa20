"""Generating text: against transformers, against the length of the context, and far past the end of a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpt2_ablate.benchmarks import hf_baseline
from gpt2_ablate.benchmarks.hardware import DTYPES
from gpt2_ablate.benchmarks.timing import rates, ratio, report_round, take_turns
from gpt2_ablate.model import GPT2, GPT2Config, KVCache, generate
from gpt2_ablate.ops.gemv import fast_gemv, is_profitable
from gpt2_ablate.utils.system import current_bytes

OnProgress = Callable[[str], None]
READ = 2**28  # bytes, larger than any cache
TEXT = 128  # tokens, what one would generate at least


@torch.inference_mode()
def against_generate(
    config: dict[str, Any], dtype_name: str, prompt: int, new: int, rounds: int, device_name: str, on_progress: OnProgress
) -> dict[str, Any]:
    """tokens/s of greedy generation and of reading a prompt, ours beside transformers', both in one dtype at batch 1.

    Returns also the share of the machine's read bandwidth that generating reaches: every weight is read once a token.
    """
    ours, device, dtype = GPT2Config(**config), torch.device(device_name), DTYPES[dtype_name]
    model = GPT2(ours).to(device, dtype).eval()
    other = hf_baseline.build(ours).to(device, dtype).eval()
    ids = torch.randint(ours.vocab_size, (1, prompt), device=device)
    long = torch.randint(ours.vocab_size, (1, ours.block_size), device=device)
    memory = torch.ones(READ // 4, device=device)

    def read_prompt() -> None:
        cache = KVCache(ours, 1, ours.block_size, dtype, device)
        model.embedding.logits(model.hidden(long, cache)[:, -1])

    turns = {
        "ours": lambda: generate(model, ids, new, temperature=0),
        "transformers": lambda: other.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        ),
        "read": lambda: [memory.sum() for _ in range(4)],
        "our prompt": read_prompt,
        "their prompt": lambda: other(long, use_cache=True, logits_to_keep=1),
    }
    seconds = take_turns(turns, device, rounds, 1, partial(report_round, on_progress, f"generating in {dtype_name}"))
    weight_bytes = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("positions"))
    return {
        "architecture": hf_baseline.architecture(ours),
        "ours": rates(seconds["ours"], new), "transformers": rates(seconds["transformers"], new),
        "ratio": ratio(seconds["ours"], seconds["transformers"]),
        "share_of_read": ratio(seconds["ours"], seconds["read"], new * weight_bytes / (4 * READ)),
        "our_prompt": rates(seconds["our prompt"], ours.block_size),
        "their_prompt": rates(seconds["their prompt"], ours.block_size),
        "prompt_ratio": ratio(seconds["our prompt"], seconds["their prompt"]),
    }  # fmt: skip


@torch.inference_mode()
def by_context(
    configs: dict[str, dict[str, Any]],
    contexts: list[int],
    batch_size: int,
    dtype_name: str,
    rounds: int,
    device_name: str,
    on_progress: OnProgress,
) -> dict[str, dict[str, Any]]:
    """variant -> context -> tokens/s of the whole batch and bytes of its cache, when so many tokens have been read."""
    device, dtype, new = torch.device(device_name), DTYPES[dtype_name], 8
    longest = max(contexts) + new * (rounds + 2)
    built = {name: GPT2Config(**{**fields, "block_size": longest}) for name, fields in configs.items()}
    models = {name: GPT2(config).to(device, dtype).eval() for name, config in built.items()}
    vocab_size = min(config.vocab_size for config in built.values())
    found: dict[str, dict[str, Any]] = {name: {} for name in configs}
    with ExitStack() as stack:
        for model in models.values():
            if is_profitable(model, batch_size, TEXT):  # as `stream` does
                stack.enter_context(fast_gemv())
        for context in contexts:
            on_progress(f"decoding: reading {batch_size} x {context:,} tokens")
            ids = torch.randint(vocab_size, (batch_size, context), device=device)
            turns, caches = {}, {}
            for name, model in models.items():
                caches[name] = KVCache(built[name], batch_size, context + new * (rounds + 2), dtype, device)
                turns[name] = _decoder(model, ids, caches[name], new)
            where = f"decoding, {batch_size} x {context:,} tokens"
            seconds = take_turns(turns, device, rounds, 1, partial(report_round, on_progress, where))
            for name in models:
                found[name][str(context)] = {**rates(seconds[name], new * batch_size), "cache_bytes": caches[name].nbytes}
    return found


@torch.inference_mode()
def far_past_the_window(
    config: dict[str, Any], tokens: int, every: int, rounds: int, device_name: str, on_progress: OnProgress
) -> dict[str, Any]:
    """One text of so many generated tokens: the memory in use every so often, and at its end the time of a token beside that
    of a token of a text that has only `every` at first, in turns.

    Returns:
        {"stretches": [{"tokens", "cache_bytes", "process_bytes"}],
        "late_against_early": the ratio of the times, "early_tokens": how many the other text has at last}
    """
    device = torch.device(device_name)
    ours = GPT2Config(**config)
    model = GPT2(ours).to(device).eval()
    start = torch.zeros(1, 1, dtype=torch.long, device=device)
    room = tokens + TEXT * (rounds + 2)
    cache = KVCache(ours, 1, room, torch.float32, device)
    late = _steps(model, start, cache)
    stretches = []
    for n in range(every, tokens + 1, every):
        _take(late, every)
        on_progress(f"one long text, {n:,}/{tokens:,} tokens")
        stretches.append({"tokens": n, "cache_bytes": cache.nbytes, "process_bytes": current_bytes(device)})
    early = _steps(model, start.expand(1, every), KVCache(ours, 1, room, torch.float32, device))
    next(early)
    turns = {"late": partial(_take, late, TEXT), "early": partial(_take, early, TEXT)}
    taken = take_turns(turns, device, rounds, 1, partial(report_round, on_progress, "the end of the long text"))
    early_tokens = every + TEXT * (rounds + 1)
    return {"stretches": stretches, "late_against_early": ratio(taken["early"], taken["late"]), "early_tokens": early_tokens}


def _decoder(model: GPT2, ids: Tensor, cache: KVCache, new: int) -> Callable[[], None]:
    steps = _steps(model, ids, cache)
    next(steps)
    return partial(_take, steps, new)


def _take(steps: Iterator[Tensor], count: int) -> None:
    for _ in range(count):
        next(steps)


def _steps(model: GPT2, ids: Tensor, cache: KVCache) -> Iterator[Tensor]:
    """Greedy continuation without an end."""
    while True:
        for piece in ids.split(512, dim=1):
            hidden = model.hidden(piece, cache)
        ids = model.embedding.logits(hidden[:, -1]).argmax(-1, keepdim=True)
        yield ids
