"""Laws that every GPT-2 obeys, whatever its parts: a model that breaks one would be trained and compared in vain.

Each takes a model and says in one line how it is broken, or None. They run on the weights as they are, so give them weights that
are large enough to matter (`small_model`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_ablate.evaluation.flops import receptive_field
from gpt2_ablate.model import GPT2, GPT2Config, KVCache
from gpt2_ablate.model.parts import resolve

TOKENS = 24
EXACT, ROUNDING = 1e-9, 1e-4  # of the largest logit, in fp64; a part may round to fp32 on the way


def small_model(config: GPT2Config) -> GPT2:
    """A model of the same parts, with two layers or so, in fp64, and with weights large enough that no part is idle."""
    windows = [value for value in (config.window, config.dilation) if isinstance(value, tuple)]
    n_layer = max([2, *map(len, windows)]) if config.n_layer > 2 else config.n_layer
    n_layer = n_layer if config.n_layer % n_layer == 0 else config.n_layer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2(replace(config, n_layer=n_layer, vocab_size=min(config.vocab_size, 97), dropout=0.0)).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
    return model


def broken_law(model: GPT2) -> str | None:
    """How the model breaks the first law that it breaks; None if it obeys all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return next((how for law in LAWS if (how := law(model))), None)


@torch.no_grad()
def parts(model: GPT2) -> str | None:
    """Blocks, attention, MLPs and norms return what they are given in a shape that is the same."""
    kinds = {resolve(kind, getattr(model.config, kind))[0]: kind for kind in ("norm", "mlp", "attention", "block")}
    broken: list[str] = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if found != list(inputs[0].shape):
            name = f"{inspect.getsourcefile(type(module))}:{inspect.getsourcelines(type(module))[1]}: {type(module).__name__}"
            broken.append(f"{name} returns {found} for {list(inputs[0].shape)}; {kinds[type(module)]} keeps the shape")

    hooks = [module.register_forward_hook(check) for module in model.modules() if type(module) in kinds]
    try:
        model(_ids(model, 2))
    except Exception:
        if not broken:
            raise
    finally:
        for hook in hooks:
            hook.remove()
    return broken[0] if broken else None


@torch.no_grad()
def repeatable(model: GPT2) -> str | None:
    """The same text has the same logits twice."""
    ids = _ids(model, 2)
    return "logits are not the same twice: something is random, or is left over" if _differ(model(ids), model(ids), 0.0) else None


@torch.no_grad()
def shape(model: GPT2) -> str | None:
    """Token ids [B, T] -> logits [B, T, V], all of them numbers."""
    ids = _ids(model, 2)
    logits, wanted = model(ids), (*ids.shape, model.config.vocab_size)
    if logits.shape != wanted:
        return f"logits have the shape {list(logits.shape)}, which should be {list(wanted)}"
    return None if logits.isfinite().all() else "logits are not finite"


@torch.no_grad()
def causality(model: GPT2) -> str | None:
    """The logits at a position do not depend on later tokens."""
    ids = _ids(model, 1)
    logits = model(ids)
    for changed in (ids.shape[1] - 1, ids.shape[1] // 2):
        other = ids.clone()
        other[:, changed:] = (other[:, changed:] + 1) % model.config.vocab_size
        if _differ(model(other)[:, :changed], logits[:, :changed], EXACT):
            return f"logits before position {changed} depend on tokens from there on: the model sees the future"
    return None


@torch.no_grad()
def window(model: GPT2) -> str | None:
    """Nothing beyond the windows of all layers is seen."""
    field = receptive_field(model.config)
    if field is None or any(mask.global_tokens for mask in model.config.masks):
        return None
    length = _longest(model, field + 4)
    ids = _ids(model, 1, length)
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % model.config.vocab_size
    if length > field and _differ(model(ids)[:, field:], model(other)[:, field:], EXACT):
        return f"logits depend on a token {field} positions back, which no window of {model.config.n_layer} layers reaches"
    return None


@torch.no_grad()
def rows(model: GPT2) -> str | None:
    """Sequences of a batch are independent."""
    ids = _ids(model, 3)
    together, alone = model(ids), torch.cat([model(row[None]) for row in ids])
    return "the sequences of a batch influence each other" if _differ(together, alone, ROUNDING) else None


@torch.no_grad()
def cache(model: GPT2) -> str | None:
    """Read in pieces with a cache, a sequence has the same logits; and the cache has the bytes that are reported of it."""
    ids = _ids(model, 2)
    kept = model.make_cache(2)
    pieces = [model(piece, kept) for piece in ids.split([5, 1, 1, ids.shape[1] - 7], dim=1)] if ids.shape[1] > 7 else [model(ids)]
    if _differ(torch.cat(pieces, dim=1), model(ids), ROUNDING):
        return "logits with a cache differ from those without"
    reported = KVCache(model.config, 2, dtype=torch.double, device="meta").nbytes
    if reported != kept.nbytes:
        return f"its cache takes {kept.nbytes} bytes, {reported} on the meta device"
    return None


@torch.no_grad()
def documents(model: GPT2) -> str | None:
    """Documents packed into one row are read as if each were alone."""
    ids = _ids(model, 1)
    cut = ids.shape[1] // 3
    numbers = (torch.arange(ids.shape[1]) >= cut).long()[None]
    alone = torch.cat([model(piece) for piece in ids.split([cut, ids.shape[1] - cut], dim=1)], dim=1)
    return "documents of one row influence each other" if _differ(model(ids, documents=numbers), alone, ROUNDING) else None


@torch.no_grad()
def saving(model: GPT2) -> str | None:
    """Built again and given its saved weights, it is the same model: a run that was interrupted goes on as if it was not."""
    torch.manual_seed(1)
    again = GPT2(model.config).to(model.device, torch.double).eval()
    again.load_state_dict(model.state_dict())
    ids = _ids(model, 2)
    if _differ(again(ids), model(ids), EXACT):
        return "built again from its saved weights it has other logits: something that they depend on is not a parameter"
    return None


def losses(model: GPT2) -> str | None:
    """Training and scoring use the logits that sampling uses."""
    ids = _ids(model, 2)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    loss = model.loss(inputs, targets)
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        scored = model.embedding.token_losses(model.hidden(inputs), targets).double().mean()
    if _differ(loss, expected, ROUNDING) or _differ(scored, expected, ROUNDING):
        return f"its loss is {loss.item():.4f} ({scored.item():.4f} where it is scored), that of its logits {expected.item():.4f}"
    return None


LAWS: tuple[Callable[[GPT2], str | None], ...] = (
    parts, shape, repeatable, causality, window, rows, cache, documents, saving, losses,
)  # fmt: skip


def _ids(model: GPT2, batch_size: int, length: int = TOKENS) -> Tensor:
    return torch.randint(model.config.vocab_size, (batch_size, _longest(model, length)))


def _longest(model: GPT2, length: int) -> int:
    return min(length, model.config.block_size, model.positions.max_length or length)


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return not bool((a - b).abs().max() <= tolerance * b.abs().max())  # also where one is not a number
