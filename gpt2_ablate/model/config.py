"""The sizes of a model and the names of its parts; a wrong value is refused here, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_ablate.errors import UserError

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
        positions: the part that tells tokens where they stand: "learned" (GPT-2) or "rotary" (Su et al. 2104.09864).
        window: W, key j is visible to query i iff i - W < j <= i (Beltagy et al. 2004.05150, section 3.1); None means
            all of the past.
        dropout: probability of dropping an embedding, an attention weight or a residual update in training.
        attention: the part that mixes tokens.
        mlp: the part that works on each token alone.
        norm: the part in front of both, and of the head.

    `positions`, `attention`, `mlp` and `norm` are names of parts, see `gpt2_ablate.model.parts`.

    Raises:
        UserError: a value is out of range, or two do not fit together.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_kv_head: int | None = None
    positions: str = "learned"
    window: int | None = None
    dropout: float = 0.0
    attention: str = "self_attention"
    mlp: str = "mlp"
    norm: str = "layer_norm"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            self._require_count(name)
        for name in ("n_kv_head", "window"):
            if getattr(self, name) is not None:
                self._require_count(name)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout: {self.dropout!r} is not a probability; give a number from 0 up to, not including, 1")
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd: {self.n_embd} does not divide into n_head = {self.n_head} heads; give a multiple of {self.n_head}"
            )
        if self.n_head % self.kv_heads:
            divisors = ", ".join(str(g) for g in range(1, self.n_head + 1) if self.n_head % g == 0)
            raise UserError(f"n_kv_head: {self.kv_heads} does not divide n_head = {self.n_head}; give one of {divisors}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"positions: rotary turns pairs of channels, but n_embd / n_head = {self.head_dim} is odd; give an even width"
            )

    def _require_count(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{name}: {value!r} is not a whole number")
        if value < 1:
            raise UserError(f"{name}: {value} is too small; give 1 or more")

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
