"""Rotary position embedding, as arithmetic: frequencies, tables of angles, and the rotation itself (Su et al. 2104.09864).

A model trained on L tokens has never met the angles of position s L. Each of the scalings below changes the D/2 frequencies so
that it has, and equals that of the same name in transformers ("ntk" is its "dynamic" at the full length, fixed there, so that
keys in a cache stay right whatever comes after them).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2_ablate.errors import UserError
from gpt2_ablate.ops import native

FAST, SLOW = 32, 1  # rotations in the trained length: YaRN's beta and alpha for Llama, Peng et al. 2309.00071, section 3.2


class Rope(NamedTuple):
    """What decides the angles."""

    D: int  # width of a head
    base: float  # pair i of D/2 rotates by base ** (-2i / D) a token
    scaling: str | None  # None, "linear", "ntk" or "yarn"
    factor: float  # s, by how many times the trained length is extended
    length: int  # the extended length in tokens; length / factor was trained


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [..., T, D] rotated by angles whose cosines and sines are [..., T, D/2], the same for all heads, in fp32.

    Args:
        interleaved: the pairs are neighbouring channels (equation 34); else channel i of either half.
    """
    if x.dtype == torch.bfloat16 and x.ndim == 4 and native.is_available("pointwise", x, cos, sin):
        return _Rotation.apply(x, cos, sin, interleaved)
    if interleaved:
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2).type_as(x)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


class _Rotation(torch.autograd.Function):
    """By pointwise.c, in one pass over the numbers; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, sin, ctx.interleaved, -1), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: int) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    B, heads, T, D = x.shape
    y = x.new_empty(B, T, heads, D).transpose(1, 2)  # in the layout that linear layers write and read
    cos, sin = cos.contiguous(), sin.contiguous()
    table_stride = T * D // 2 if cos.numel() > T * D // 2 else 0  # the same angles for all texts, or not
    views = native.View.of(x), native.View.of(y)
    native.call("pointwise", "rotate", *views, cos, sin, B, heads, T, table_stride, interleaved, sign)
    return y


def rotation_tables(rope: Rope, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, D/2] of the angles of every position."""
    radians, scale = frequencies(rope)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), radians)
    return scale * angles.cos(), scale * angles.sin()


def frequencies(rope: Rope) -> tuple[Tensor, float]:
    """Radians a token [D/2] of each pair, and what the rotated queries and keys are multiplied by.

    Raises:
        UserError: there is no scaling of this name.
    """
    if rope.scaling not in SCALINGS:
        known = ", ".join(str(name or "null") for name in SCALINGS)
        raise UserError(f"rope_scaling: there is no {rope.scaling!r}; give one of {known}")
    return SCALINGS[rope.scaling](rope)


def _plain(rope: Rope) -> tuple[Tensor, float]:
    """Pair i rotates by base ** (-2i / D) (Su et al. 2104.09864, equation 15)."""
    return _of_base(rope.D, rope.base), 1.0


def _linear(rope: Rope) -> tuple[Tensor, float]:
    """Position interpolation: position m is encoded as m / s (Chen et al. 2306.15595, section 2.3)."""
    return _of_base(rope.D, rope.base) / rope.factor, 1.0


def _ntk(rope: Rope) -> tuple[Tensor, float]:
    """A larger base: the slowest pair is slowed s times, the fastest not at all (Peng et al. 2309.00071, definition 1)."""
    if rope.D == 2:
        raise UserError("rope_scaling: ntk has no slower pair to slow in heads of width 2; give linear, or wider heads")
    return _of_base(rope.D, rope.base * rope.factor ** (rope.D / (rope.D - 2))), 1.0


def _yarn(rope: Rope) -> tuple[Tensor, float]:
    """YaRN: pairs that rotate often in the trained length stay, pairs that do not rotate once are interpolated, those
    between in part; and attention gets sharper (Peng et al. 2309.00071, definitions 2 and 3, equation 22)."""
    D, s = rope.D, rope.factor
    trained = rope.length / s

    def pair(rotations: float) -> float:  # that rotates so many times in the trained length
        return D * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = max(math.floor(pair(FAST)), 0), min(math.ceil(pair(SLOW)), D - 1)
    ramp = ((torch.arange(D // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = _of_base(D, rope.base)
    return plain / s * ramp + plain * (1 - ramp), 0.1 * math.log(s) + 1.0


def _of_base(D: int, base: float) -> Tensor:
    return base ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)


SCALINGS = {None: _plain, "linear": _linear, "ntk": _ntk, "yarn": _yarn}
