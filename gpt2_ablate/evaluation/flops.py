"""What a variant costs, from its shapes alone: parameters, FLOPs, receptive field.

FLOPs are those of products (linear layers, attention's two products, the head), two for a multiply-add, as in
torch.utils.flop_counter. Of attention only the pairs of a query and a key that the mask shows are counted, not all T x T: what
a kernel computes besides, and then hides, is overhead. Embedding lookups, norms, softmax and all other elementwise work are left
out: in GPT-2 they are below 1 % of the whole. Any part is counted as it is written, by tracing one forward pass.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.ops.attention import replace_kernels
from gpt2_ablate.ops.eager import eager_attention
from gpt2_ablate.ops.mask import AttentionMask

# Products: each element of the output is a sum over the last dimension of this input.
SUMMED_INPUT = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}

# Operators that are not counted, on top of fvcore's own list, each also in its in-place form. Of one that is in neither list
# fvcore logs the name.
NEGLIGIBLE = """
    alias broadcast_to clone embedding empty_like expand_as flip index_add index_copy index_select isin lift_fresh linspace mT
    masked_select movedim new_ones numel one_hot ones_like pad repeat repeat_interleave reshape_as scalar_tensor scatter
    scatter_add sort swapaxes tile topk tril triu unflatten unfold view_as view_as_complex view_as_real where
    __or__ all any isfinite isinf isnan le logical_and logical_not logical_or lt ne
    abs add addcmul clamp_max clamp_min cos div erf exp exp2 log log2 maximum minimum mul neg outer polar pow reciprocal
    round rsqrt rsub sign sin sqrt square sub
    elu gelu glu hardswish leaky_relu log_sigmoid mish relu6 sigmoid silu softplus tanh
    amax amin batch_norm cumsum group_norm layer_norm linalg_vector_norm log_softmax logsumexp mean min norm rms_norm
    softmax std sum var
