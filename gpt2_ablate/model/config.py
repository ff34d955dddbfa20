"""The sizes of a model and the names of its parts; a wrong value is refused here, before anything is built."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from gpt2_ablate.errors import UserError
from gpt2_ablate.ops.linear import INIT_STD
from gpt2_ablate.ops.mask import AttentionMask

KINDS = ("block", "attention", "mlp", "norm", "positions", "embedding")  # of parts

Part = str | dict[str, Any]

# Radford et al. 2019, table 2 (the paper's parameter counts are off; the released models have these).
SIZES: dict[str, dict[str, int]] = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
}


@dataclass(frozen=True)
class GPT2Config:
    """What a GPT-2 is made of. The defaults are the released 124M model.

    Args:
        vocab_size: V, the number of token ids.
        block_size: longest context in tokens that the model is trained on.
        n_layer: number of transformer blocks.
        n_head: H, the number of query heads.
        n_embd: C, the width of the residual stream.
        n_kv_head: G, the number of key/value heads (Ainslie et al. 2305.13245, section 2.2): None means H
            (multi-head attention), 1 is multi-query attention.
        positions: the positional encoding: "learned" (GPT-2), "rotary" (Su et al. 2104.09864) or "none" (Kazemnejad et al.
            2305.19466).
        window: W, key j is visible to query i iff i - W < j <= i (Beltagy et al. 2004.05150, section 3.1); None means
            all of the past. A list says it for each layer, from the first; a shorter one is repeated.
        dropout: probability of dropping an embedding, an attention weight or a residual update in training.
        rope_base: rotary positions rotate pair i of D/2 by rope_base ** (-2i / D) a token.
        rope_interleaved: the pairs are neighbouring channels, as in the paper; default is channel i of either half.
        rope_scaling: how rotary positions extend beyond the trained length, see `gpt2_ablate.model.rope`:
            None, "linear", "ntk" or "yarn".
        rope_factor: by how many times; block_size is the extended length, block_size / rope_factor that trained.
        dilation: d, the window's keys are d tokens apart and span d times as many (section 3.1): one number, a list of one
            for each query head, or a list over layers of such lists, repeated like `window`.
        global_tokens: positions whose tokens see all before them and are seen by all after them, whatever the
            window (section 3.1, made causal).
        kernel: what computes attention, see `gpt2_ablate.ops.attention`: "auto" takes the fastest that can.
        block: one layer, built of attention, mlp and norms.
        attention: what mixes tokens.
        mlp: what works on each token alone.
        norm: in front of both, and of the head.
        embedding: the vocabulary at both ends: token embeddings, and the head.

    `block`, `attention`, `mlp`, `norm`, `positions` and `embedding` say a part, see `gpt2_ablate.model.parts`: the name of one
    that is built in, "file.py:Class", or a mapping of "name" and options.

    Raises:
        UserError: a value is out of range, or two do not fit together.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_kv_head: int | None = None
    positions: Part = "learned"
    window: int | tuple[int | None, ...] | None = None
    dropout: float = 0.0
    rope_base: float = 10_000.0
    rope_interleaved: bool = False
    rope_scaling: str | None = None
    rope_factor: float = 1.0
    dilation: int | tuple[int | tuple[int, ...], ...] = 1
    global_tokens: tuple[int, ...] = ()
    kernel: str = "auto"
    block: Part = "pre_norm"
    attention: Part = "self_attention"
    mlp: Part = "mlp"
    norm: Part = "layer_norm"
    embedding: Part = "tied"

    def __post_init__(self) -> None:
        for name in ("window", "dilation", "global_tokens"):  # lists of a YAML or a JSON
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        for kind in KINDS:
            object.__setattr__(self, kind, _part(kind, getattr(self, kind)))
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            _require_count(name, getattr(self, name))
        if self.n_kv_head is not None:
            _require_count("n_kv_head", self.n_kv_head)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout: {self.dropout!r} is not a probability; give a number from 0 up to, not including, 1")
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd: {self.n_embd} does not divide into n_head = {self.n_head} heads; give a multiple of {self.n_head}"
            )
        if self.n_head % self.kv_heads:
            divisors = ", ".join(str(g) for g in range(1, self.n_head + 1) if self.n_head % g == 0)
            raise UserError(f"n_kv_head: {self.kv_heads} does not divide n_head = {self.n_head}; give one of {divisors}")
        self._check_rotary()
        self._check_masks()

    def _check_rotary(self) -> None:
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"positions: rotary rotates pairs of channels, but n_embd / n_head = {self.head_dim} is odd; give an even width"
            )
        for name in ("rope_base", "rope_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < float("inf"):
                raise UserError(f"{name}: {value!r} is out of range; give a number from 1")
        if self.rope_scaling is not None and self.positions == "learned":
            raise UserError(f"rope_scaling: {self.rope_scaling!r} changes nothing for learned positions; give positions: rotary")
        if self.rope_factor != 1 and self.rope_scaling is None:
            raise UserError(f"rope_factor: {self.rope_factor} changes nothing without rope_scaling; give linear, ntk or yarn")

    def _check_masks(self) -> None:
        windows = self._over_layers("window", self.window)
        for i, window in enumerate(windows):
            if window is not None:
                _require_count(f"window[{i}]" if isinstance(self.window, tuple) else "window", window)
        for i, dilation in enumerate(self._dilations()):
            where = f"dilation[{i}]" if _is_nested(self.dilation) else "dilation"
            if isinstance(dilation, tuple) and len(dilation) != self.n_head:
                raise UserError(f"{where}: {len(dilation)} numbers for n_head = {self.n_head} heads; give one for each head")
            for d in dilation if isinstance(dilation, tuple) else (dilation,):
                _require_count(where, d)
                if d >= self.block_size and d > 1:
                    raise UserError(
                        f"{where}: {d} leaves a head its own token alone in block_size = {self.block_size} tokens; give less"
                    )
        if not isinstance(self.global_tokens, tuple):
            raise UserError(f"global_tokens: {self.global_tokens!r} is not a list of positions; give [0] for the first token")
        for position in self.global_tokens:
            if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < self.block_size:
                raise UserError(f"global_tokens: {position!r} is no position; give whole numbers from 0 to {self.block_size - 1}")
        if len(set(self.global_tokens)) < len(self.global_tokens):
            raise UserError(f"global_tokens: {list(self.global_tokens)} names a position twice; give each once")
        spread = [name for name, unused in (("dilation", 1), ("global_tokens", ())) if getattr(self, name) != unused]
        if spread and not any(windows):
            raise UserError(f"{spread[0]}: no layer has a window that it could change; give a window, or leave it out")

    def _dilations(self) -> tuple[Any, ...]:
        return self._over_layers("dilation", self.dilation if _is_nested(self.dilation) else (self.dilation,))

    def _over_layers(self, name: str, value: Any) -> tuple[Any, ...]:
        """What a field says for each layer, where it says one thing for all or a list that is repeated."""
        said = value if isinstance(value, tuple) else (value,)
        if not said or self.n_layer % len(said):
            raise UserError(f"{name}: a list of {len(said)} does not fit n_layer = {self.n_layer}; give a length that divides it")
        return said * (self.n_layer // len(said))

    @property
    def masks(self) -> tuple[AttentionMask, ...]:
        """Which keys the queries of each layer see."""
        windows = self._over_layers("window", self.window)
        return tuple(
            AttentionMask() if window is None else AttentionMask(window, dilation, self.global_tokens)
            for window, dilation in zip(windows, self._dilations(), strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON has them: lists and plain mappings."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def preset(cls, name: str, **changes) -> GPT2Config:
        """The released model `name` (gpt2, gpt2-medium, gpt2-large, gpt2-xl), with `changes` to single fields.

        Raises:
            UserError: there is no such model.
        """
        if name not in SIZES:
            raise UserError(f"preset: no GPT-2 is called {name!r}; give one of {', '.join(SIZES)}")
        return cls(**{**SIZES[name], **changes})

    @property
    def kv_heads(self) -> int:
        """G: `n_kv_head`, or H where it is None."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_dim(self) -> int:
        """D, the width of one head."""
        return self.n_embd // self.n_head

    @property
    def residual_std(self) -> float:
        """Of the first weights of a projection into the residual stream, which 2 n_layer of them add to (Radford et al. 2019,
        section 2.3)."""
        return INIT_STD / math.sqrt(2 * self.n_layer)


def _require_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}: {value!r} is not a whole number")
    if value < 1:
        raise UserError(f"{name}: {value} is too small; give 1 or more")


class PartOptions(dict):
    """A part's name and options; not to be changed, so that a config can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))


def _part(kind: str, value: Any) -> Part:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{kind}: {value!r} is no part; give a name, file.py:Class, or a mapping of name and options")
    return PartOptions(value) if len(value) > 1 else value["name"]


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that a config can be hashed and compared."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _is_nested(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(inner, tuple) for inner in value)
