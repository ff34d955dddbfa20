"""The one door to the attention kernels: from queries, keys and values to mixed values, by the fastest way there is.

Queries are [B, H, T, D], keys and values [B, G, T, D]; query head h reads key/value head h // (H / G). Every kernel does
what `gpt2_ablate.model.reference` does, and no more work than the pattern needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.causal import causal
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.flex import flex
from gpt2_ablate.model.mix import unmasked
from gpt2_ablate.model.pattern import Pattern, ScoreBias
from gpt2_ablate.model.precision import autocast_dtype
from gpt2_ablate.model.reference import reference, rows
from gpt2_ablate.model.sliding import sliding


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float = 0.0, kernel: str = "auto") -> Tensor:
    """Attention of T tokens over themselves: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D].

    Args:
        pattern: which keys each query sees.
        dropout: probability of dropping an attention weight.
        kernel: see `kernel_for`.

    Raises:
        UserError: the kernel cannot do this here.
    """
    if (dtype := autocast_dtype(q)) is not None:  # not every kernel is on autocast's list
        q, k, v = (x.to(dtype) for x in (q, k, v))
    name = kernel_for(pattern, q.device, q.shape[2], dropout, kernel)
    return KERNELS[name].run(q, k, v, pattern, dropout)


def attend_cached(q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, pattern: Pattern) -> Tensor:
    """Attention of the newest Tq tokens over Tk cached ones: [B, H, Tq, D] over [B, G, Tk, D] -> [B, H, Tq, D].

    Args:
        i: [Tq], the places of the queries.
        j: [Tk] or [B, Tk], the places of the keys, in any order. One new token of a plain window must see them all.
    """
    plain = pattern.dilations == {1} and not pattern.global_tokens and pattern.starts is None and pattern.score_bias is None
    if plain and q.shape[2] == 1:
        return unmasked(q, k, v)  # one new token sees all that the cache holds
    return rows(q, k, v, pattern, i, j)


def kernel_for(pattern: Pattern, device: torch.device, T: int, dropout: float = 0.0, kernel: str = "auto") -> str:
    """The name of the kernel that `attend` takes for T tokens on this device.

    Args:
        kernel: "auto", the first of these that can; or the name of one, which has to.

            - "causal": where there is nothing to hide but the future.
            - "flex": FlexAttention on CUDA, compiled for the pattern.
            - "sliding": windows in blocks, anywhere.
            - "reference": every pair is scored and masked, anything anywhere.

    Raises:
        UserError: there is no such kernel, or it cannot do this here.
    """
    if kernel == "auto":
        return next(name for name, k in KERNELS.items() if k.obstacle(pattern, device, T, dropout) is None)
    obstacle = find_kernel(kernel).obstacle(pattern, device, T, dropout)
    if obstacle is not None:
        raise UserError(f"kernel: {kernel} cannot run here, because {obstacle}; give auto")
    return kernel


def kernels_of(
    config: GPT2Config, bias: ScoreBias, device: torch.device, T: int, starts: Tensor | None = None, dropout: float = 0.0
) -> list[str]:
    """The names of the kernels that the layers of a model take for T tokens, each once, in the order of the layers.

    Args:
        bias, starts: see `Pattern`.

    Raises:
        UserError: the one that the config wants cannot run here.
    """
    patterns = [replace(Pattern.of(layer), starts=starts, score_bias=bias) for layer in config.layers]
    return list(dict.fromkeys(kernel_for(pattern, device, T, dropout, config.kernel) for pattern in patterns))


def find_kernel(name: str) -> Kernel:
    """The kernel of this name; for "auto" the last resort.

    Raises:
        UserError: there is none.
    """
    if name == "auto":
        return KERNELS["reference"]
    if name not in KERNELS:
        raise UserError(f"kernel: there is no {name!r}; give one of auto, {', '.join(KERNELS)}")
    return KERNELS[name]


def _no_causal(pattern: Pattern, device: torch.device, T: int, dropout: float) -> str | None:
    return None if pattern.sees_all(T) else "the pattern hides more than the future"


def _no_flex(pattern: Pattern, device: torch.device, T: int, dropout: float) -> str | None:
    if device.type != "cuda":
        return f"it has no backward pass on {device.type}"
    if dropout:
        return "it knows no dropout"
    if pattern.score_bias is not None:
        return "these positions add to the scores"
    return None


def _no_sliding(pattern: Pattern, device: torch.device, T: int, dropout: float) -> str | None:
    if pattern.window is None:
        return "there is no window"
    if pattern.global_tokens and pattern.starts is not None:
        return "every document has global tokens of its own"
    if pattern.score_bias is not None and (pattern.global_tokens or pattern.starts is not None):
        return "a score bias is shared by all blocks"
    return None


def _never(pattern: Pattern, device: torch.device, T: int, dropout: float) -> str | None:
    return None


class Kernel(NamedTuple):
    """How a kernel is run, and what (if anything) keeps it from running."""

    run: Callable[..., Tensor]
    obstacle: Callable[[Pattern, torch.device, int, float], str | None]


KERNELS = {  # the best first
    "causal": Kernel(causal, _no_causal),
    "flex": Kernel(flex, _no_flex),
    "sliding": Kernel(sliding, _no_sliding),
    "reference": Kernel(reference, _never),
}
