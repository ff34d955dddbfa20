"""GPT-2 (Radford et al. 2019), with its positions, attention, MLP and norm as exchangeable parts."""

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_ablate.model import attention, learned, mlp, norm, rotary  # noqa: F401  (registers GPT-2's own parts)
from gpt2_ablate.model.cache import KVCache, LayerCache
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.documents import starts_of
from gpt2_ablate.model.loss import linear_cross_entropy
from gpt2_ablate.model.parts import find_part
from gpt2_ablate.model.positions import Positions
from gpt2_ablate.model.tied import tied


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.norm_1 = find_part("norm", config.norm)(config)
        self.attention = find_part("attention", config.attention)(config)
        self.norm_2 = find_part("norm", config.norm)(config)
        self.mlp = find_part("mlp", config.mlp)(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, where: Tensor, positions: Positions, cache: LayerCache | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """x [B, T, C] at the places `where` [T] -> [B, T, C]."""
        packed = {} if starts is None else {"starts": starts}
        x = x + self.dropout(self.attention(self.norm_1(x), where, positions, cache, **packed))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class GPT2(nn.Module):
    """A language model: token ids [B, T] -> logits [B, T, V] of the token that follows each.

    The head is the transposed token embedding. Weights start as in the released code: N(0, 0.02), the two projections
    into the residual stream N(0, 0.02 / sqrt(2 n_layer)), biases zero, norms one. They depend on torch's global seed.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        seed = int(torch.randint(2**31, (), device="cpu"))  # before any part draws its own: the same for every variant
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions: Positions = find_part("positions", config.positions)(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(layer) for layer in config.layers)
        self.norm = find_part("norm", config.norm)(config)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int | None = None) -> None:
        """Draw all weights anew.

        Each tensor's numbers depend on the seed (None: draw one) and on its own name alone, so that two variants that
        share a tensor start from the same one: their difference is the modification's, not the draw's.
        """
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        generator = torch.Generator()
        for name, p in self.named_parameters():
            if p.is_meta:
                continue
            if p.ndim >= 2:
                # Named `output`: adds to the residual stream, 2 n_layer times in all.
                into_residual = name.endswith("output.weight")
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if into_residual else 0.02
                generator.manual_seed(seed ^ zlib.crc32(name.encode()))
                p.copy_(torch.empty(p.shape, device="cpu").normal_(0.0, std, generator=generator))
            else:
                p.fill_(0.0 if name.endswith("bias") else 1.0)

    def hidden(self, input_ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> the normalised residual stream [B, T, C] that the head reads.

        Args:
            cache: the ids continue the text that it holds.
            documents: [B, T], the number of the document that each token belongs to, where a row holds several, one after
                the other: each is read as if it were alone. None: one a row.

        Raises:
            UserError: the text is longer than the positions can tell.
        """
        return self._hidden(self.embedding(input_ids), cache, documents)

    def _hidden(self, rows: Tensor, cache: KVCache | None, documents: Tensor | None) -> Tensor:
        """As `hidden`, from the tokens' rows [B, T, C] of the embedding."""
        start, length = (cache.length if cache is not None else 0), rows.shape[1]
        where = torch.arange(start, start + length, device=rows.device)
        starts = starts_of(documents, where, cache)
        told = where if starts is None else where - starts
        length, longest = start + length, self.positions.max_length
        if starts is not None and longest is not None and length > longest:
            length = int(told.max()) + 1  # of the longest document; a GPU is waited for here, so only where it matters
        self.positions.reach(length)
        x = self.dropout(self.positions.embed(rows, told))
        for i, block in enumerate(self.blocks):
            x = block(x, where, self.positions, cache.layers[i] if cache is not None else None, starts)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """[..., C] -> logits [..., V]."""
        return F.linear(hidden, self.embedding.weight)

    def forward(self, input_ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V]; `cache` and `documents` as in `hidden`."""
        return self.head(self.hidden(input_ids, cache, documents))

    def loss(self, input_ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets [B, T] given input_ids [B, T]; targets of -100 do not count.

        Equals `cross_entropy(self(input_ids), targets)`, but never holds all logits (see `gpt2_ablate.model.loss`), and reads
        the embedding's weight without calling the module, so that hooks on that are not run.
        """
        rows, weight = tied(self.embedding.weight, input_ids)
        hidden = self._hidden(rows, None, documents)
        return linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten())
