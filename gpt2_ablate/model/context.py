"""What one forward pass carries from part to part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpt2_ablate.model.kv_cache import KVCache
    from gpt2_ablate.model.positions import Positions


@dataclass
class ForwardContext:
    """Made once a forward pass, and handed to every part of it.

    Attributes:
        position_ids: [T], or [B, T] where a row holds several documents: positions in the document, which the positional
            encoding counts by.
    """

    positions: Tensor  # [T], of the tokens in their row: what masks and caches count by
    position_ids: Tensor
    document_starts: Tensor | None  # [B, T], the position at which each token's document starts; None: every row is one document
    encoding: Positions  # the model's positional encoding
    cache: KVCache | None = None  # keys and values of earlier tokens; None: there are none, and none are kept
    shared: dict[str, Tensor] = field(default_factory=dict)  # what one part leaves for later ones, by name


def find_document_starts(documents: Tensor | None, positions: Tensor, cache: KVCache | None) -> Tensor | None:
    """[B, T]: the position at which the document of each token starts; None where every row is one document.

    Args:
        documents: [B, T], any number for each document, the same for all of its tokens; a document starts where the number
            changes. None: no new one starts.
        positions: [T], of the tokens.
        cache: what was read before; it remembers the document that is open in each row.
    """
    open_ = None if cache is None else cache.document
    if documents is None:
        return None if open_ is None else open_[1].expand(-1, len(positions))
    number, start = open_ or (documents[:, :1], torch.zeros_like(documents[:, :1]))
    changed = documents != torch.cat((number, documents[:, :-1]), dim=1)
    starts = torch.where(changed, positions, start).cummax(1).values
    if cache is not None:
        cache.document = documents[:, -1:], starts[:, -1:]
    return starts
