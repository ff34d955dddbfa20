"""Proof that the model is GPT-2: the same weights do the same here and in `transformers`, an independent implementation.

`open_pair` puts the same weights into both, `STEPS` compare the two. A step proves something only because a wrong model
fails it: see the tests.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config, generate
from gpt2_ablate.weights import load_pretrained
from gpt2_ablate.weights.hub import fetch, hub_name

# Parameters of the released models.
PARAMETERS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}

# Greedy continuations of the original 124M weights, as the tests of transformers have them: ids, and the same as text.
DOG = [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
PUBLISHED = {
    "Hello, my dog is a little": " bit of a mess. I'm not sure if he's going",
    "Today, I": "'m going to be doing a lot of research on this. I",
}

LOGITS_LIMIT = 1e-4  # fp32, absolute
EXACT_LIMIT = 1e-11  # fp64, of the largest: what order of summation leaves, and no difference of the models does
HIDDEN_LIMIT = 1e-5  # fp32, of the layer's largest
GRADIENT_LIMIT = 1e-4  # fp32, of the tensor's largest
TOKENS, NEW, PROMPTS = 128, 24, 4

# Our names, then transformers', which stores projections [in, out]. Written down apart from what reads checkpoints.
NAMES = (
    (r"^embedding\.", "transformer.wte."),
    (r"^positions\.table\.", "transformer.wpe."),
    (r"^norm\.", "transformer.ln_f."),
    (r"^blocks\.", "transformer.h."),
    (r"norm_([12])\.", r"ln_\1."),
    (r"attention\.qkv\.", "attn.c_attn."),
    (r"attention\.output\.", "attn.c_proj."),
    (r"mlp\.input\.", "mlp.c_fc."),
    (r"mlp\.output\.", "mlp.c_proj."),
)


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes:
        passed: None where it could not be checked; `found` says why, and nobody may take it for a pass.
    """

    name: str
    found: str
    wanted: str
    passed: bool | None


@dataclass(frozen=True)
class Pair:
    """The same weights in two implementations.

    Attributes:
        weights: what they are, in words.
        reference: transformers' GPT2LMHeadModel.
        original: whether they are said to be the released 124M weights.
        why_not: if they are not, why not, in words.
    """

    weights: str
    model: GPT2
    reference: Any
    original: bool = False
    why_not: str = "weights not present"


def open_pair(source: str | None = None, random_sizes: dict[str, int] | None = None) -> Pair:
    """The weights at `source`, here and in transformers; each reads the files by itself wherever transformers can.

    Args:
        source: as `load_pretrained` takes it; None: checkpoints/gpt2 if it is there, else gpt2 from the hub's cache, else
            random weights of `random_sizes` (None: of the 124M model).

    Raises:
        UserError: transformers is not installed, or `source` cannot be loaded or is no GPT-2.
    """
    transformers = _transformers()
    source = source or _present()
    if source is None:
        return random_pair(random_sizes)
    model = load_pretrained(source)
    _require_gpt2(model.config, source)
    folder = _folder_of_transformers(source)
    if folder is None:
        reference = reference_of(model)
    else:
        try:
            reference = transformers.GPT2LMHeadModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()
        except Exception as error:  # what it does not like of a config.json that we can read, it says in many ways
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: transformers cannot open it ({reason}); mend its config.json") from error
    why_not = _why_not_original(model.config, source)
    return Pair(source, model, reference, original=not why_not, why_not=why_not)


def random_pair(sizes: dict[str, int] | None = None, seed: int = 0) -> Pair:
    """A model that transformers makes and writes, and we read; every tensor of it random, so that none can hide.

    Blocks move the residual stream further than in a fresh model: what it writes depends on the whole text, as a trained
    model's does, and does not just repeat a token.

    Raises:
        UserError: transformers is not installed.
    """
    transformers = _transformers()
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes or {}), attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(seed)
    std = 1.1 / reference.config.n_embd**0.5
    with torch.no_grad():
        for p in reference.parameters():
            noise = torch.empty(p.shape).normal_(generator=generator)
            p.copy_(std * noise if p.ndim > 1 else float(p.mean().round()) + 0.1 * noise)  # norms start at 1, biases at 0
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        model = load_pretrained(folder)
    return Pair(f"random, seed {seed}, made by transformers", model, reference)


