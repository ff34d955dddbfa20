"""Several documents in one row: where each of them starts, so that none sees another and each counts from its own start."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_ablate.model.cache import KVCache


def starts_of(documents: Tensor | None, where: Tensor, cache: KVCache | None) -> Tensor | None:
    """[B, T]: at which place the document of each token starts; None where every row is one document.

    Args:
        documents: [B, T], any number for each document, the same for all of its tokens; a document starts where the number
            changes. None: no new one starts.
        where: [T], the places of the tokens.
        cache: what was read before; it remembers the document that is open in each row.
    """
    open_ = None if cache is None else cache.document
    if documents is None:
        return None if open_ is None else open_[1].expand(-1, len(where))
    number, start = open_ or (documents[:, :1], torch.zeros_like(documents[:, :1]))
    changed = documents != torch.cat((number, documents[:, :-1]), dim=1)
    starts = torch.where(changed, where, start).cummax(1).values
    if cache is not None:
        cache.document = documents[:, -1:], starts[:, -1:]
    return starts
