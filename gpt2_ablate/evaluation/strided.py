"""Loss on a text longer than the context, in overlapping windows, so that every token is predicted from many.

The procedure is that of transformers' documentation, "Perplexity of fixed-length models". With a stride of the whole window
it is what others compare with the GPT-2 paper's perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_ablate.data.batches import IGNORED
from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.errors import UserError
from gpt2_ablate.evaluation.perplexity import evaluation_mode, perplexity
from gpt2_ablate.model import GPT2

BATCH_SIZE = 8  # windows

Watch = Callable[[Sequence[Tensor]], Iterable[Tensor]]


@dataclass(frozen=True)
class TextScore:
    """Loss on a text, per token, word, byte and character.

    All but the first take the mean loss times all tokens of the text: the few tokens that no window predicts (the first, or
    without overlap the first of each window) count as the mean.

    Attributes:
        tokens, bytes, characters, words: of the text; words are separated by white space.
    """

    loss: float  # mean cross-entropy in nats of the tokens that were predicted
    predicted: int  # their number
    tokens: int
    bytes: int
    characters: int
    words: int

    @property
    def perplexity(self) -> float:
        """Per token: depends on the tokenizer."""
        return perplexity(self.loss)

    @property
    def word_perplexity(self) -> float:
        """Per word: what papers report for texts that are split into words."""
        return perplexity(self.loss * self.tokens / max(1, self.words))

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2) * self.tokens / self.bytes

    @property
    def bits_per_character(self) -> float:
        return self.loss / math.log(2) * self.tokens / self.characters

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for display."""
        return [
            ("tokens predicted", f"{self.predicted:,} of {self.tokens:,}"),
            ("loss per token", f"{self.loss:.4f} nats"),
            ("perplexity per token", f"{self.perplexity:.4f}"),
            ("perplexity per word", f"{self.word_perplexity:.4f}"),
            ("bits per byte", f"{self.bits_per_byte:.4f}"),
            ("bits per character", f"{self.bits_per_character:.4f}"),
        ]


def read_text(file: Path) -> str:
    """A text file in UTF-8.

    Raises:
        UserError: it is missing, empty, or not text.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start + 1} is not UTF-8; give a text file in UTF-8") from error
    if "\0" in text:
        raise UserError(f"{file}: byte {len(text[: text.index(chr(0))].encode()) + 1} is zero, as in no text; give one in UTF-8")
    if not text.strip():
        raise UserError(f"{file}: holds no text; give a file that does")
    return text


def score_text(
    model: GPT2, text: str, window: int | None = None, stride: int | None = None, watch: Watch = lambda batches: batches
) -> TextScore:
    """Score a text, taken as one document without <|endoftext|>; arguments as of `strided_loss`.

    Raises:
        UserError: as `strided_loss`.
    """
    ids = torch.tensor(load_tokenizer(model.config.vocab_size).encode_ordinary(text))
    loss, predicted = strided_loss(model, ids, window, stride, watch)
    return TextScore(loss, predicted, len(ids), len(text.encode()), len(text), len(text.split()))


def strided_loss(
    model: GPT2, ids: Tensor, window: int | None = None, stride: int | None = None, watch: Watch = lambda batches: batches
) -> tuple[float, int]:
    """Mean cross-entropy in nats of the token ids [N] of one text, and how many of them it is the mean of.

    Windows of T tokens start S tokens apart. Each predicts what the one before has not: the first window all of its tokens but
    the first, every other its last S, from at least T - S tokens. If T = S, nothing precedes the first token of a window, and
    it is not predicted. Each prediction counts once; transformers' documentation weighs a window of n predictions by n - 1,
    which moves the mean by less than 1/S of the first window's distance from it.

    Args:
        window: T, tokens; None: the length that the model was trained on.
        stride: S, from 1 to T; None: half of T.
        watch: iterates over the batches, as a progress bar does.

    Raises:
        UserError: the window is longer than the model can encode, the stride than the window, or there is no text.
    """
    longest = model.positions.max_length
    window = model.config.block_size if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if window < 2:
        raise UserError(f"window: {window} is too small to predict a token from another; give 2 or more")
    if longest is not None and window > longest:
        raise UserError(f"window: {window} is more than the {longest} positions of this model; give at most {longest}")
    if not 1 <= stride <= window:
        raise UserError(f"stride: {stride} tokens would leave a gap or never move on; give 1 to {window}, the window")
    if len(ids) < 2:
        raise UserError(f"text: {len(ids)} tokens leave nothing to predict; give a longer text")

    window = min(window, len(ids))
    windows = 1 + -(-(len(ids) - window) // stride)  # the last is the first that reaches the end, and is padded
    padded = F.pad(ids, (0, (windows - 1) * stride + window - len(ids)), value=IGNORED)
    batches = padded.unfold(0, window, stride).split(BATCH_SIZE)  # views [B, T]
    total, count = 0.0, 0
    with evaluation_mode(model):
        for n, batch in enumerate(watch(batches)):
            tokens = batch.to(model.device)
            is_predicted = tokens != IGNORED
            is_predicted[:, : max(1, window - stride)] = False
            if n == 0:
                is_predicted[0, 1:] = True  # by the first window all but the first token
            hidden = model.hidden(tokens.clamp(min=0))[:, :-1]
            losses = model.embedding.token_losses(hidden[is_predicted[:, 1:]], tokens[is_predicted])
            total += float(losses.double().sum())
            count += len(losses)
    return total / count, count
