"""What a way of telling positions may do. Each hook does nothing until a part overrides it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gpt2_ablate.errors import UserError


class Positions(nn.Module):
    """Base of the `positions` parts.

    Attributes:
        max_length: positions from here on cannot be told; None means there is no end.
        score_bias: None, or a function (query positions [Tq], key positions [Tk]) -> [H, Tq, Tk] of what is added to
            the attention scores. It may depend on the difference of the two positions only, because windowed kernels
            compute it once and use it for every window.
    """

    max_length: int | None = None
    score_bias: Callable[[Tensor, Tensor], Tensor] | None = None

    def reach(self, length: int) -> None:
        """Make ready for a text of `length` tokens. Called once a forward pass, in front of all else.

        Raises:
            UserError: the text is longer than the positions can tell.
        """
        if self.max_length is not None and length > self.max_length:
            raise UserError(
                f"input_ids: {length} tokens (prompt and continuation) are more than the {self.max_length} positions "
                f"that this model can tell apart; shorten the text, or use a variant with rotary positions"
            )

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add positions [T] or [B, T] to token embeddings x [B, T, C]."""
        return x

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn queries or keys x [B, heads, T, D] by their positions [T] or [B, T]."""
        return x
