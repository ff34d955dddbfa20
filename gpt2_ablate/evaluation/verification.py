"""Verification that the model is GPT-2: the same weights compute the same here and in `transformers`, an independent
implementation.

Each check fails for models that are nearly GPT-2: see the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.evaluation.hf_reference import Pair
from gpt2_ablate.model import GPT2, GPT2Config, generate
from gpt2_ablate.weights.hf_architectures import ARCHITECTURES

renamed = ARCHITECTURES["gpt2"].renamed

# Parameters of the released models.
PARAMETERS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}

# Greedy continuations of the original 124M weights, as the tests of transformers have them.
PUBLISHED = {
    "The dog": " was found in a field near the intersection of West and West Streets.\n\nThe dog",
    "Hello, my dog is a little": " bit of a mess. I'm not sure if he's going",
    "Today, I": "'m going to be doing a lot of research on this. I",
}

# Relative differences are of the largest number of the tensor.
LOGITS_LIMIT = 1e-4  # fp32, absolute
EXACT_LIMIT = 1e-11  # fp64, relative: above what the order of summation changes, below any difference of the models
HIDDEN_LIMIT = 1e-5  # fp32, relative
GRADIENT_LIMIT = 1e-4  # fp32, relative
TOKENS, NEW_TOKENS, PROMPTS = 128, 24, 4


@dataclass(frozen=True)
class Check:
    """The result of one comparison."""

    name: str
    found: str
    wanted: str
    passed: bool | None  # None if it could not be made, which is no pass; `found` says why


def parameters(pair: Pair) -> Check:
    """Parameters of all four sizes, on the meta device."""
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in GPT2(GPT2Config.preset(name)).parameters()) for name in PARAMETERS}
    wrong = [f"{name}: {counts[name]:,}" for name, wanted in PARAMETERS.items() if counts[name] != wanted]
    wanted = ", ".join(f"{count:,}" for count in PARAMETERS.values())
    return Check("parameters of the four sizes", ", ".join(wrong) or "the same", wanted, not wrong)


def weights(pair: Pair) -> Check:
    """Every number of every weight tensor."""
    ours, expected = (
        renamed(dict(pair.model.named_parameters()), pair.model.config),
        dict(pair.reference.named_parameters()),
    )
    missing = ours.keys() ^ expected.keys()
    wrong = sorted(missing | {name for name in ours.keys() & expected.keys() if not torch.equal(ours[name], expected[name])})
    numbers = sum(p.numel() for p in expected.values())
    found = f"{wrong[0]} and {len(wrong) - 1} more differ" if wrong else "the same"
    return Check("weights", found, f"{len(expected)} tensors, {numbers:,} numbers, bit for bit", not wrong)


def hidden_states(pair: Pair) -> Check:
    """The residual stream after the embeddings, each block and the last norm, over the whole context."""
    text = _text(pair, 1, pair.model.config.block_size)
    ours = _residual_streams(pair.model, text)
    with torch.inference_mode():
        expected = list(pair.reference.transformer(text, output_hidden_states=True).hidden_states)
        after = ["the embeddings", *(f"block {n}" for n in range(1, len(expected) - 1)), "the last norm"]
        worst, difference = _worst(dict(zip(after, map(_relative, ours, expected), strict=True)))
    name, places = f"hidden states, {text.shape[1]:,} tokens", f" after each of {len(after)} layers"
    return _at_most(HIDDEN_LIMIT, name, difference, f" of the largest, after {worst}", places)


def logits(pair: Pair) -> Check:
    """Logits in fp32."""
    ours, expected = _logits(pair, 1)
    difference = float((ours - expected).abs().max())
    return _at_most(LOGITS_LIMIT, "logits, fp32", difference)


def exact_logits(pair: Pair) -> Check:
    """Logits in fp64, where rounding hides no difference."""
    for model in (pair.model, pair.reference):
        model.double()
    difference = _relative(*_logits(pair, 2))
    for model in (pair.model, pair.reference):
        model.float()  # exact: the weights were fp32 before
    return _at_most(EXACT_LIMIT, "logits, fp64", difference, " of the largest")


def gradients(pair: Pair) -> Check:
    """Gradients of the loss with respect to every parameter."""
    text = _text(pair, 2)
    pair.model.loss(text[:, :-1], text[:, 1:]).backward()
    pair.reference(text, labels=text).loss.backward()
    ours = ARCHITECTURES["gpt2"].renamed(
        {name: p.grad for name, p in pair.model.named_parameters() if p.grad is not None}, pair.model.config
    )
    expected = {name: p.grad for name, p in pair.reference.named_parameters()}
    pair.model.zero_grad()
    pair.reference.zero_grad()
    worst, difference = _worst({name: _relative(ours.get(name), gradient) for name, gradient in expected.items()})
    places = f" in each of {len(expected)} tensors"
    return _at_most(GRADIENT_LIMIT, "gradients of the loss", difference, f" of the largest, in {worst}", places)


def greedy_text(pair: Pair) -> Check:
    """Greedy text of our `generate` and of transformers', each with its own cache."""
    new = min(NEW_TOKENS, pair.model.config.block_size // 2)
    prompts, end = _text(pair, PROMPTS, min(8, pair.model.config.block_size - new)), pair.model.config.vocab_size - 1
    ours = generate(pair.model, prompts, new, temperature=0, stop={end})
    expected = pair.reference.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=new, eos_token_id=end, pad_token_id=end
    )
    passed = torch.equal(ours, expected)
    return Check("greedy text with caches", "the same" if passed else "differs", f"{PROMPTS} texts of {new} new tokens", passed)


