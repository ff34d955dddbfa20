"""Trained weights of one variant as the start of another: fewer key/value heads, rotary positions, a window.

What cannot stay the same function is the closest start for a short training ("uptraining", Ainslie et al. 2305.13245,
section 2.1).
"""

from __future__ import annotations

import zlib
from dataclasses import fields, replace

import torch
from torch import Tensor

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.model.rope import other_convention
from gpt2_ablate.weights.build import empty_model, fill

HOW = ("mean", "first", "random")

# Fields that may change freely: no weight depends on them, or an exact rule says how. The others are looked at one by one.
FREE = set("window dilation global_tokens kernel dropout rope_base rope_scaling rope_factor rope_interleaved".split())


def to_grouped_query(model: GPT2, n_kv_head: int, how: str = "mean", seed: int = 0) -> GPT2:
    """The model with G = n_kv_head key/value heads, each made of H / G neighbouring ones, see `convert`."""
    return convert(model, replace(model.config, n_kv_head=n_kv_head), how, seed)


def to_rotary(model: GPT2) -> GPT2:
    """The model with rotary positions; its table of learned positions is dropped. The function changes."""
    return convert(model, replace(model.config, positions="rotary"))


def to_window(model: GPT2, window: int) -> GPT2:
    """The model with a sliding window of W tokens. Up to W tokens of text the function is the same."""
    return convert(model, replace(model.config, window=window))


def convert(model: GPT2, config: GPT2Config, how: str = "mean", seed: int = 0) -> GPT2:
    """A new model of the configuration `config`, in evaluation mode, that starts from the weights of `model`.

    Args:
        model: stays as it is.
        config: may have fewer key/value heads (a divisor), rotary in place of learned positions, a shorter table of learned
            positions, and anything that no weight depends on: windows, dropout, the base and scaling of rotary positions.
        how: what a key/value head is made of (Ainslie et al. 2305.13245, section 2.1 and figure 4, which finds the first
            best): "mean" of the heads that it stands for, the "first" of them, or "random" numbers, N(0, 0.02), biases zero.
        seed: of the random numbers; 0 to 2**63 - 1.

    Raises:
        UserError: the direction is impossible, as from fewer to more key/value heads.
    """
    _check(model.config, config)
    if how not in HOW:
        raise UserError(f"how: {how!r} is no way to make key/value heads; give one of {', '.join(HOW)}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed} is not a seed; give a whole number from 0 to {2**63 - 1}")
    old = {name: p.detach() for name, p in model.named_parameters()}
    # Weights that have never been turned have no convention yet.
    other_pairs = model.config.positions == "rotary" and model.config.rope_interleaved != config.rope_interleaved

    def write(name: str, weight: Tensor) -> None:
        found = old[name]
        if name.endswith(("attention.qkv.weight", "attention.qkv.bias")):
            found = other_convention(found, model.config) if other_pairs else found
            found = _regroup(found, model.config, config.kv_heads, how, seed ^ zlib.crc32(name.encode()))
        weight.copy_(found[: len(weight)])  # the table of learned positions may be shorter

    return fill(empty_model(config), write)


def _check(old: GPT2Config, new: GPT2Config) -> None:
    for name in (field.name for field in fields(GPT2Config) if field.name not in FREE):
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if name == "n_kv_head":
            if old.kv_heads % new.kv_heads:
                divisors = ", ".join(str(g) for g in range(1, old.kv_heads + 1) if old.kv_heads % g == 0)
                raise UserError(
                    f"n_kv_head: {old.kv_heads} key/value heads cannot be turned into {new.kv_heads}; give one of {divisors}"
                )
        elif name == "positions":
            if (before, after) != ("learned", "rotary"):
                raise UserError(f"positions: {before} cannot be turned into {after}; only learned into rotary")
        elif name == "block_size":
            if new.positions == "learned" and after > before:
                raise UserError(
                    f"block_size: {before} learned positions cannot become {after}; give {before} or less, or rotary positions"
                )
        else:
            raise UserError(f"{name}: {before!r} cannot be turned into {after!r}; only trained weights could tell how")


def _regroup(qkv: Tensor, config: GPT2Config, n_kv_head: int, how: str, seed: int) -> Tensor:
    """Weight or bias of the qkv projection [(H + 2 G) D, ...] with fewer key/value heads [(H + 2 n_kv_head) D, ...]."""
    if config.kv_heads == n_kv_head:
        return qkv
    rows = [heads * config.head_dim for heads in (config.n_head, config.kv_heads, config.kv_heads)]
    queries, *keys_and_values = qkv.split(rows)
    generator = torch.Generator().manual_seed(seed)
    made = [queries]
    for heads in keys_and_values:
        groups = heads.unflatten(0, (n_kv_head, -1, config.head_dim))  # neighbouring heads become one
        if how == "mean":
            # In double precision, so that the mean of equal heads is that head, bit for bit.
            made.append(groups.double().mean(1).type_as(heads).flatten(0, 1))
        elif how == "first":
            made.append(groups[:, 0].flatten(0, 1))
        else:
            std = 0.02 if heads.ndim > 1 else 0.0
            made.append(std * torch.randn(groups[:, 0].flatten(0, 1).shape, generator=generator).to(heads))
    return torch.cat(made)
