"""Cross-entropy of a large vocabulary without ever holding all of its logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # a target that does not count
ROWS = 256  # tokens whose logits are held at a time, at least: 256 x 50,257 bf16 logits are 26 MB
PIECES = 8  # and at most this many pieces
SCORED = 128  # tokens that are scored at a time: their fp32 logits, 26 MB, are small enough that a heap keeps them


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `hidden @ weight.T` against `targets`; targets of -100 do not count.

    With gradients, torch's own fused op where it has one (torch 2.13), else the same by recomputing each piece in the
    backward pass. The fused op sums its result in the dtype of `hidden`: under bf16 autocast the gradient is right to half
    a percent, but the value only to a few. Without gradients the value is exact; log that one.

    Args:
        hidden: [N, C].
        weight: [V, C].
        targets: [N].
    """
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets).sum() / (targets != IGNORED).sum()
    hidden, weight = _autocast(hidden, weight)
    # The weight's gradient is summed over the pieces in bf16: few large ones where there are many tokens.
    rows = max(ROWS, -(-len(hidden) // PIECES))
    if hasattr(F, "linear_cross_entropy"):
        # "balanced" is 1.2x to 1.5x faster than the other policies on a CPU, at the gradient error of bf16 logits.
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None, acc_policy="balanced")
        return F.linear_cross_entropy(hidden, weight, targets, options=options)
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        total = total + checkpoint(_losses_of_piece, h, weight, t, use_reentrant=False).sum()
    return total / (targets != IGNORED).sum()


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of every single target, fp32 [N]; 0 where the target is -100. Arguments as above."""
    hidden, weight = _autocast(hidden, weight)
    pieces = zip(hidden.split(SCORED), targets.split(SCORED), strict=True)
    return torch.cat([_losses_of_piece(h, weight, t) for h, t in pieces])


def _losses_of_piece(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none", ignore_index=IGNORED)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast once what autocast would cast piece by piece (and the fused op is not on autocast's list at all)."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [t.to(torch.get_autocast_dtype(device)) for t in tensors]
