"""Which tokens are batch n: a pure function of (corpus, seed, n), so that every variant sees the same batches in the
same order, and a resumed run sees what it would have seen."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, IterableDataset

from gpt2_ablate.data.tokenizer import END_OF_TEXT_ID
from gpt2_ablate.errors import UserError
from gpt2_ablate.ops.cross_entropy import IGNORED


def number_documents(input_ids: Tensor, end_of_text: int = END_OF_TEXT_ID) -> Tensor:
    """[B, T] -> [B, T]: the number of each token's document, counted from 0 in each window; <|endoftext|> ends a document."""
    ends = input_ids == end_of_text
    return ends.cumsum(1) - ends.long()


class TrainingBatches(IterableDataset):
    """Batches (input_ids [B, T], targets [B, T]) without end, the targets being the inputs one token later.

    In each epoch the corpus is cut into windows of T tokens from a random offset, and the windows are shuffled: every token
    is seen once before any is seen twice, and each epoch cuts at other places.

    Args:
        ids: token ids [N].
        start: number of the first batch.

    Raises:
        UserError: a window is longer than the corpus.
    """

    def __init__(self, ids: np.ndarray, block_size: int, batch_size: int, seed: int, start: int = 0):
        if len(ids) < 2 * block_size:
            raise UserError(
                f"block_size: {block_size} tokens of context do not fit into a training text of {len(ids)} tokens; "
                f"give at most {len(ids) // 2}, or a longer corpus"
            )
        self.ids, self.block_size, self.batch_size, self.seed, self.start = ids, block_size, batch_size, seed, start
        self.windows = len(ids) // block_size - 1
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.batch, itertools.count(self.start))

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Batch number n of the run."""
        windows = np.stack([self._window(n * self.batch_size + b) for b in range(self.batch_size)])
        ids = torch.from_numpy(windows.astype(np.int64))
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def _window(self, i: int) -> np.ndarray:
        """Window number i of the run: T inputs and the target of the last, [T + 1]."""
        offset, order = self._epoch(i // self.windows)
        start = offset + int(order[i % self.windows]) * self.block_size
        return self.ids[start : start + self.block_size + 1]

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        # The last window's last target is the token after it.
        offset = int(rng.integers(len(self.ids) - self.windows * self.block_size))
        return offset, rng.permutation(self.windows)


class EvaluationBatches(Dataset):
    """A text cut into consecutive windows: batch n as (input_ids [B, T], targets [B, T]).

    Every token but the first is a target exactly once; the last window is padded, and padding does not count.

    Raises:
        UserError: a window is longer than the text.
    """

    def __init__(self, ids: np.ndarray, block_size: int, batch_size: int):
        if len(ids) <= block_size:
            raise UserError(
                f"block_size: {block_size} tokens of context do not fit into an evaluation text of {len(ids)} tokens; "
                f"give less than that, or a longer corpus"
            )
        self.ids, self.block_size, self.batch_size = ids, block_size, batch_size

    def __len__(self) -> int:
        return math.ceil((len(self.ids) - 1) / (self.block_size * self.batch_size))

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        if not 0 <= n < len(self):
            raise IndexError(n)
        size = self.batch_size * self.block_size
        text = torch.from_numpy(self.ids[n * size : (n + 1) * size + 1].astype(np.int64))
        missing = (0, -(len(text) - 1) % self.block_size)
        inputs, targets = pad(text[:-1], missing), pad(text[1:], missing, value=IGNORED)
        return inputs.view(-1, self.block_size), targets.view(-1, self.block_size)
