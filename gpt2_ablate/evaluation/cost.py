"""What a variant costs, worked out from its shapes alone: parameters, FLOPs, key/value cache, receptive field.

FLOPs are those of products (linear layers, attention's two products, the head), one multiply-add being two, as in
torch.utils.flop_counter. Embedding lookups, norms, softmax and all else that works element by element are left out: in
GPT-2 they are below 1 % of the whole. Any part is counted as it is written, by following one forward pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.model.pattern import Pattern

# Operators of a product: each element of what comes out is a sum over the last dimension of this input.
SUMMED_INPUT = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}

# Operators that are not worth counting, on top of fvcore's own list, each also in its in-place form. One that stands
# nowhere is not counted either, but fvcore logs its name.
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


def count_parameters(model: nn.Module) -> dict[str, int]:
    """How many weights a GPT2 has, and where they sit; a weight that several places share counts once.

    Returns:
        total: the sum of all others.
        embedding: the token table, which is the head too, and whatever the positions have learned.
        attention: of all blocks.
        mlp: of all blocks.
        norm: everything else.
    """
    pieces = {"embedding": 0, "attention": 0, "mlp": 0, "norm": 0}
    for name, p in model.named_parameters():
        pieces[_piece(name)] += p.numel()
    return {"total": sum(pieces.values()), **pieces}


@cache
def forward_flops_per_token(config: GPT2Config, context: int) -> float:
    """FLOPs of one forward pass over `context` tokens, divided by them, as fvcore counts it.

    Full causal attention counts all T x T scores (the usual convention, and torch's), whether or not a kernel skips the
    hidden half; a window counts the blocks of `gpt2_ablate.model.sliding`, padding included. Learned positions are taken to
    reach as far as `context`.

    Raises:
        UserError: `context` is no text.
    """
    return 2 * _without_arithmetic(_multiply_adds, config, context) / context


def training_flops_per_token(config: GPT2Config, context: int) -> float:
    """FLOPs of one training step per token: forward, and twice that backward.

    Each product of the forward pass has two in the backward pass, one for either factor's gradient (Kaplan et al.
    2001.08361, section 2.1). What a kernel recomputes in order to save memory is not counted.
    """
    return 3 * forward_flops_per_token(config, context)


def closed_form_flops_per_token(config: GPT2Config, context: int) -> float:
    """`forward_flops_per_token` as the textbook has it, to check it by.

    It knows GPT-2's own attention and MLP only, and takes a config to mean these whatever parts it names.

    Raises:
        UserError: `context` is no text.
    """
    _require_text(context)
    C = config.n_embd
    projections = C * (config.n_head + 2 * config.kv_heads) * config.head_dim + C * C
    # Queries with keys, then weights with values: D multiply-adds a pair each.
    scores = 2 * config.head_dim * sum(_pairs(layer, context) for layer in config.layers) / context
    mlp = 2 * C * 4 * C
    head = C * config.vocab_size
    return 2 * (config.n_layer * (projections + mlp) + scores + head)


@cache
def torch_flops_per_token(config: GPT2Config, context: int) -> float:
    """`forward_flops_per_token` as torch.utils.flop_counter counts it: below autograd, from other operators.

    Raises:
        UserError: `context` is no text.
    """
    return _without_arithmetic(_torch_flops, config, context) / context


def kv_bytes_per_token(config: GPT2Config, bytes_per_element: int = 4) -> int:
    """Bytes that one more token adds to the key/value cache of one text, before any window is full."""
    return 2 * config.n_layer * config.kv_heads * config.head_dim * bytes_per_element


def kv_cache_bytes(config: GPT2Config, context: int, bytes_per_element: int = 4) -> int:
    """Bytes of the key/value cache of one text after `context` tokens; a layer with a window keeps what that reaches."""
    held = sum(Pattern.of(layer).held(context) for layer in config.layers)
    return held * kv_bytes_per_token(config, bytes_per_element) // config.n_layer


def receptive_field(config: GPT2Config) -> int | None:
    """How many tokens, the newest included, can take part in a prediction; None: all there are.

    Each layer of a window W reaches d (W - 1) tokens further back (Beltagy et al. 2004.05150, section 3.1). Global tokens,
    and all before the last of them, take part besides.
    """
    windows = [Pattern.of(layer).reach for layer in config.layers]
    return None if None in windows else 1 + sum(reach - 1 for reach in windows if reach is not None)


def _pairs(layer: GPT2Config, context: int) -> int:
    """Scores that all heads of one layer compute, see `gpt2_ablate.model.sliding`."""
    pattern = Pattern.of(layer)
    if pattern.window is None or pattern.sees_all(context):
        return layer.n_head * context**2
    everywhere = sum(place < context for place in pattern.global_tokens)
    pairs = layer.n_head * everywhere * context  # global queries see all there are
    for d in pattern.dilation if isinstance(pattern.dilation, tuple) else (pattern.dilation,) * layer.n_head:
        # d texts of every d-th token. In each the first W queries see W keys, every further W, the last filled up, see
        # 2 W, and all see the global ones.
        W = min(pattern.window, math.ceil(context / d))
        blocks = math.ceil(context / (d * W))
        pairs += d * ((2 * blocks - 1) * W**2 + blocks * W * everywhere)
    return pairs


def _piece(name: str) -> str:
    """Where in GPT2 the parameter of this name sits."""
    match name.split("."):
        case ["embedding" | "positions", *_]:
            return "embedding"
        case ["blocks", _, ("attention" | "mlp") as piece, *_]:
            return piece
    return "norm"


def _without_arithmetic(count: Callable[[GPT2, Tensor], int], config: GPT2Config, context: int) -> int:
    """What `count` finds in a model that reads `context` tokens, on the meta device: shapes without numbers.

    A part that cannot do without numbers (a convolution while tracing, a choice by value) makes it run for real, which
    takes seconds at 124M.
    """
    _require_text(context)
    # A kernel that config forces may not run on the meta device; what is counted does not depend on it.
    config = replace(config, block_size=max(config.block_size, context), kernel="auto")
    try:
        return _on("meta", count, config, context)
    except (RuntimeError, TypeError):
        return _on("cpu", count, config, context)


def _on(device: str, count: Callable[[GPT2, Tensor], int], config: GPT2Config, context: int) -> int:
    # The caller's random numbers stay as they are.
    with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad():
        return count(GPT2(config).eval(), torch.zeros(1, context, dtype=torch.long))


def _require_text(context: int) -> None:
    if context < 1:
        raise UserError(f"context: {context} is too small; give 1 token or more")


def _torch_flops(model: GPT2, text: Tensor) -> int:
    # torch has no formula for the fused attention of CPUs; written out, it is two products as on any device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(text)
    return counter.get_total_flops()


def _multiply_adds(model: GPT2, text: Tensor) -> int:
    """Those of all products of one forward pass, from the graph that fvcore traces."""
    with warnings.catch_warnings(), _PlainSizes():
        warnings.simplefilter("ignore")  # deprecations in fvcore, and advice for those who keep the trace
        from fvcore.nn import FlopCountAnalysis, jit_handles  # type: ignore[import-untyped]

        # Its own handles count norms too, and matmul by its first factor alone, which may be the broadcast one.
        analysis = FlopCountAnalysis(model, (text,)).clear_op_handles().uncalled_modules_warnings(False)
        for name, summed in SUMMED_INPUT.items():
            analysis.set_op_handle(f"aten::{name}", _product(summed))
        for name in NEGLIGIBLE:
            analysis.set_op_handle(f"aten::{name}", None, f"aten::{name}_", None)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_products)
        analysis.set_op_handle("aten::einsum", jit_handles.einsum_flop_jit)
        analysis.set_op_handle("aten::_convolution", jit_handles.conv_flop_jit)
        return analysis.total()


class _PlainSizes(TorchFunctionMode):
    """Sizes of tensors as Python numbers. torch.jit.trace, which fvcore uses, makes tensors of them, and a model that
    chooses its kernel by its sizes cannot be traced then."""

    SIZES = (Tensor.shape.__get__, Tensor.size, Tensor.numel)  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in self.SIZES:
            return result
        return torch.Size(map(int, result)) if isinstance(result, tuple) else int(result)


def _product(summed: int) -> Callable[[list[Any], list[Any]], int]:
    """fvcore's handle for a product whose input number `summed` loses its last dimension: multiply-adds."""

    def multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
        return math.prod(_sizes(outputs[0])) * _sizes(inputs[summed])[-1]

    return multiply_adds


def _attention_products(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore's handle for SDPA: multiply-adds of queries [..., Tq, D] with keys [..., Tk, D], weights with values."""
    (*rows, D), (*_, keys, _), (*_, width) = (_sizes(x) for x in inputs[:3])
    return math.prod(rows) * keys * (D + width)


def _sizes(value: Any) -> list[int]:
    return value.type().sizes()
