"""The other side of every comparison: the same model in transformers, run as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2Config
from gpt2_ablate.weights.export import architecture_of


def build(config: GPT2Config) -> Any:
    """transformers' model that computes the same function, with random weights.

    Raises:
        UserError: transformers is not installed, or has no such model.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise UserError("bench: transformers is not installed, and is what we compare with; pip install transformers") from None
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture_of(config).settings(config)))


def training_step(config: GPT2Config, batch_size: int, device: torch.device) -> Callable[[], None]:
    """model(input_ids, labels).loss.backward(), AdamW: in fp32 on a CPU; on CUDA under bf16 autocast and torch.compile."""
    model = build(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(config.vocab_size, (batch_size, config.block_size), device=device)
    call = torch.compile(model) if device.type == "cuda" else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss = call(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
