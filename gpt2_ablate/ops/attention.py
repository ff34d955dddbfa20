"""Attention dispatch: the fastest kernel that computes a mask exactly.

Queries are [B, H, Tq, D], keys [B, G, Tk, D], values [B, G, Tk, Dv]; query head h reads key/value head h // (H / G). Every
kernel computes what `gpt2_ablate.ops.eager` computes, and is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.ops.causal import causal_attention
from gpt2_ablate.ops.cpu import unmasked_attention
from gpt2_ablate.ops.eager import eager_attention, masked_attention
from gpt2_ablate.ops.flex import flex_attention
from gpt2_ablate.ops.mask import AttentionMask
from gpt2_ablate.ops.precision import autocast_dtype
from gpt2_ablate.ops.sliding import sliding_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Tensor:
    """Attention of q [B, H, Tq, D] over k [B, G, Tk, D] and v [B, G, Tk, Dv] -> [B, H, Tq, Dv].

    Args:
        mask: which keys each query sees.
        query_positions: [Tq]; needed with key_positions.
        key_positions: [Tk] or [B, Tk], of the keys in a cache, in any order. One new query under a plain window has to see
            all of them. None: T tokens attend to themselves.
        dropout: probability of dropping an attention probability.
        kernel: see `select_kernel`; a cache has kernels of its own.

    Raises:
        UserError: the kernel cannot compute this here.
    """
    if key_positions is not None:
        return _cached(q, k.type_as(q), v.type_as(q), mask, query_positions, key_positions)
    if _stand_ins:
        return _stand_ins[-1](q, k, v, mask)
    if (dtype := autocast_dtype(q)) is not None:  # not every kernel is on autocast's list
        q, k, v = (x.to(dtype) for x in (q, k, v))
    name = select_kernel(mask, q.device, q.shape[2], dropout, kernel)
    for names in _recorders:
        names.setdefault(name)
    return KERNELS[name].run(q, k, v, mask, dropout)


def _cached(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, i: Tensor | None, j: Tensor) -> Tensor:
    assert i is not None
    has_plain_window = mask.dilations == {1} and not mask.global_tokens
    if q.shape[2] == 1 and has_plain_window and mask.document_starts is None and mask.score_bias is None:
        return unmasked_attention(q, k, v)  # one new token sees all that the cache keeps
    return masked_attention(q, k, v, mask, i, j)


_recorders: list[dict[str, None]] = []


@contextmanager
def record_kernels():
    """Within, the names of the kernels that `attention` runs are collected: `with record_kernels() as names`."""
    names: dict[str, None] = {}
    _recorders.append(names)
    try:
        yield names
    finally:
        _recorders.remove(names)


StandIn = Callable[[Tensor, Tensor, Tensor, AttentionMask], Tensor]

_stand_ins: list[StandIn] = []


@contextmanager
def replace_kernels(compute: StandIn):
    """Within, `compute(q, k, v, mask)` does what the kernels do for tokens that attend to themselves; for counting."""
    _stand_ins.append(compute)
    try:
        yield
    finally:
        _stand_ins.pop()


def select_kernel(mask: AttentionMask, device: torch.device, T: int, dropout: float = 0.0, kernel: str = "auto") -> str:
    """The name of the kernel that computes attention of T tokens to themselves on this device.

    Args:
        kernel: "auto", the first of these that can; or the name of one, which has to.

            - "causal": full causal attention; in bf16 on a CPU by flash.c, else by torch.
            - "flex": FlexAttention on CUDA, compiled for the mask.
            - "sliding": windows in blocks, on any device; plain ones in bf16 on a CPU by flash.c.
            - "eager": every pair is scored and masked; computes anything anywhere.

    Raises:
        UserError: there is no such kernel, or it cannot compute this here.
    """
    if kernel == "auto":
        return next(name for name, k in KERNELS.items() if k.unsupported_reason(mask, device, T, dropout) is None)
    if reason := find_kernel(kernel).unsupported_reason(mask, device, T, dropout):
        raise UserError(f"kernel: {kernel} cannot run here, because {reason}; give auto")
    return kernel


def find_kernel(name: str) -> Kernel:
    """The kernel of this name; for "auto" the one that computes anything.

    Raises:
        UserError: there is none.
    """
    if name == "auto":
        return KERNELS["eager"]
    if name not in KERNELS:
        raise UserError(f"kernel: there is no {name!r}; give one of auto, {', '.join(KERNELS)}")
    return KERNELS[name]


def _causal_unsupported(mask: AttentionMask, device: torch.device, T: int, dropout: float) -> str | None:
    return None if mask.is_full(T) else "the mask hides more than the future"


def _flex_unsupported(mask: AttentionMask, device: torch.device, T: int, dropout: float) -> str | None:
    if device.type != "cuda":
        return f"it has no backward pass on {device.type}"
    if dropout:
        return "dropout is not supported"
    if mask.score_bias is not None:
        return "a score bias is not supported"
    return None


def _sliding_unsupported(mask: AttentionMask, device: torch.device, T: int, dropout: float) -> str | None:
    if mask.window is None:
        return "there is no window"
    if mask.global_tokens and mask.document_starts is not None:
        return "every document has global tokens of its own"
    if mask.score_bias is not None and (mask.global_tokens or mask.document_starts is not None):
        return "a score bias is shared by all blocks"
    return None


def _always_supported(mask: AttentionMask, device: torch.device, T: int, dropout: float) -> str | None:
    return None


class Kernel(NamedTuple):
    """How a kernel is run, and what (if anything) keeps it from running."""

    run: Callable[..., Tensor]
    unsupported_reason: Callable[[AttentionMask, torch.device, int, float], str | None]


KERNELS = {  # the fastest first
    "causal": Kernel(causal_attention, _causal_unsupported),
    "flex": Kernel(flex_attention, _flex_unsupported),
    "sliding": Kernel(sliding_attention, _sliding_unsupported),
    "eager": Kernel(eager_attention, _always_supported),
}
