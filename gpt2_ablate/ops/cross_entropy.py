"""Cross-entropy of a large vocabulary without ever holding all of its logits.

Below, N is the number of tokens and R of those whose logits are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2_ablate.ops.precision import autocast_dtype

IGNORED = -100  # a target that does not count
CHUNK = 256  # tokens whose logits are held at a time, at least: 256 x 50,257 bf16 logits are 26 MB
CHUNKS = 8  # and at most this many chunks, because the weight's gradient is summed over them in bf16
SCORING_CHUNK = 128  # tokens that are scored at a time: their fp32 logits, 26 MB, are small enough that a heap keeps them


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, fp32 or better, of `hidden @ weight.T` against `targets`; targets of -100 do not count.

    With gradients, a token counts for at most the negative logarithm of the smallest number that the products' dtype holds: 87
    nats in fp32 and bf16, 16.6 in fp16. Its gradient is right all the same.

    Args:
        hidden: [N, C].
        weight: [V, C].
        targets: [N].
    """
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets).sum() / (targets != IGNORED).sum()
    return _LinearCrossEntropy.apply(hidden, weight, targets, autocast_dtype(hidden) or hidden.dtype)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of every single target, fp32 [N]; 0 where the target is -100. Arguments as above."""
    dtype = autocast_dtype(hidden) or hidden.dtype
    weight = weight.to(dtype)  # once, which autocast would do chunk by chunk
    return chunked_token_losses(lambda h: h @ weight.T, hidden.to(dtype), targets)


def chunked_cross_entropy(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """Mean cross-entropy as above of any head: `logits` maps hidden [R, C] to [R, V] by means of these parameters."""
    if not torch.is_grad_enabled():
        return chunked_token_losses(logits, hidden, targets).sum() / (targets != IGNORED).sum()
    return _ChunkedCrossEntropy.apply(logits, hidden, targets, *parameters)


def chunked_token_losses(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of every single target of any head, fp32 [N]; 0 where the target is -100."""
    chunks = zip(hidden.split(SCORING_CHUNK), targets.split(SCORING_CHUNK), strict=True)
    return torch.cat([F.cross_entropy(logits(h).float(), t, reduction="none", ignore_index=IGNORED) for h, t in chunks])


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass over the logits, its gradients: d loss / d logits = (softmax - one at the target) / N.

    torch has an op of the kind (`torch.nn.functional.linear_cross_entropy`, from 2.13 on), which on a CPU takes a sixth to a
    quarter longer and sums its value in bf16.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        counts = targets != IGNORED
        shares = counts.to(wide) / counts.sum()  # [N], of each token in the mean
        targets = targets.where(counts, 0)
        # As [C, V]: on a CPU products of this shape are 1.6 to 1.8 times as fast as of the other. Made before the rest, which
        # measured a little less memory at the peak.
        needs_grad_weight = ctx.needs_input_grad[1]
        dw = torch.empty(weight.shape[::-1], dtype=dtype, device=weight.device) if needs_grad_weight else None
        w = weight.to(dtype)
        columns = (hidden * shares[:, None]).to(dtype).T.contiguous()  # [C, N]
        likelihoods, dh = [], []
        R = _rows(hidden)
        chunks = zip(hidden.to(dtype).split(R), targets.split(R), columns.split(R, 1), strict=True)
        for n, (h, t, column) in enumerate(chunks):
            logits = h @ w.T  # [R, V]
            p = torch.softmax(logits, -1, out=logits)
            hit = torch.arange(len(t), device=t.device), t
            likelihoods.append(p[hit].to(wide))
            p[hit] -= 1
            dh.append(p @ w)
            if dw is not None:
                dw.addmm_(column, p, beta=min(n, 1))
        ctx.save_for_backward(torch.cat(dh), dw, shares)
        ctx.dtypes = hidden.dtype, weight.dtype
        return _mean(likelihoods, shares, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (dh, dw, shares), (hidden_dtype, weight_dtype) = ctx.saved_tensors, ctx.dtypes
        dhidden = (dh * (shares * gradient)[:, None]).to(hidden_dtype)
        if dw is None:
            return dhidden, None, None, None
        dweight = torch.empty(dw.shape[::-1], dtype=weight_dtype, device=dw.device).copy_(dw.T)
        return dhidden, dweight.mul_(gradient), None, None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The same for any head, whose own gradients autograd takes chunk by chunk, in the same pass too."""

    @staticmethod
    def forward(ctx: Any, logits_of: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *parameters: Tensor) -> Tensor:
        counts = targets != IGNORED
        shares = counts.to(torch.promote_types(hidden.dtype, torch.float32)) / counts.sum()
        targets, R = targets.where(counts, 0), _rows(hidden)
        needed = [n for n, needs in enumerate(ctx.needs_input_grad[3:]) if needs]
        sums: dict[int, Tensor] = {}
        likelihoods, dh = [], []
        for h, t, share in zip(hidden.split(R), targets.split(R), shares.split(R), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                logits = logits_of(h)  # [R, V]
            p = torch.softmax(logits.detach(), -1)
            hit = torch.arange(len(t), device=t.device), t
            likelihoods.append(p[hit].to(shares.dtype))
            p[hit] -= 1
            p.mul_(share[:, None])
            own, *found = torch.autograd.grad(logits, [h, *(parameters[n] for n in needed)], p, allow_unused=True)
            dh.append(torch.zeros_like(h) if own is None else own)
            for n, gradient in zip(needed, found, strict=True):
                if gradient is not None:
                    sums[n] = sums[n].add_(gradient) if n in sums else gradient
        ctx.save_for_backward(torch.cat(dh), *map(sums.get, range(len(parameters))))
        return _mean(likelihoods, shares, logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dh, *sums = (None if x is None else x * gradient for x in ctx.saved_tensors)
        return None, dh, None, *sums


def _rows(hidden: Tensor) -> int:
    """R, the tokens of a chunk."""
    return max(CHUNK, -(-len(hidden) // CHUNKS))


def _mean(likelihoods: list[Tensor], shares: Tensor, dtype: torch.dtype) -> Tensor:
    """The loss, from the targets' probabilities, which were computed in `dtype`."""
    least = max(torch.finfo(shares.dtype).tiny, torch.finfo(dtype).tiny * torch.finfo(dtype).eps)
    return -(torch.cat(likelihoods).clamp(min=least).log() * shares).sum()