def published_text(pair: Pair) -> Check:
    """The published greedy text of the released 124M weights."""
    name, wanted = "published text of the original weights", f"{len(PUBLISHED)} greedy texts to 20 tokens"
    if pair.why_not_original:
        return Check(name, f"not checked: {pair.why_not_original}", wanted, None)
    tokenizer = load_tokenizer()
    for prompt, continuation in PUBLISHED.items():
        ids, text = tokenizer.encode_ordinary(prompt), tokenizer.encode_ordinary(prompt + continuation)
        found = generate(pair.model, torch.tensor([ids]), len(text) - len(ids), temperature=0)[0].tolist()
        if found != text:
            return Check(name, f"{tokenizer.decode(found)!r}", f"{tokenizer.decode(text)!r}", False)
    return Check(name, "the same", wanted, True)


def _at_most(limit: float, name: str, difference: float, found: str = "", wanted: str = "") -> Check:
    return Check(name, f"{difference:.1e}{found}", f"at most {limit:.0e}{wanted}", difference <= limit)


def _text(pair: Pair, B: int, T: int = TOKENS) -> Tensor:
    """Random token ids [B, T], always the same; T is at most the model's context."""
    shape, generator = (B, min(T, pair.model.config.block_size)), torch.Generator().manual_seed(B)
    return torch.randint(pair.model.config.vocab_size, shape, generator=generator)


def _residual_streams(model: GPT2, text: Tensor) -> list[Tensor]:
    """[B, T, C] before each block, and after the last norm: as transformers returns them, without the last block's output."""
    found: list[Tensor] = []
    with ExitStack() as hooks, torch.inference_mode():
        for block in model.blocks:
            hooks.enter_context(block.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0])))
        last = model.hidden(text)
    return [*found, last]


def _logits(pair: Pair, B: int) -> tuple[Tensor, Tensor]:
    """Ours and the reference's [B, T, V]."""
    text = _text(pair, B)
    if not pair.why_not_original:
        # Trained weights get a real text: on random tokens their logits are near -100, which fp32 rounds to 1e-5.
        text = torch.tensor([load_tokenizer().encode_ordinary("".join(next(iter(PUBLISHED.items()))))])
    with torch.inference_mode():
        return pair.model(text), pair.reference(text).logits


def _relative(ours: Tensor | None, expected: Tensor) -> float:
    """The largest difference over the largest number expected; NaN if either tensor has one."""
    if ours is None:
        return math.inf
    difference = (ours - expected).abs().max()
    return float(difference / expected.abs().max()) if difference else 0.0  # both may be all zeros


def _worst(differences: dict[str, float]) -> tuple[str, float]:
    """The largest, and where it is; a NaN counts as the largest, which `max` alone would pass over."""
    return max(differences.items(), key=lambda item: (math.isnan(item[1]), item[1]))


CHECKS: tuple[Callable[[Pair], Check], ...] = (
    parameters, weights, hidden_states, logits, exact_logits, gradients, greedy_text, published_text,
)  # fmt: skip


def verify(pair: Pair, console: Console | None = None) -> list[Check]:
    """Run all checks, printing each result as it comes, then a table of them."""
    console = console or Console(highlight=False)
    console.print(f"Weights: {pair.weights}", markup=False, soft_wrap=True)
    checks = []
    for n, run in enumerate(CHECKS, 1):
        with console.status(f"{n} of {len(CHECKS)}: {run.__name__.replace('_', ' ')}"):  # shown in a terminal only
            checks.append(run(pair))
        if not console.is_terminal:
            console.print(f"{n} of {len(CHECKS)}: {checks[-1].name}: {verdict(checks[-1])}", markup=False, soft_wrap=True)
    table = Table(*(Column(heading, overflow="fold") for heading in ("check", "found", "wanted", "")))
    for check in checks:
        table.add_row(*map(escape, (check.name, check.found, check.wanted, verdict(check))))
    console.print(table)
    return checks


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check failed; one that could not be made did not fail."""
    return all(check.passed is not False for check in checks)


def verdict(check: Check) -> str:
    return {True: "passed", False: "FAILED", None: "not checked"}[check.passed]
