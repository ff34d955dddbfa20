"""Positional encodings: what they may do, and GPT-2's learned positions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext
from gpt2_ablate.ops.linear import normal_

INIT_STD = 0.01  # of the table (the released code of GPT-2, model.py)


class Positions(nn.Module):
    """Base of the `positions` parts; built as `cls(config, **options)`. Each hook does nothing until a part overrides it.

    Attributes:
        score_bias: None, or a function (query positions [Tq], key positions [Tk]) -> [H, Tq, Tk] of what is added to the
            attention scores. It may depend on the difference of the two positions only, because windowed kernels compute
            it once and use it for every window.
    """

    max_length: int | None = None  # the longest sequence that can be encoded, in tokens; None: there is no limit
    score_bias: Callable[[Tensor, Tensor], Tensor] | None = None

    def prepare(self, length: int) -> None:
        """Get ready for a sequence of `length` tokens.

        Raises:
            UserError: it is too long.
        """
        if self.max_length is not None and length > self.max_length:
            raise UserError(
                f"input_ids: {length} tokens (prompt and continuation) are more than the {self.max_length} positions "
                f"of this model; shorten the text, or use a variant with rotary positions"
            )

    def begin(self, context: ForwardContext) -> None:
        """Leave in `context.shared` what every layer will need; called once a forward pass."""

    def embed(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Add positions to token embeddings x [B, T, C]."""
        return x

    def rotate(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Rotate queries or keys x [B, heads, T, D] by their positions."""
        return x


class NoPositions(Positions):
    """NoPE: the causal mask alone tells the order (Kazemnejad et al. 2305.19466, section 2)."""

    def __init__(self, config: GPT2Config):
        super().__init__()


class LearnedPositions(Positions):
    """A table [block_size, C], added to the token embeddings in front of the first block (Radford et al. 2018, section 3.1)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.max_length = config.block_size
        self.table = PositionTable(config.block_size, config.n_embd)

    def embed(self, x: Tensor, context: ForwardContext) -> Tensor:
        return x + self.table(context.position_ids)


class PositionTable(nn.Embedding):
    """Starts at N(0, 0.01)."""

    def reset_parameters(self) -> None:
        normal_(self.weight, INIT_STD)