""".split()


def count_parameters(model: GPT2) -> dict[str, int]:
    """How many parameters a model has, and in which parts; a parameter that several parts share counts once.

    Returns:
        total: the sum of all others.
        embedding: of the vocabulary at both ends and of the positions.
        attention, mlp, norm: of all blocks, and of the last norm.
        more, where a block has more: under the name of the block's child, or "block" for the block's own.
    """
    pieces = dict.fromkeys(("embedding", "attention", "mlp", "norm"), 0)
    for name, p in model.named_parameters():
        child, *below = name.split(".")
        if child == "blocks":
            child = below[1] if len(below) > 2 else "block"
        piece = "norm" if child.startswith("norm") else "embedding" if child == "positions" else child
        pieces[piece] = pieces.get(piece, 0) + p.numel()
    return {"total": sum(pieces.values()), **pieces}


@cache
def forward_flops_per_token(config: GPT2Config, context: int) -> float:
    """FLOPs of one forward pass over `context` tokens, divided by them.

    They are the same for a text that is read at once and for one that is generated token by token with a cache. A head counts
    T (T + 1) / 2 pairs for full attention, for a window the sum of min(t, W) over t from 1 to T. A part that writes its own
    products of queries and keys is charged for all of them. Learned positions are taken to reach as far as `context`.

    Raises:
        UserError: `context` is below 1.
    """
    if context < 1:
        raise UserError(f"context: {context} is too small; give 1 token or more")
    # A kernel that the config asks for may not run on the meta device; the FLOPs do not depend on it.
    config = replace(config, block_size=max(config.block_size, context), kernel="auto")
    try:
        multiply_adds = _multiply_adds("meta", config, context)
    except (RuntimeError, TypeError):
        # A part needs numbers (a convolution while tracing, a choice by value), so it runs; that takes seconds at 124M.
        multiply_adds = _multiply_adds("cpu", config, context)
    return 2 * multiply_adds / context


def training_flops_per_token(config: GPT2Config, context: int) -> float:
    """FLOPs of one training step per token: the forward pass, and twice that for the backward pass.

    Each product of the forward pass has two in the backward pass, one for each factor's gradient (Kaplan et al. 2001.08361,
    section 2.1). Recomputation that saves memory is not counted.
    """
    return 3 * forward_flops_per_token(config, context)


def receptive_field(config: GPT2Config) -> int | None:
    """How many tokens, the newest included, can influence a prediction; None: all.

    A layer with window W and dilation d reaches d (W - 1) tokens further back (Beltagy et al. 2004.05150, section 3.1). Global
    tokens, and all before the last of them, have influence besides.
    """
    spans = [mask.span for mask in config.masks]
    return None if None in spans else 1 + sum(span - 1 for span in spans if span is not None)


def _multiply_adds(device: str, config: GPT2Config, context: int) -> int:
    """Of all products of one forward pass, from the graph that fvcore traces, less those that masks hide."""
    attention = _CausalAttention()
    with (
        torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings(), _PlainSizes(),
        replace_kernels(attention),
    ):  # fmt: skip
        warnings.simplefilter("ignore")  # deprecations in fvcore, and advice on keeping the trace
        from fvcore.nn import FlopCountAnalysis, jit_handles  # type: ignore[import-untyped]

        analysis = FlopCountAnalysis(GPT2(config).eval(), (torch.zeros(1, context, dtype=torch.long),))
        # fvcore's own handles count norms too, and matmul by the shape of its first factor, which may be broadcast.
        analysis.clear_op_handles().uncalled_modules_warnings(False)
        handles: dict[str, Any] = {f"aten::{name}": partial(_product, summed) for name, summed in SUMMED_INPUT.items()}
        handles |= {f"aten::{name}{in_place}": None for name in NEGLIGIBLE for in_place in ("", "_")}
        handles |= {"aten::einsum": jit_handles.einsum_flop_jit, "aten::_convolution": jit_handles.conv_flop_jit}
        handles["aten::scaled_dot_product_attention"] = _attention_products
        return analysis.set_op_handle(**handles).total() - attention.hidden


class _CausalAttention:
    """Stands in for the kernels, one product of attention for all masks, and keeps account of what it computes too much.

    Attributes:
        hidden: multiply-adds that `_attention_products` counts, and that the masks hide.
    """

    def __init__(self) -> None:
        self.hidden = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
        B, H, T, D = q.shape
        computed = H * (T * (T + 1) // 2 if mask.score_bias is None else T * T)
        self.hidden += B * (computed - mask.visible_pairs(T, H)) * (D + v.shape[-1])
        if mask.score_bias is not None:
            return eager_attention(q, k, v, mask)  # the bias may have products of its own
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=bool(k.shape[1] != H))


class _PlainSizes(TorchFunctionMode):
    """Tensor sizes as Python numbers. torch.jit.trace, which fvcore uses, turns them into tensors, and then a model that selects
    its kernel by its sizes cannot be traced."""

    SIZES = (Tensor.shape.__get__, Tensor.size, Tensor.numel)  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in self.SIZES:
            return result
        return torch.Size(map(int, result)) if isinstance(result, tuple) else int(result)


def _product(summed: int, inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore's handle for a product that sums over the last dimension of input number `summed`: multiply-adds."""
    return math.prod(_sizes(outputs[0])) * _sizes(inputs[summed])[-1]


def _attention_products(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore's handle for SDPA: multiply-adds of queries [..., Tq, D] with keys [..., Tk, D], and with values [..., Tk, Dv]."""
    (*heads, Tq, D), (*_, Tk, _), (*_, Dv) = (_sizes(x) for x in inputs[:3])
    is_causal = inputs[5].toIValue()
    pairs = sum(min(t, Tk) for t in range(1, Tq + 1)) if is_causal else Tq * Tk
    return math.prod(heads) * pairs * (D + Dv)


def _sizes(value: Any) -> list[int]:
    return value.type().sizes()
