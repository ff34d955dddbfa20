"""How fast each pair of channels turns, and how to slow it down to reach further than was trained.

A model trained on L tokens meets no angle of theirs at position s L that it knows. Each way here changes the D/2
frequencies so that it does, and equals that of the same name in transformers ("ntk" is its "dynamic" at the full length,
held there, so that keys in a cache stay right whatever comes after them).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import GPT2Config

FAST, SLOW = 32, 1  # turns in the trained length: YaRN's beta and alpha for Llama, Peng et al. 2309.00071, section 3.2


def frequencies(config: GPT2Config) -> tuple[Tensor, float]:
    """Radians a token [D/2] of each pair, and what the turned queries and keys are multiplied by.

    Raises:
        UserError: there is no scaling of this name.
    """
    if config.rope_scaling not in SCALINGS:
        known = ", ".join(str(name or "null") for name in SCALINGS)
        raise UserError(f"rope_scaling: there is no {config.rope_scaling!r}; give one of {known}")
    return SCALINGS[config.rope_scaling](config)


def _plain(config: GPT2Config) -> tuple[Tensor, float]:
    """Pair i turns by base ** (-2i / D) (Su et al. 2104.09864, equation 15)."""
    return _of_base(config, config.rope_base), 1.0


def _linear(config: GPT2Config) -> tuple[Tensor, float]:
    """Position interpolation: position m is told as m / s (Chen et al. 2306.15595, section 2.3)."""
    return _of_base(config, config.rope_base) / config.rope_factor, 1.0


def _ntk(config: GPT2Config) -> tuple[Tensor, float]:
    """A larger base: the slowest pair is slowed s times, the fastest not at all (Peng et al. 2309.00071, definition 1)."""
    D = config.head_dim
    if D == 2:
        raise UserError("rope_scaling: ntk has no slower pair to slow in heads of width 2; give linear, or wider heads")
    return _of_base(config, config.rope_base * config.rope_factor ** (D / (D - 2))), 1.0


def _yarn(config: GPT2Config) -> tuple[Tensor, float]:
    """YaRN: pairs that turn often in the trained length stay, pairs that do not turn once are interpolated, those
    between in part; and attention gets sharper (Peng et al. 2309.00071, definitions 2 and 3, equation 22)."""
    D, s = config.head_dim, config.rope_factor
    trained = config.block_size / s

    def pair(turns: float) -> float:  # that turns so many times in the trained length
        return D * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(config.rope_base))

    low, high = max(math.floor(pair(FAST)), 0), min(math.ceil(pair(SLOW)), D - 1)
    ramp = ((torch.arange(D // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = _of_base(config, config.rope_base)
    return plain / s * ramp + plain * (1 - ramp), 0.1 * math.log(s) + 1.0


def _of_base(config: GPT2Config, base: float) -> Tensor:
    return base ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)


SCALINGS = {None: _plain, "linear": _linear, "ntk": _ntk, "yarn": _yarn}