def reference_of(model: GPT2) -> Any:
    """transformers' GPT2LMHeadModel with the weights of `model`."""
    transformers = _transformers()
    c = model.config
    sizes = dict(vocab_size=c.vocab_size, n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation="eager"))
    reference.load_state_dict(renamed(dict(model.named_parameters())), strict=False)  # all but the tied head
    return reference.eval()


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names -> by transformers', projections turned round."""
    found = {}
    for ours, tensor in tensors.items():
        name = ours
        for pattern, theirs in NAMES:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor.t() if re.search(r"c_(attn|proj|fc)\.weight$", name) else tensor
    return found


def parameters(pair: Pair) -> Check:
    """All four sizes, on the meta device."""
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in GPT2(GPT2Config.preset(name)).parameters()) for name in PARAMETERS}
    wrong = [f"{name}: {counts[name]:,}" for name, wanted in PARAMETERS.items() if counts[name] != wanted]
    wanted = ", ".join(f"{count:,}" for count in PARAMETERS.values())
    return Check("parameters of the four sizes", ", ".join(wrong) or "the same", wanted, not wrong)


def weights(pair: Pair) -> Check:
    """Every number of every tensor."""
    ours, theirs = renamed(dict(pair.model.named_parameters())), dict(pair.reference.named_parameters())
    wrong = [name for name in sorted(ours.keys() | theirs.keys()) if not _same(ours.get(name), theirs.get(name))]
    numbers = sum(p.numel() for p in theirs.values())
    found = f"{wrong[0]} and {len(wrong) - 1} more differ" if wrong else "the same"
    return Check("weights", found, f"{len(theirs)} tensors, {numbers:,} numbers, bit for bit", not wrong)


def hidden_states(pair: Pair) -> Check:
    """The residual stream behind the embeddings, each block and the last norm, over the whole context."""
    text = _text(pair, 1, pair.model.config.block_size)
    ours = _residual_streams(pair.model, text)
    with torch.inference_mode():
        theirs = list(pair.reference.transformer(text, output_hidden_states=True).hidden_states)
        # transformers leaves out the last block's: what it gives last has gone through the last norm.
        after = {"the embeddings": (ours[0], theirs[0]), "the last norm": (ours[-1], theirs[-1])}
        after |= {f"block {n + 1}": (ours[n + 1], theirs[n + 1]) for n in range(len(theirs) - 2)}
        worst, difference = _worst({place: _relative(a, b) for place, (a, b) in after.items()})
    return Check(
        f"hidden states, {text.shape[1]:,} tokens",
        f"{difference:.1e} of the largest, after {worst}",
        f"at most {HIDDEN_LIMIT:.0e} after each of {len(after)} layers",
        difference <= HIDDEN_LIMIT,
    )


def logits(pair: Pair) -> Check:
    """In fp32, as they are used."""
    ours, theirs = _logits(pair, 1)
    difference = float((ours - theirs).abs().max())
    return Check("logits, fp32", f"{difference:.1e}", f"at most {LOGITS_LIMIT:.0e}", difference <= LOGITS_LIMIT)


def exact_logits(pair: Pair) -> Check:
    """In fp64, where rounding can hide nothing."""
    for model in (pair.model, pair.reference):
        model.double()
    difference = _relative(*_logits(pair, 2))
    for model in (pair.model, pair.reference):
        model.float()  # as they were before: nothing is lost
    return Check(
        "logits, fp64",
        f"{difference:.1e} of the largest",
        f"at most {EXACT_LIMIT:.0e}",
        difference <= EXACT_LIMIT,
    )


def gradients(pair: Pair) -> Check:
    """Of the loss, for every parameter."""
    text = _text(pair, 2, _context(pair))
    pair.model.loss(text[:, :-1], text[:, 1:]).backward()
    pair.reference(text, labels=text).loss.backward()
    ours = renamed({name: p.grad for name, p in pair.model.named_parameters() if p.grad is not None})
    theirs = {name: p.grad for name, p in pair.reference.named_parameters()}
    pair.model.zero_grad()
    pair.reference.zero_grad()
    worst, difference = _worst({name: _relative(ours.get(name), gradient) for name, gradient in theirs.items()})
    return Check(
        "gradients of the loss",
        f"{difference:.1e} of the largest, in {worst}",
        f"at most {GRADIENT_LIMIT:.0e} in each of {len(theirs)} tensors",
        difference <= GRADIENT_LIMIT,
    )


def greedy_text(pair: Pair) -> Check:
    """Ours with our cache, against transformers' `generate` with its own."""
    new = min(NEW, pair.model.config.block_size // 2)
    prompts, end = _text(pair, PROMPTS, 8), pair.model.config.vocab_size - 1
    prompts = prompts[:, : pair.model.config.block_size - new]
    ours = generate(pair.model, prompts, new, temperature=0, stop={end})
    theirs = pair.reference.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=new, eos_token_id=end, pad_token_id=end
    )
    passed = torch.equal(ours, theirs)
    return Check("greedy text with caches", "the same" if passed else "differs", f"{PROMPTS} texts of {new} new tokens", passed)


