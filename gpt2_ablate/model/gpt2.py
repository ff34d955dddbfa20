"""GPT-2 (Radford et al. 2019), assembled from exchangeable parts."""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.context import ForwardContext, find_document_starts
from gpt2_ablate.model.embedding import TiedEmbedding
from gpt2_ablate.model.kv_cache import KVCache
from gpt2_ablate.model.parts import build
from gpt2_ablate.model.positions import Positions
from gpt2_ablate.ops.attention import select_kernel


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Base of the `block` parts; built as `cls(config, layer, **options)`.
    """

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.norm_1 = build("norm", config.norm, config.n_embd)
        self.attention = build("attention", config.attention, config, layer)
        self.norm_2 = build("norm", config.norm, config.n_embd)
        self.mlp = build("mlp", config.mlp, config, layer)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        x = x + self.dropout(self.attention(self.norm_1(x), context))
        return x + self.dropout(self.mlp(self.norm_2(x)))

    def make_cache(self, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device):
        """The cache of its attention, see `SelfAttention.make_cache`."""
        return self.attention.make_cache(batch_size, capacity, dtype, device)


class GPT2(nn.Module):
    """A language model: token ids [B, T] -> logits [B, T, V] of the token that follows each.

    Weights start as in the released code (model.py of openai/gpt-2): N(0, 0.02), a table of positions N(0, 0.01), biases zero,
    norms one; but the two projections into the residual stream of each block N(0, 0.02 / sqrt(2 n_layer)), as the paper says
    and that code does not (Radford et al. 2019, section 2.3). They depend on torch's global seed.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        seed = _draw_seed()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.embedding: TiedEmbedding = build("embedding", config.embedding, config)
            self.positions: Positions = build("positions", config.positions, config)
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(build("block", config.block, config, layer) for layer in range(config.n_layer))
            self.norm = build("norm", config.norm, config.n_embd)
        self.initialise(seed)

    def initialise(self, seed: int | None = None) -> None:
        """Let every module that has `reset_parameters` draw its weights anew.

        Each draws from a generator seeded by `seed` (None: draw one) and its own name alone, so that two variants that share
        a tensor start from the same numbers: their difference is the modification's, not the draw's. A part comes after the
        modules it holds: what it sets stays. Weights without `reset_parameters` stay as they were made.
        """
        seed = _draw_seed() if seed is None else seed
        with torch.random.fork_rng(devices=[]):
            for name, module in reversed(list(self.named_modules())):
                if hasattr(module, "reset_parameters"):
                    torch.default_generator.manual_seed(seed ^ zlib.crc32(f"{name}.weight".encode()))
                    module.reset_parameters()

    def hidden(self, input_ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> the normalised residual stream [B, T, C] that the head reads.

        Args:
            cache: the ids continue the sequence that it holds.
            documents: [B, T], the number of the document that each token belongs to, where a row holds several, one after
                the other: each is read as if it were alone. None: one a row.

        Raises:
            UserError: the sequence is longer than the positional encoding allows.
        """
        return self._hidden(input_ids, self._context(input_ids, cache, documents))

    def _context(self, input_ids: Tensor, cache: KVCache | None, documents: Tensor | None) -> ForwardContext:
        start = cache.length if cache is not None else 0
        length, max_length = start + input_ids.shape[1], self.positions.max_length
        positions = torch.arange(start, length, device=input_ids.device)
        starts = find_document_starts(documents, positions, cache)
        position_ids = positions if starts is None else positions - starts
        if starts is not None and max_length is not None and length > max_length:
            length = int(position_ids.max()) + 1  # of the longest document; a GPU is waited for here, so only where it matters
        self.positions.prepare(length)
        context = ForwardContext(positions, position_ids, starts, self.positions, cache)
        self.positions.begin(context)
        return context

    def _hidden(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x = self.embedding(input_ids, context)
        x = self.dropout(self.positions.embed(x, context))
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)

    def forward(self, input_ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V]; `cache` and `documents` as in `hidden`."""
        return self.embedding.logits(self.hidden(input_ids, cache, documents))

    def loss(self, input_ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets [B, T] given input_ids [B, T]; targets of -100 do not count.

        Equals `cross_entropy(self(input_ids), targets)`, but never holds all logits (see `gpt2_ablate.ops.cross_entropy`).
        """
        context = self._context(input_ids, None, documents)
        return self.embedding.loss(self._hidden(input_ids, context), targets, context)

    def make_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        """An empty `KVCache` for this model, in the dtype and on the device of its weights."""
        weight = next(self.parameters())
        return KVCache(self.config, batch_size, capacity, weight.dtype, weight.device, self.blocks)

    def check_kernels(self, T: int, document_starts: Tensor | None = None, dropout: float = 0.0) -> None:
        """Whether the kernel that the config asks for can compute attention of T tokens on the model's device.

        Raises:
            UserError: it cannot.
        """
        for mask in self.config.masks:
            mask = replace(mask, document_starts=document_starts, score_bias=self.positions.score_bias)
            select_kernel(mask, self.device, T, dropout, self.config.kernel)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _draw_seed() -> int:
    return int(torch.randint(2**31, (), device="cpu"))
