"""Causal attention in bf16 on a CPU, full or through a window, by flash.c: scores never leave the cache."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2_ablate.ops import native

WIDEST = 128  # a head, as in flash.c


def is_available(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether `flash_attention` can compute this here."""
    is_narrow = all(x.dtype == torch.bfloat16 and x.shape[-1] <= WIDEST for x in (q, k, v))
    return is_narrow and not dropout and q.numel() > 0 and native.is_available("flash", q, k, v)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attention of T tokens to themselves: bf16 q [B, H, T, D], k [B, G, T, D], v [B, G, T, Dv] -> [B, H, T, Dv]."""
    return _Flash.apply(*(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)), window or q.shape[2])


class _Attention(ctypes.Structure):
    _fields_ = [(name, native.View) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")] + [
        (name, ctypes.c_int64) for name in ("lse", "delta", "B", "H", "G", "T", "W")
    ]


def _run(function: str, window: int, lse: Tensor, delta: Tensor, **tensors: Tensor) -> None:
    (B, H, T), G = lse.shape, tensors["k"].shape[1]
    views = {name: native.View.of(x) for name, x in tensors.items()}
    attention = _Attention(**views, lse=lse.data_ptr(), delta=delta.data_ptr(), B=B, H=H, G=G, T=T, W=min(window, T))
    native.call("flash", function, attention)


def _empty_like(x: Tensor, width: int) -> Tensor:
    """[B, heads, T, width], in the layout that linear layers write and read."""
    B, heads, T, _ = x.shape
    return x.new_empty(B, T, heads, width).transpose(1, 2)


class _Flash(torch.autograd.Function):
    """Inputs, result and a number for each query are kept for the backward pass; scores are computed again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y, lse = _empty_like(q, v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)
        _run("flash_forward", window, lse, lse, q=q, k=k, v=v, y=y)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.window = window
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dq, dk, dv = (_empty_like(x, x.shape[-1]) for x in (q, k, v))
        _run("flash_backward", ctx.window, lse, torch.empty_like(lse), q=q, k=k, v=v, y=y, dy=dy, dq=dq, dk=dk, dv=dv)
        return dq, dk, dv, None