def published_text(pair: Pair) -> Check:
    """What the released 124M weights are known to write."""
    name, wanted = "published text of the original weights", f"{1 + len(PUBLISHED)} greedy texts to 20 tokens"
    if not pair.original:
        return Check(name, f"not checked: {pair.why_not}", wanted, None)
    tokenizer = load_tokenizer()
    texts = [DOG, *(tokenizer.encode_ordinary(prompt + text) for prompt, text in PUBLISHED.items())]
    prompts = [DOG[:2], *map(tokenizer.encode_ordinary, PUBLISHED)]
    for prompt, text in zip(prompts, texts, strict=True):
        found = generate(pair.model, torch.tensor([prompt]), len(text) - len(prompt), temperature=0)[0].tolist()
        if found != text:
            return Check(name, f"{tokenizer.decode(found)!r}", f"{tokenizer.decode(text)!r}", False)
    return Check(name, "the same", wanted, True)


STEPS: tuple[Callable[[Pair], Check], ...] = (
    parameters, weights, hidden_states, logits, exact_logits, gradients, greedy_text, published_text,
)  # fmt: skip


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("verify: transformers is not installed; run pip install 'gpt2-ablate[verify]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _present() -> str | None:
    """Where the original weights are on this machine."""
    if Path("checkpoints/gpt2").is_dir():
        return "checkpoints/gpt2"
    try:
        fetch("gpt2", download=False)
    except UserError:
        return None
    return "gpt2"


def _folder_of_transformers(source: str) -> Path | None:
    """The folder that transformers can read by itself, if `source`, which has been loaded, is in one."""
    if Path(source).exists():
        return Path(source) if (Path(source) / "config.json").is_file() else None
    return fetch(source, download=False).parent


def _why_not_original(config: GPT2Config, source: str) -> str:
    """Why the weights are not the released ones of 124M, in words; empty if they are said to be."""
    if config != GPT2Config.preset("gpt2"):
        return "these are not the weights of the 124M model"
    if (Path(source) / "model.json").exists():
        return "these weights were trained or converted here"
    if not Path(source).exists() and hub_name(source) != hub_name("gpt2"):
        return "these are another model's weights"
    return ""


def _require_gpt2(config: GPT2Config, source: str) -> None:
    plain = GPT2Config(config.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd)
    if config.kv_heads != config.n_head:
        raise UserError(f"{source}: n_kv_head: {config.n_kv_head}: is not GPT-2, which verify compares with; give a baseline")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in ("n_kv_head", "dropout", "kernel") and value != getattr(plain, field.name):
            raise UserError(f"{source}: {field.name}: {value}: is not GPT-2, which verify compares with; give a baseline")


def _context(pair: Pair) -> int:
    return min(TOKENS, pair.model.config.block_size)


def _text(pair: Pair, rows: int, tokens: int) -> Tensor:
    """Random token ids [rows, tokens], always the same."""
    return torch.randint(pair.model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def _residual_streams(model: GPT2, text: Tensor) -> list[Tensor]:
    """[B, T, C] in front of the first block, behind each block, and behind the last norm."""
    found: list[Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))]
    hooks += [block.register_forward_hook(lambda module, inputs, output: found.append(output)) for block in model.blocks]
    try:
        with torch.inference_mode():
            last = model.hidden(text)
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, last]


def _logits(pair: Pair, rows: int) -> tuple[Tensor, Tensor]:
    """Ours and theirs [B, T, V]."""
    # Weights that have learned something are compared on a text: fp32 rounds their logits, which are near -100, to 1e-5.
    text = torch.tensor([DOG]) if pair.original else _text(pair, rows, _context(pair))
    with torch.inference_mode():
        return pair.model(text), pair.reference(text).logits


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    return ours is not None and theirs is not None and torch.equal(ours, theirs)


def _relative(ours: Tensor | None, theirs: Tensor) -> float:
    """The largest difference, of the largest number; not a number where either has one that is none."""
    if ours is None:
        return math.inf
    difference = (ours - theirs).abs().max()
    return float(difference / theirs.abs().max()) if difference else 0.0  # both may be zero all over


def _worst(differences: dict[str, float]) -> tuple[str, float]:
    """The largest, and where it is. What is not a number comes first: alone, `max` would pass over it."""
    return max(differences.items(), key=lambda item: (math.isnan(item[1]), item[1]))
