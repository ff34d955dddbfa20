"""The other side of every comparison: the same model in transformers, run as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2Config


def build(config: GPT2Config) -> Any:
    """transformers' model of this size with random weights: Starcoder2 for rotary positions, else GPT-2.

    Raises:
        UserError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("bench: transformers is not installed, and is what we compare with; pip install transformers") from None
    if config.positions == "rotary":
        window: Any = config.window
        return transformers.Starcoder2ForCausalLM(
            transformers.Starcoder2Config(
                vocab_size=config.vocab_size, hidden_size=config.n_embd, intermediate_size=4 * config.n_embd,
                num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.block_size, sliding_window=window, tie_word_embeddings=True,
                residual_dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0, bos_token_id=50256, eos_token_id=50256,
            )
        )  # fmt: skip
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer,
            n_head=config.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def architecture(config: GPT2Config) -> str:
    """The name of what `build` builds; importing it is part of the call."""
    import transformers

    return (transformers.Starcoder2ForCausalLM if config.positions == "rotary" else transformers.GPT2LMHeadModel).__name__


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
